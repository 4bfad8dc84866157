"""A YAML file as plain data that remembers where each key and value stands."""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str | int, ...]  # the way to a value: ("categories", 2, "name")
Position = tuple[int, int]  # line and column, both from 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file: where, and what."""

    file: Path
    line: int
    column: int
    path: Path_
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: "
        return f"{place}{dotted(self.path)}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(ValueError):
    """A configuration that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Document:
    """The data of a YAML file and the places of its keys and values."""

    file: Path
    data: Any
    sha256: str
    keys: dict[Path_, Position]
    values: dict[Path_, Position]

    def problem(self, path: Path_, message: str, *, at_key: bool = False) -> Problem:
        """A problem at `path`; what is not in the file (a missing key) is placed at the nearest thing that is."""
        places = (self.keys, self.values) if at_key else (self.values, self.keys)
        for end in range(len(path), -1, -1):
            for places_of in places:
                if position := places_of.get(path[:end]):
                    return Problem(self.file, *position, path, message)
        return Problem(self.file, 1, 1, path, message)


def dotted(path: Path_) -> str:
    """`categories[2].model_scores[0].lora_name`"""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isidentifier() or part.replace("-", "_").isidentifier() else f'"{part}"'
            text += f".{name}" if text else name
    return text


def find(data: Any, *pattern: str | None) -> Iterator[tuple[Path_, Any]]:
    """Every value that a pattern leads to, with its path; None stands for each item of a list or mapping.

    What has another form than the pattern expects is passed over: it has a problem of its own already.
    """
    if not pattern:
        yield (), data
        return
    step, rest = pattern[0], pattern[1:]
    if step is not None:
        items = [(step, data[step])] if isinstance(data, dict) and step in data else []
    elif isinstance(data, dict):
        items = list(data.items())
    else:
        items = list(enumerate(data)) if isinstance(data, list) else []
    for key, value in items:
        for path, found in find(value, *rest):
            yield (key, *path), found


def read(file: Path, content: bytes | None = None) -> Document:
    """The document in `file`; `content` is taken for the file's own, where it was read before.

    Raises:
        ConfigError: it is missing, unreadable, empty, not YAML, or names one key twice.
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
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([Problem(file, line, column, (), f"is not YAML: {what}")]) from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        what = f"the character {chr(error.character)!r} is not allowed"
        raise ConfigError([Problem(file, line, column, (), f"is not YAML: {what}")]) from None
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
    """Builds data from nodes. PyYAML's own constructor drops the marks and takes the last of two equal keys."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.scalars = yaml.constructor.SafeConstructor()
        self.keys: dict[Path_, Position] = {}
        self.values: dict[Path_, Position] = {}
        self.problems: list[Problem] = []
        self.open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.values[path] = _position(node)
        if any(node is outer for outer in self.open):
            self._wrong(node, path, "an alias that contains itself")
            return None
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self.open.pop()

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[Hashable, Any]:
        inherited, own = self._pairs(node, path)
        data: dict[Hashable, Any] = {}
        seen: dict[Hashable, yaml.Node] = {}
        for key_node, value_node in (*inherited, *own):
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self._wrong(key_node, path, f"a key must be text, not {key!r}; put it in quotes")
                continue
            if key in seen and any(seen[key] is before for before, _ in own):
                line = _position(seen[key])[0]
                self._wrong(key_node, (*path, key), f"is given twice; it already stands in line {line}")
                continue
            seen[key] = key_node
            self.keys[(*path, key)] = _position(key_node)
            data[key] = self.value(value_node, (*path, key))
        return data

    def _pairs(self, node: yaml.MappingNode, path: Path_, within: tuple[yaml.Node, ...] = ()) -> tuple[_Pairs, _Pairs]:
        """What << names, and what a mapping has itself; of equal keys the last wins.

        Of several mappings under << the first wins, as YAML's merge keys say (https://yaml.org/type/merge.html);
        PyYAML 6.0.4 lets the last win.
        """
        own: _Pairs = []
        named: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                own.append((key, value))
            else:
                named += value.value if isinstance(value, yaml.SequenceNode) else [value]
        inherited: _Pairs = []
        for mapping in reversed(named):
            if not isinstance(mapping, yaml.MappingNode):
                self._wrong(mapping, path, "cannot be merged: expected a mapping")
            elif any(mapping is outer for outer in (node, *within)):
                self._wrong(mapping, path, "cannot be merged: an alias that contains itself")
            else:
                before, after = self._pairs(mapping, path, (node, *within))
                inherited += [*before, *after]
        return inherited, own

    def _scalar(self, node: yaml.Node, path: Path_) -> Any:
        try:
            return self.scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
            # The last two come from a tag such as !!bool before a text that is none.
            self._wrong(node, path, f"cannot be read: {getattr(error, 'problem', None) or error}")
            return None

    def _wrong(self, node: yaml.Node, path: Path_, message: str) -> None:
        self.problems.append(Problem(self.file, *_position(node), path, message))


def _position(node: yaml.Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1
