"""Load a configuration file and check it, or report everything that is wrong with it."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vllm_lora_router.config import cross_checks, semantic_router_keys
from vllm_lora_router.config.redact import redact_at, redact_text
from vllm_lora_router.config.schema import Config
from vllm_lora_router.config.yaml_document import (
    MAX_PROBLEMS,
    ConfigError,
    Document,
    KeyPath,
    Problem,
    format_key_path,
    read_yaml,
    yaml_type,
)
from vllm_lora_router.text import quoted, suggest

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
        try:
            expanded = Path(path).expanduser()
            candidates = (start / expanded for start in (self.file.parent, Path.cwd()))
            return next((candidate.resolve() for candidate in candidates if candidate.exists()), None)
        except (OSError, RuntimeError):  # too long, not readable, or in the home of an unknown user
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
    problems: list[Problem] = []

    ignored = list(semantic_router_keys.ignored_keys(document.data))
    dropped = [*ignored, *semantic_router_keys.extension_keys(document.data)]
    for path, feature in semantic_router_keys.unsupported_keys(document.data):
        dropped.append(path)
        if feature is not None:
            problems.append(document.problem(path, f"{feature} is not supported; remove the key", at_key=True))
    for path in dropped:
        _drop(document.data, path)

    config: Config | None = None
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        # One problem more than a ConfigError shows.
        details = error.errors(include_url=False)[: MAX_PROBLEMS + 1]
        problems += [_problem(document, detail) for detail in details]
    problems += islice(cross_checks.find_problems(document, adapters), MAX_PROBLEMS + 1)
    if problems or config is None:
        raise ConfigError(problems)
    return LoadedConfig(
        config, file.resolve(), document, document.sha256[:8], tuple(format_key_path(path) for path in ignored)
    )


def _drop(data: Any, path: KeyPath) -> None:
    *parents, last = path
    for key in parents:
        data = data[key]
    del data[last]


def _problem(document: Document, detail: ErrorDetails) -> Problem:
    """Translate an error of Pydantic into a problem with a place in the file and a remedy."""
    path: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
    kind, value = detail["type"], redact_at(path, detail.get("input"))
    if kind == "extra_forbidden":
        return document.problem(path, f"unknown key{suggest(path[-1], _keys_at(path[:-1]))}", at_key=True)
    if kind == "missing":
        return document.problem(path[:-1], f"needs the key {path[-1]!r}")
    if kind == "string_type" and (written := document.written.get(path)):
        reason = yaml_type(redact_at(path, written), detail.get("input"))
        return document.problem(path, f"must be text, but {reason}; put it in quotes")
    if kind in ("model_type", "dict_type"):
        return document.problem(path, f"must be a mapping of keys{_shown(value)}")
    if kind == "literal_error":
        expected = detail.get("ctx", {}).get("expected", "")
        return document.problem(path, f"{quoted(value)} is not one of {expected}{_suggest_option(value, expected)}")
    message = redact_text(detail["msg"].removeprefix("Value error, "))
    message = message[:1].lower() + message[1:] + _shown(value)
    return document.problem(path, message, at_key="[key]" in detail["loc"])


def _suggest_option(value: object, expected: str) -> str:
    return suggest(value, [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])


def _shown(value: object) -> str:
    return f" (got {quoted(value)})" if isinstance(value, str | int | float | bool) or value is None else ""


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
