"""Load a configuration file and check it, or report everything that is wrong with it."""

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
from vllm_lora_router.config.yaml_document import ConfigError, Document, KeyPath, Problem, format_key_path, read_yaml
from vllm_lora_router.text import suggest

CONFIG_VARIABLE = "VLLM_LORA_ROUTER_CONFIG"
DEFAULT_FILE = Path("config/config.yaml")


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration and the file that it was loaded from."""

    config: Config
    file: Path
    document: Document  # for problems that are found only when the configuration is used
    version: str  # the first 8 hex digits of the file's SHA-256
    ignored: tuple[str, ...]  # keys of vllm-project/semantic-router that have no effect here

    def locate(self, path: str) -> Path | None:
        """Return the file or folder at `path`, relative to the configuration's folder or else the working directory.

        Returns None if it does not exist.
        """
        for start in (self.file.parent, Path.cwd()):
            if (candidate := start / Path(path).expanduser()).exists():
                return candidate.resolve()
        return None


def configured_file() -> Path:
    """Return the configuration file from the environment variable, or `config/config.yaml`."""
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)


def load(file: Path, *, adapters: Collection[str] = (), content: bytes | None = None) -> LoadedConfig:
    """Load the configuration in `file`.

    Args:
        adapters: the names of the adapters that the command line declares.
        content: the content of the file, if it has been read before.

    Raises:
        ConfigError: the configuration has problems. The error contains all of them, each with file, line and column.
    """
    document = read_yaml(file, content)
    data = copy.deepcopy(document.data)
    problems: list[Problem] = []

    dropped = list(semantic_router_keys.ignored_keys(document.data))
    for path, feature in semantic_router_keys.unsupported_keys(document.data):
        dropped.append(path)
        if feature is not None:
            problems.append(document.problem(path, f"{feature} is not supported; remove the key", at_key=True))
    for path in dropped:
        _drop(data, path)

    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems += [_problem(document, detail) for detail in error.errors(include_url=False)]
    problems += cross_checks.find_problems(document, adapters)
    if problems or config is None:
        raise ConfigError(problems)
    return LoadedConfig(
        config,
        file.resolve(),
        document,
        document.sha256[:8],
        tuple(format_key_path(path) for path in semantic_router_keys.ignored_keys(document.data)),
    )


def _drop(data: Any, path: KeyPath) -> None:
    *parents, last = path
    for key in parents:
        data = data[key]
    data.pop(last, None)


def _problem(document: Document, detail: ErrorDetails) -> Problem:
    """Translate an error of Pydantic into a problem with a place in the file and a remedy."""
    path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return document.problem(path, f"unknown key{suggest(path[-1], _keys_at(path[:-1]))}", at_key=True)
    if kind == "missing":
        return document.problem(path[:-1], f"needs the key {path[-1]!r}")
    if kind == "string_type" and isinstance(value, bool | int | float):
        reason = "yes, no, on and off are truth values in YAML" if isinstance(value, bool) else "it is a number"
        return document.problem(path, f"must be text, not {value!r} ({reason}); put it in quotes")
    if kind in ("model_type", "dict_type"):
        return document.problem(path, f"must be a mapping of keys{_shown(value)}")
    if kind == "literal_error":
        expected = detail.get("ctx", {}).get("expected", "")
        return document.problem(path, f"{value!r} is not one of {expected}{_suggest_option(value, expected)}")
    message = detail["msg"].removeprefix("Value error, ")
    return document.problem(path, message[:1].lower() + message[1:] + _shown(value))


def _suggest_option(value: object, expected: str) -> str:
    return suggest(value, [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])


def _shown(value: object) -> str:
    return f" (got {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""


def _keys_at(path: KeyPath) -> list[str]:
    """Return the keys that the schema has at a path."""
    block: Any = Config
    parts = iter(path)
    for part in parts:
        if isinstance(part, int):
            continue  # `_inner` has already resolved the list to the block of its items
        fields = block.model_fields if _is_block(block) else {}
        field = next((field for name, field in fields.items() if part in (name, field.alias)), None)
        if field is None:
            return []
        if get_origin(field.annotation) is dict:
            next(parts, None)  # a name chosen by the user
        block = _inner(field.annotation)
    return [field.alias or name for name, field in block.model_fields.items()] if _is_block(block) else []


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _inner(annotation: Any) -> Any:
    """Return `Block` from `list[Block]`, `dict[str, Block]` or `Block | None`."""
    while not _is_block(annotation) and (arguments := getattr(annotation, "__args__", ())):
        annotation = next((argument for argument in arguments if _is_block(argument)), arguments[-1])
    return annotation
