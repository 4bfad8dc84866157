"""Which paths are routed, and which shape of request comes in on each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.requests import chat, completions
from vllm_lora_router.values import Edit, Query, Written


@dataclass(frozen=True)
class Shape:
    """How one API's requests are read and written; `members` are the raw members of its JSON object."""

    api: str
    id_prefix: str  # vLLM makes the answer's id of this and the request id
    read: Callable[[dict[str, Any]], tuple[Query, ...]]
    write: Callable[[dict[str, Any], Edit], Written]


CHAT = Shape("chat", "chatcmpl-", chat.read, chat.write)
COMPLETIONS = Shape("completions", "cmpl-", completions.read, completions.write)

SHAPES: Mapping[str, Shape] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
}


def shape_of(members: dict[str, Any]) -> Shape | None:
    """The shape that a body has by its own members, for a request that names no path."""
    if "messages" in members:
        return CHAT
    return COMPLETIONS if "prompt" in members else None
