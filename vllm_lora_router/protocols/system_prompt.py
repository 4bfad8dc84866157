"""Where a category's system prompt goes: before the client's own, or in its place.

Into the client's first system message where there is one: many chat templates refuse a second.
"""

from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.json_edit import Pieces
from vllm_lora_router.protocols.user_text import SYSTEM_ROLES, roles
from vllm_lora_router.types import Mode

BETWEEN = "\n\n"


def into_messages(raw: Any, prompt: str, mode: Mode) -> Pieces | None:
    """A raw list of messages with the prompt in it; None when it is no list."""
    written = into_system_message(raw, prompt, mode)
    return (
        json_edit.with_first(raw, json_edit.dump({"role": "system", "content": prompt})) if written is None else written
    )


def into_system_message(raw: Any, prompt: str, mode: Mode, *, part: str = "text") -> Pieces | None:
    """A raw list of messages with the prompt in its first system message; None when it has none.

    Args:
        part: the type of a text part in this shape's content.
    """
    places = _places(raw)
    raws = json_edit.items(raw) if places else None
    if raws is None:
        return None
    first = json_edit.fields(raws[places[0]])
    own = first.get("content", b'""')
    first["content"] = json_edit.dump(prompt) if mode == "replace" else before(own, prompt, part=part)
    raws[places[0]] = json_edit.join(first)
    if mode == "replace":
        for place in reversed(places[1:]):
            del raws[place]
    return json_edit.join_list(raws)


def without_system(raw: Any) -> Any:
    """A raw list without its system messages; the same when there is none, or it is no list."""
    if not (places := set(_places(raw))):
        return raw
    return json_edit.join_list([one for index, one in enumerate(json_edit.items(raw) or ()) if index not in places])


def before(own: Any, prompt: str, *, part: str = "text", between_parts: str = "") -> bytes | Pieces:
    """Raw content, a string or parts, with the prompt before it.

    Args:
        between_parts: what the prompt ends with where vLLM joins parts without anything between them.
    """
    if (parts := json_edit.items(own)) is not None:
        return json_edit.join_list(
            [json_edit.dump({"type": part, "text": prompt + (between_parts if parts else "")}), *parts]
        )
    text = json_edit.read(own)
    return json_edit.dump(f"{prompt}{BETWEEN}{text}") if isinstance(text, str) and text else json_edit.dump(prompt)


def _places(raw: Any) -> list[int]:
    """Where the system messages stand in a raw list."""
    return [index for index, role in enumerate(roles(raw)) if isinstance(role, str) and role in SYSTEM_ROLES]
