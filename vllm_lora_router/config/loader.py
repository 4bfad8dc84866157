"""From a file to a checked configuration, or to everything that is wrong with it."""

import copy
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vllm_lora_router.config import cross_checks, semantic_router_keys
from vllm_lora_router.config.schema import Config
from vllm_lora_router.config.yaml_document import ConfigError, Document, Path_, Problem, dotted, read

CONFIG_VARIABLE = "VLLM_LORA_ROUTER_CONFIG"
DEFAULT_FILE = Path("config/config.yaml")


@dataclass(frozen=True)
class Loaded:
    """A configuration that is right in itself, and where it came from."""

    config: Config
    file: Path
    document: Document  # for problems that show only when the configuration is used
    version: str  # the first 8 hex digits of the file's SHA-256
    ignored: tuple[str, ...]  # keys of the reference that mean nothing here

    def locate(self, path: str) -> Path | None:
        """The file or folder at `path`, tried against the configuration's folder, then the working directory."""
        for start in (self.file.parent, Path.cwd()):
            if (candidate := start / Path(path).expanduser()).exists():
                return candidate.resolve()
        return None


def configured_file() -> Path:
    """The configuration that the environment names, or `config/config.yaml`."""
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)


def load(file: Path, *, adapters: Collection[str] = (), content: bytes | None = None) -> Loaded:
    """The configuration in `file`; `adapters` names those that the command line declares.

    `content` is taken for the file's own, where it was read before.

    Raises:
        ConfigError: with every problem found, each with its file, line and column.
    """
    document = read(file, content)
    data = copy.deepcopy(document.data)
    problems: list[Problem] = []

    dropped = list(semantic_router_keys.ignored(document.data))
    for path, feature in semantic_router_keys.not_built(document.data):
        dropped.append(path)
        if feature is not None:
            text = f"not built yet in this version: {feature}; remove the key"
            problems.append(document.problem(path, text, at_key=True))
    for path in dropped:
        _drop(data, path)

    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems += [_problem(document, detail) for detail in error.errors(include_url=False)]
    problems += cross_checks.check(document, adapters)
    if problems or config is None:
        raise ConfigError(problems)
    return Loaded(
        config,
        file.resolve(),
        document,
        document.sha256[:8],
        tuple(dotted(path) for path in semantic_router_keys.ignored(document.data)),
    )


def _drop(data: Any, path: Path_) -> None:
    *way, last = path
    for step in way:
        data = data[step]
    data.pop(last, None)


def _problem(document: Document, detail: ErrorDetails) -> Problem:
    path: Path_ = tuple(part for part in detail["loc"] if part != "[key]")
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return document.problem(path, f"unknown key{cross_checks.suggest(path[-1], _keys_at(path[:-1]))}", at_key=True)
    if kind == "missing":
        return document.problem(path[:-1], f"needs the key {path[-1]!r}")
    if kind == "string_type" and isinstance(given, bool | int | float):
        said = "yes, no, on and off are truth values in YAML" if isinstance(given, bool) else "it is a number"
        return document.problem(path, f"must be text, and {given!r} is not ({said}); put it in quotes")
    if kind in ("model_type", "dict_type"):
        return document.problem(path, f"must be a mapping of keys{_shown(given)}")
    if kind == "literal_error":
        expected = detail.get("ctx", {}).get("expected", "")
        return document.problem(path, f"{given!r} is not one of {expected}{_near(given, expected)}")
    message = detail["msg"].removeprefix("Value error, ")
    return document.problem(path, message[:1].lower() + message[1:] + _shown(given))


def _near(given: object, expected: str) -> str:
    return cross_checks.suggest(given, [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])


def _shown(given: object) -> str:
    return f" (it is {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""


def _keys_at(path: Path_) -> list[str]:
    """The keys that the schema knows where `path` leads."""
    block: Any = Config
    parts = iter(path)
    for part in parts:
        if isinstance(part, int):
            continue  # the block of a list's items was found with the list
        fields = block.model_fields if _is_block(block) else {}
        found = next((field for name, field in fields.items() if part in (name, field.alias)), None)
        if found is None:
            return []
        if get_origin(found.annotation) is dict:
            next(parts, None)  # the user's own name
        block = _inner(found.annotation)
    return [field.alias or name for name, field in block.model_fields.items()] if _is_block(block) else []


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inner(annotation: Any) -> Any:
    """`Block` out of `list[Block]`, `dict[str, Block]` and `Block | None`."""
    while not _is_block(annotation) and (arguments := getattr(annotation, "__args__", ())):
        annotation = next((argument for argument in arguments if _is_block(argument)), arguments[-1])
    return annotation
