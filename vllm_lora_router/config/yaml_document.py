"""YAML files as plain data, with the line and column of every key and value."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vllm_lora_router.config.file_content import read_content
from vllm_lora_router.config.yaml_nodes import (
    LIST_TAG,
    MAPPING_TAG,
    MERGE_TAG,
    TEXT_TAG,
    Node,
    Position,
    YamlError,
    parse,
    short_tag,
)
from vllm_lora_router.text import shortened

KeyPath = tuple[str | int, ...]  # path to a value: ("categories", 2, "name")

MAX_PROBLEMS = 100  # that are reported of one file
MAX_NUMBER_CHARACTERS = 100  # a base-60 number such as 1:30:00 takes quadratic time


@dataclass(frozen=True)
class Problem:
    """A problem in a file, with its place."""

    file: Path
    line: int
    column: int
    path: KeyPath
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: "
        return f"{place}{format_key_path(self.path)}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(ValueError):
    """A configuration that cannot be used. `problems` contains its first problems, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        ordered = sorted(problems, key=lambda problem: (problem.line, problem.column))
        if len(ordered) > MAX_PROBLEMS:
            last = ordered[MAX_PROBLEMS]
            more = Problem(last.file, last.line, last.column, (), "there are more problems from here on")
            ordered = [*ordered[:MAX_PROBLEMS], more]
        self.problems = tuple(ordered)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Document:
    """The data of a YAML file, and the positions of its keys and values."""

    file: Path
    data: Any
    sha256: str
    keys: dict[KeyPath, Position]
    values: dict[KeyPath, Position]
    written: dict[KeyPath, str]  # values that are not text, as the file writes them

    def problem(self, path: KeyPath, message: str, *, at_key: bool = False) -> Problem:
        """Return a problem at `path`, or at its nearest ancestor in the file if the key is missing."""
        preferred = (self.keys, self.values) if at_key else (self.values, self.keys)
        for end in range(len(path), -1, -1):
            for positions in preferred:
                if position := positions.get(path[:end]):
                    return Problem(self.file, *position, path, message)
        return Problem(self.file, 1, 1, path, message)


def format_key_path(path: KeyPath) -> str:
    """Return a path as text: `categories[2].model_scores[0].lora_name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            part = shortened(part)
            name = part if part.isidentifier() or part.replace("-", "_").isidentifier() else f'"{part}"'
            text += f".{name}" if text else name
    return text


def find_values(data: Any, *pattern: str | None) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every value that matches a pattern, with its path.

    Values of another type than the pattern expects are skipped, because the schema reports them.

    Args:
        pattern: keys; None matches each item of a list or mapping.
    """
    if not pattern:
        yield (), data
        return
    first, rest = pattern[0], pattern[1:]
    if first is not None:
        items = [(first, data[first])] if isinstance(data, dict) and first in data else []
    elif isinstance(data, dict):
        items = list(data.items())
    else:
        items = list(enumerate(data)) if isinstance(data, list) else []
    for key, value in items:
        if not rest:
            yield (key,), value
        elif isinstance(value, dict | list):
            for path, match in find_values(value, *rest):
                yield (key, *path), match


def read_yaml(file: Path, content: bytes | None = None) -> Document:
    """Read and parse a YAML file. JSON is YAML, too.

    Args:
        content: the content of the file, if it has been read before.

    Raises:
        ConfigError: the file is missing, unreadable, empty, not YAML, too large, or contains a key twice.
    """
    try:
        content = read_content(file) if content is None else content
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        reason = "no such file" if error.filename else error.strerror or "no such file"
        raise ConfigError([Problem(file, 1, 1, (), reason)]) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            line = error.object[: error.start].count(b"\n") + 1
            raise ConfigError([Problem(file, line, 1, (), f"is not UTF-8 text (byte {error.start})")]) from None
        reason = getattr(error, "strerror", None) or error
        raise ConfigError([Problem(file, 1, 1, (), f"cannot be read: {reason}")]) from None
    try:
        root = parse(text)
    except YamlError as error:
        raise ConfigError([Problem(file, *error.position, (), str(error))]) from None
    if root is None:
        raise ConfigError([Problem(file, 1, 1, (), "is empty")])
    reader = _Reader(file)
    data = reader.value(root, ())
    if reader.problems:
        raise ConfigError(reader.problems)
    document = Document(file, data, hashlib.sha256(content).hexdigest(), reader.keys, reader.values, reader.written)
    if not isinstance(data, dict):
        raise ConfigError([document.problem((), "must be a mapping of keys such as categories and model_config")])
    return document


_Pairs = list[tuple[Node, Node]]
_SCALAR_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "timestamp")}


class _Reader:
    """Build data from nodes. PyYAML's own constructor drops the positions and accepts duplicate keys."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.scalars = yaml.constructor.SafeConstructor()
        self.keys: dict[KeyPath, Position] = {}
        self.values: dict[KeyPath, Position] = {}
        self.written: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []

    def value(self, node: Node, path: KeyPath) -> Any:
        self.values[path] = node.position
        if isinstance(node.value, str):
            value = self._scalar(node, path)
            if not isinstance(value, str):
                self.written[path] = node.value
            return value
        if node.tag == MAPPING_TAG:
            return self._mapping(node, path)
        return [self.value(item, (*path, index)) for index, item in enumerate(_list_items(node))]

    def _mapping(self, node: Node, path: KeyPath) -> dict[str, Any]:
        inherited, explicit = self._pairs(node, path)
        explicit_keys = {id(key_node) for key_node, _ in explicit}
        data: dict[str, Any] = {}
        seen: dict[str, Node] = {}
        for key_node, value_node in (*inherited, *explicit):
            key = self._scalar(key_node, path) if isinstance(key_node.value, str) else None
            if not isinstance(key, str):
                if not isinstance(key_node.value, str):
                    self._report(key_node, path, "a key must be text, not a list or a mapping")
                elif key_node.tag in _SCALAR_TAGS:
                    message = f"a key must be text, but {yaml_type(key_node.value, key)}; put it in quotes"
                    self._report(key_node, path, message)
                continue
            if key in seen and id(seen[key]) in explicit_keys:
                self._report(key_node, (*path, key), f"duplicate key; the first one is in line {seen[key].position[0]}")
                continue
            seen[key] = key_node
            self.keys[(*path, key)] = key_node.position
            data[key] = self.value(value_node, (*path, key))
        return data

    def _pairs(self, node: Node, path: KeyPath) -> tuple[_Pairs, _Pairs]:
        """Return the pairs that a mapping inherits through `<<`, and its explicit pairs. Of equal keys the last wins.

        If `<<` names several mappings, the first wins, as YAML's merge keys require (https://yaml.org/type/merge.html);
        in PyYAML 6.0.4 the last wins.
        """
        explicit: _Pairs = []
        merged: list[Node] = []
        for key, value in _mapping_pairs(node):
            if key.tag != MERGE_TAG:
                explicit.append((key, value))
            else:
                merged += _list_items(value) if value.tag == LIST_TAG else [value]
        inherited: _Pairs = []
        for mapping in reversed(merged):
            if mapping.tag != MAPPING_TAG:
                self._report(mapping, path, "cannot be merged: expected a mapping")
            else:
                indirect, direct = self._pairs(mapping, path)
                inherited += [*indirect, *direct]
        return inherited, explicit

    def _scalar(self, node: Node, path: KeyPath) -> Any:
        assert isinstance(node.value, str)
        if node.tag in (TEXT_TAG, MERGE_TAG):  # MERGE_TAG: a plain "<<" in the place of a value
            if "\0" in node.value:
                self._report(node, path, "contains a NUL character; remove it")
            return node.value
        if node.tag not in _SCALAR_TAGS:
            self._report(node, path, f"the tag {short_tag(node.tag)} is not supported; remove it")
            return None
        if len(node.value) > MAX_NUMBER_CHARACTERS:
            message = f"is a number of more than {MAX_NUMBER_CHARACTERS} characters; put it in quotes if it is text"
            self._report(node, path, message)
            return None
        try:
            return self.scalars.construct_object(yaml.ScalarNode(node.tag, node.value))
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError) as error:
            # A tag such as !!bool before a text that is not a boolean raises LookupError or AttributeError.
            self._report(node, path, f"cannot be read: {getattr(error, 'problem', None) or error}")
            return None

    def _report(self, node: Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.file, *node.position, path, message))


def yaml_type(written: str, value: object) -> str:
    """Return how YAML reads a text without quotes: `no` is a truth value in YAML."""
    if value is None:
        return f"`{written}` is null in YAML" if written else "it is empty"
    kinds = {bool: "a truth value", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    return f"`{shortened(written)}` is {kinds.get(type(value), 'a date')} in YAML"


def _list_items(node: Node) -> list[Node]:
    return [item for item in node.value if isinstance(item, Node)]


def _mapping_pairs(node: Node) -> _Pairs:
    return [item for item in node.value if isinstance(item, tuple)]
