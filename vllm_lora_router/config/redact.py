"""Remove secrets from a configuration, so that it can be shown to clients."""

import re
from typing import Any

from vllm_lora_router.config.schema import Config

_SECRET = re.compile(r"(^|_)(key|token|secret|password|authorization|salt)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)")  # user:password@ in a URL
MASK = "***"


def redact(config: Config) -> dict[str, Any]:
    """Return the configuration with the keys of the file. Texts that may be secrets are replaced by `***`."""
    redacted = _redact_value(config.model_dump(by_alias=True, mode="json"))
    redacted["router"]["ab"]["key"] = list(config.router.ab.key)  # names parts of a request, not secrets
    return redacted


def _redact_value(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: MASK if key == "env" else _redact_value(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_redact_value(item, key) for item in value]
    if isinstance(value, str):
        return MASK if _SECRET.search(key) else _CREDENTIALS.sub(MASK, value)
    return value
