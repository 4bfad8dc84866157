"""Parse YAML text into nodes that know their place, within limits on depth and size."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from vllm_lora_router.text import shortened

MAX_DEPTH = 64  # levels of lists and mappings, aliases included
MAX_NODES = 500_000  # values and keys; an alias counts as all that it stands for

Position = tuple[int, int]  # line and column, both from 1

TEXT_TAG, LIST_TAG, MAPPING_TAG, MERGE_TAG, VALUE_TAG = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map", "merge", "value")
)

# libyaml is ten times as fast. Only a PyYAML that was built without it lacks CSafeLoader.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()

# JSON writes a character above U+FFFF as two escapes, as in "\ud83d\ude00". YAML has one escape for it, "\U0001f600".
_SURROGATE_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class YamlError(ValueError):
    """A text that is not YAML, or is beyond a limit."""

    def __init__(self, message: str, position: Position) -> None:
        super().__init__(message)
        self.position = position


@dataclass(slots=True)
class Node:
    """A value, a list or a mapping. An alias is the same object as the node that it stands for."""

    tag: str
    value: "str | list[Node] | list[tuple[Node, Node]]"
    position: Position
    size: int = 1  # number of nodes in it, itself and the content of aliases included
    depth: int = 0  # levels of lists and mappings in it, itself included


def parse(text: str) -> Node | None:
    """Return the root of the only document in `text`; None if there is none.

    Raises:
        YamlError: the text is not YAML, has several documents, or is too large or too deep.
    """
    try:
        return _parse(text, _Columns())
    except YamlError:
        columns = _Columns()
        joined = columns.join_surrogates(text)
        if joined == text:
            raise
        return _parse(joined, columns)


class _Columns:
    """Columns of the original text, in which JSON's surrogate pairs are longer than the escapes that replace them."""

    def __init__(self) -> None:
        self._replaced: dict[int, list[int]] = {}  # line -> columns at which the replacements end; both from 0

    def join_surrogates(self, text: str) -> str:
        """Replace each pair of surrogate escapes by the escape of its character."""

        def joined(match: re.Match[str]) -> str:
            character = bytes.fromhex(match[2] + match[3]).decode("utf-16-be")
            return f"{match[1]}\\U{ord(character):08x}"

        lines = text.split("\n")
        for number, line in enumerate(lines):
            if _SURROGATE_PAIR.search(line):
                matches = enumerate(_SURROGATE_PAIR.finditer(line), start=1)
                self._replaced[number] = [match.end() - 2 * count for count, match in matches]
                lines[number] = _SURROGATE_PAIR.sub(joined, line)
        return "\n".join(lines)

    def position(self, mark: Any) -> Position:
        """Return the place of a mark, of libyaml or of PyYAML, in the original text."""
        column = mark.column
        if (replaced := self._replaced.get(mark.line)) is not None:
            column += 2 * bisect_right(replaced, mark.column)
        return mark.line + 1, column + 1


def _parse(text: str, columns: _Columns) -> Node | None:
    try:
        return _Composer(text, columns).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        if mark and _character_at(text, mark) == "\t":
            reason += "; YAML does not allow tabs for indentation, use spaces"
        if "invalid Unicode character escape" in reason:
            reason += "; two surrogates, such as \\ud83d\\ude00, stand for one character, and one alone for none"
        raise YamlError(f"is not YAML: {reason}", columns.position(mark) if mark else (1, 1)) from None
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes from 0, and PyYAML's own reader counts characters.
        unreadable = next((index for index, char in enumerate(text) if ord(char) == error.character), 0)
        line, column = text.count("\n", 0, unreadable) + 1, unreadable - text.rfind("\n", 0, unreadable)
        raise YamlError(f"is not YAML: the character {chr(error.character)!r} is not allowed", (line, column)) from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"is not YAML: {error}", (1, 1)) from None


def _character_at(text: str, mark: Any) -> str:
    lines = text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    return line[mark.column : mark.column + 1]


class _Composer:
    """Composes nodes from events. PyYAML's own composer has no limits, and libyaml's overflows the stack."""

    def __init__(self, text: str, columns: _Columns) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._position = columns.position
        self._anchors: dict[str, Node | None] = {}  # None while the node is read
        self._nodes = 0

    def document(self) -> Node | None:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        root = self._node(next(self._events), 0)
        next(self._events)  # the end of the document
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            message = "a second document begins here; a configuration is one document, so remove the line `---`"
            raise YamlError(message, self._position(event.start_mark))
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        position = self._position(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor or "", position, depth)
        self._count(1, position)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(_scalar_tag(event), event.value, position)
        else:
            node = self._collection(event, position, depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _collection(self, event: yaml.CollectionStartEvent, position: Position, depth: int) -> Node:
        self._check_depth(depth, position)
        before = self._nodes - 1
        is_list = isinstance(event, yaml.SequenceStartEvent)
        tag = LIST_TAG if is_list else MAPPING_TAG
        if event.tag not in (None, "!", tag):
            raise YamlError(f"the tag {short_tag(event.tag)} is not supported here; remove it", position)
        items: list[Node] = []
        while not isinstance(inner := next(self._events), yaml.CollectionEndEvent):
            items.append(self._node(inner, depth))
        value = items if is_list else list(zip(items[::2], items[1::2], strict=True))
        levels = 1 + max((item.depth for item in items), default=0)
        return Node(tag, value, position, self._nodes - before, levels)

    def _alias(self, name: str, position: Position, depth: int) -> Node:
        if name not in self._anchors:
            raise YamlError(f"the alias *{shortened(name)} has no anchor before it", position)
        node = self._anchors[name]
        if node is None:
            raise YamlError(f"the alias *{shortened(name)} is inside the value that it stands for", position)
        self._count(node.size, position)
        self._check_depth(depth + node.depth, position)
        return node

    def _count(self, nodes: int, position: Position) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            message = (
                f"has more than {MAX_NODES:,} values and keys, the content of aliases included; use a smaller file"
            )
            raise YamlError(message, position)

    def _check_depth(self, depth: int, position: Position) -> None:
        if depth > MAX_DEPTH:
            raise YamlError(f"is nested too deeply: more than {MAX_DEPTH} levels", position)


def _scalar_tag(event: yaml.ScalarEvent) -> str:
    if event.tag not in (None, "!"):
        return event.tag
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    return TEXT_TAG if tag == VALUE_TAG else tag  # a plain "="


def short_tag(tag: str) -> str:
    """Return a tag as errors show it: `!!bool`."""
    return shortened(tag.replace("tag:yaml.org,2002:", "!!"))
