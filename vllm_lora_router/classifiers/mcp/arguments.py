"""The arguments of a tool call, in a form that every transport can send."""

import math
from collections.abc import Mapping
from typing import Any

from vllm_lora_router.classifiers.mcp.server import ToolDescription
from vllm_lora_router.types import Query

MAX_TEXT_CHARACTERS = 65_536  # of a message sent to a tool: half from its beginning, half from its end


def arguments(query: Query, tool: ToolDescription) -> dict[str, Any]:
    """Return the arguments of a tool call: the values that the tool's schema declares."""
    client = query.client
    available: dict[str, Any] = {
        "text": sent_text(query.text),
        "with_probabilities": True,
        "tenant": client.tenant,
        "user": client.user,
        "headers": dict(client.headers),
        "model": query.model,
    }
    properties = tool.properties or {"text": {}, "with_probabilities": {}}
    declared = {name: value for name, value in available.items() if name in properties and value is not None}
    # A required argument without a value is sent as an empty string.
    return encodable({**{name: "" for name in tool.required if name in available}, **declared})


def sent_text(text: str) -> str:
    """Return the part of a user message that is sent to a tool."""
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    return text[: MAX_TEXT_CHARACTERS // 2] + text[-MAX_TEXT_CHARACTERS // 2 :]


def encodable(value: Any) -> Any:
    """Return a copy of a JSON value that every JSON writer can encode.

    A client can send a lone surrogate in any string, such as half of an emoji. It is replaced by a question mark.

    Raises:
        TypeError, ValueError: The value is not JSON.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a JSON number")
        return value
    if isinstance(value, Mapping):
        return {_key(key): encodable(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{type(key).__name__} is not a type for a JSON key")
    return encodable(key)
