"""Remove secrets from a configuration, and from texts that quote it: error messages, log lines and names of tools."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_lora_router.config.schema import Config

MASK = "***"
_NAMES = r"(?:key|token|secret|password|passwd|passphrase|credentials?|authorization|cookie|salt)"
_SECRET_KEY = re.compile(rf"(?:^|[_-]){_NAMES}$", re.IGNORECASE)
# In a URL: `user:password@`, and the query, which can contain an API key.
_USER = re.compile(r"(?<=://)[^/\s]+(?=@)")
_QUERY = re.compile(r"(://[^\s?#'\"<>]*\?)[^\s#'\"<>]+")
# In a command line: `--api-key=...` and `API_KEY=...`; `--api-key ...`; and `Authorization: ...`.
_ASSIGNMENT = re.compile(rf"\b([\w-]*{_NAMES}=)[^\s'\"]+", re.IGNORECASE)
_OPTION = re.compile(rf"^--?(?:[\w-]*-)?{_NAMES}$", re.IGNORECASE)
_OPTION_WITH_VALUE = re.compile(rf"((?:^|\s)--?(?:[\w-]*-)?{_NAMES}\s+)\S+", re.IGNORECASE)
_HEADER = re.compile(rf"\b((?:[\w-]*-)?{_NAMES}\s*:\s*)\S.*", re.IGNORECASE)


def redact(config: Config) -> dict[str, Any]:
    """Return the configuration with the keys of the file. Texts that may be secrets are replaced by `***`."""
    redacted = _redact_value(config.model_dump(by_alias=True, mode="json"))
    redacted["router"]["ab"]["key"] = list(config.router.ab.key)  # names parts of a request, not secrets
    return redacted


def redact_text(text: str) -> str:
    """Return a text in which the credentials and queries of URLs, and the values of secret options, are replaced."""
    return _OPTION_WITH_VALUE.sub(rf"\1{MASK}", _ASSIGNMENT.sub(rf"\1{MASK}", redact_urls(text)))


def redact_urls(text: str) -> str:
    """Return a text in which the credentials and queries of URLs are replaced."""
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(MASK, text))


def redact_arguments(arguments: Iterable[str]) -> list[str]:
    """Return the arguments of a command. The values of options such as `--token` are replaced."""
    redacted: list[str] = []
    is_value = False
    for argument in arguments:
        redacted.append(MASK if is_value else _HEADER.sub(rf"\1{MASK}", redact_text(argument)))
        is_value = _OPTION.match(argument) is not None
    return redacted


def redact_at(path: Sequence[str | int], value: Any) -> Any:
    """Return a value of the configuration as an error message may show it.

    Args:
        path: the keys that lead to the value.
    """
    names = [part for part in path if isinstance(part, str)]
    if names == ["router", "ab", "key"]:  # names parts of a request, not a secret
        return value
    if "env" in names[:-1] or any(map(_SECRET_KEY.search, names)):
        return MASK
    if "args" in names and isinstance(value, str):
        return MASK  # it may be the value of the option before it
    return redact_text(value) if isinstance(value, str) else value


def _redact_value(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: MASK if key == "env" else _redact_value(item, name) for name, item in value.items()}
    if isinstance(value, list):
        if key == "args" and all(isinstance(item, str) for item in value):
            return redact_arguments(value)
        return [_redact_value(item, key) for item in value]
    if isinstance(value, str):
        return MASK if _SECRET_KEY.search(key) else redact_urls(value)
    return value
