"""YAML files as plain data, with the line and column of every key and value."""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]  # path to a value: ("categories", 2, "name")
Position = tuple[int, int]  # line and column, both from 1


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
    """A configuration that cannot be used. `problems` contains all of its problems, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Document:
    """The data of a YAML file, and the positions of its keys and values."""

    file: Path
    data: Any
    sha256: str
    keys: dict[KeyPath, Position]
    values: dict[KeyPath, Position]

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
        for path, match in find_values(value, *rest):
            yield (key, *path), match


def read_yaml(file: Path, content: bytes | None = None) -> Document:
    """Read and parse a YAML file.

    Args:
        content: the content of the file, if it has been read before.

    Raises:
        ConfigError: the file is missing, unreadable, empty, not YAML, or contains a key twice.
    """
    try:
        content = file.read_bytes() if content is None else content
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Problem(file, 1, 1, (), "no such file")]) from None
    except OSError as error:
        raise ConfigError([Problem(file, 1, 1, (), f"cannot be read: {error.strerror or error}")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([Problem(file, line, 1, (), f"is not UTF-8 text (byte {error.start})")]) from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([Problem(file, line, column, (), f"is not YAML: {reason}")]) from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        reason = f"the character {chr(error.character)!r} is not allowed"
        raise ConfigError([Problem(file, line, column, (), f"is not YAML: {reason}")]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([Problem(file, 1, 1, (), f"is not YAML: {error}")]) from None
    except RecursionError:
        raise ConfigError([Problem(file, 1, 1, (), "is nested too deeply")]) from None
    if root is None:
        raise ConfigError([Problem(file, 1, 1, (), "is empty")])
    reader = _Reader(file)
    data = reader.value(root, ())
    if reader.problems:
        raise ConfigError(reader.problems)
    document = Document(file, data, hashlib.sha256(content).hexdigest(), reader.keys, reader.values)
    if not isinstance(data, dict):
        raise ConfigError([document.problem((), "must be a mapping of keys such as categories and model_config")])
    return document


_Pairs = list[tuple[yaml.Node, yaml.Node]]


class _Reader:
    """Build data from nodes. PyYAML's own constructor drops the positions and accepts duplicate keys."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.scalars = yaml.constructor.SafeConstructor()
        self.keys: dict[KeyPath, Position] = {}
        self.values: dict[KeyPath, Position] = {}
        self.problems: list[Problem] = []
        self.ancestors: list[yaml.Node] = []  # of the node that is read

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.values[path] = _position(node)
        if any(node is ancestor for ancestor in self.ancestors):
            self._report(node, path, "an alias that contains itself")
            return None
        self.ancestors.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self.ancestors.pop()

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Hashable, Any]:
        inherited, explicit = self._pairs(node, path)
        data: dict[Hashable, Any] = {}
        seen: dict[Hashable, yaml.Node] = {}
        for key_node, value_node in (*inherited, *explicit):
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self._report(key_node, path, f"a key must be text, not {key!r}; put it in quotes")
                continue
            if key in seen and any(seen[key] is explicit_key for explicit_key, _ in explicit):
                line = _position(seen[key])[0]
                self._report(key_node, (*path, key), f"duplicate key; the first one is in line {line}")
                continue
            seen[key] = key_node
            self.keys[(*path, key)] = _position(key_node)
            data[key] = self.value(value_node, (*path, key))
        return data

    def _pairs(
        self, node: yaml.MappingNode, path: KeyPath, ancestors: tuple[yaml.Node, ...] = ()
    ) -> tuple[_Pairs, _Pairs]:
        """Return the pairs that a mapping inherits through `<<`, and its explicit pairs. Of equal keys the last wins.

        If `<<` names several mappings, the first wins, as YAML's merge keys require (https://yaml.org/type/merge.html);
        in PyYAML 6.0.4 the last wins.
        """
        explicit: _Pairs = []
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                explicit.append((key, value))
            else:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        inherited: _Pairs = []
        for mapping in reversed(merged):
            if not isinstance(mapping, yaml.MappingNode):
                self._report(mapping, path, "cannot be merged: expected a mapping")
            elif any(mapping is ancestor for ancestor in (node, *ancestors)):
                self._report(mapping, path, "cannot be merged: an alias that contains itself")
            else:
                indirect, direct = self._pairs(mapping, path, (node, *ancestors))
                inherited += [*indirect, *direct]
        return inherited, explicit

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            return self.scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
            # A tag such as !!bool before a text that is not a boolean raises one of the last two.
            self._report(node, path, f"cannot be read: {getattr(error, 'problem', None) or error}")
            return None

    def _report(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.file, *_position(node), path, message))


def _position(node: yaml.Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1
