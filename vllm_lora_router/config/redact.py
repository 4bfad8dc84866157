"""A configuration as it may be shown to a client: without secrets."""

import re
from typing import Any

from vllm_lora_router.config.schema import Config

_SECRET = re.compile(r"(^|_)(key|token|secret|password|authorization|salt)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)")  # user:password@ in a URL
MASK = "***"


def masked(config: Config) -> dict[str, Any]:
    """The configuration with the file's own keys; texts that may be secrets are replaced by `***`."""
    shown = _mask(config.model_dump(by_alias=True, mode="json"))
    shown["router"]["ab"]["key"] = list(config.router.ab.key)  # places, no secrets
    return shown


def _mask(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: MASK if key == "env" else _mask(member, name) for name, member in value.items()}
    if isinstance(value, list):
        return [_mask(item, key) for item in value]
    if isinstance(value, str):
        return MASK if _SECRET.search(key) else _CREDENTIALS.sub(MASK, value)
    return value
