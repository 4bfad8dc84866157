"""Where a category's system prompt goes: before the client's own, or in its place.

Into the client's first system message where there is one: many chat templates refuse a second.
"""

from typing import Any

from vllm_lora_router.requests import body
from vllm_lora_router.requests.body import Pieces
from vllm_lora_router.requests.words import SYSTEM_ROLES, roles
from vllm_lora_router.values import Mode

BETWEEN = "\n\n"


def into_messages(raw: Any, prompt: str, mode: Mode) -> Pieces | None:
    """A raw list of messages with the prompt in it; None when it is no list."""
    written = into_system_message(raw, prompt, mode)
    return body.with_first(raw, body.dump({"role": "system", "content": prompt})) if written is None else written


def into_system_message(raw: Any, prompt: str, mode: Mode, *, part: str = "text") -> Pieces | None:
    """A raw list of messages with the prompt in its first system message; None when it has none.

    Args:
        part: the type of a text part in this shape's content.
    """
    places = _places(raw)
    raws = body.items(raw) if places else None
    if raws is None:
        return None
    first = body.fields(raws[places[0]])
    own = first.get("content", b'""')
    first["content"] = body.dump(prompt) if mode == "replace" else before(own, prompt, part=part)
    raws[places[0]] = body.join(first)
    if mode == "replace":
        for place in reversed(places[1:]):
            del raws[place]
    return body.join_list(raws)


def without_system(raw: Any) -> Any:
    """A raw list without its system messages; the same when there is none, or it is no list."""
    if not (places := set(_places(raw))):
        return raw
    return body.join_list([one for index, one in enumerate(body.items(raw) or ()) if index not in places])


def before(own: Any, prompt: str, *, part: str = "text", between_parts: str = "") -> bytes | Pieces:
    """Raw content, a string or parts, with the prompt before it.

    Args:
        between_parts: what the prompt ends with where vLLM joins parts without anything between them.
    """
    if (parts := body.items(own)) is not None:
        return body.join_list([body.dump({"type": part, "text": prompt + (between_parts if parts else "")}), *parts])
    text = body.read(own)
    return body.dump(f"{prompt}{BETWEEN}{text}") if isinstance(text, str) and text else body.dump(prompt)


def _places(raw: Any) -> list[int]:
    """Where the system messages stand in a raw list."""
    return [index for index, role in enumerate(roles(raw)) if isinstance(role, str) and role in SYSTEM_ROLES]
