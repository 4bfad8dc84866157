"""Write a category's system prompt into a request, before the client's own or in place of it.

If the client has a system message, the prompt goes into it: many chat templates refuse a second one.
"""

from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.json_edit import RawPieces
from vllm_lora_router.protocols.user_text import SYSTEM_ROLES, read_roles
from vllm_lora_router.types import Mode

SEPARATOR = "\n\n"  # between the category's prompt and the client's own


def write_into_messages(raw: Any, prompt: str, mode: Mode) -> RawPieces | None:
    """Return a raw list of messages with the prompt in it; None if it is not a list."""
    edited = write_into_system_message(raw, prompt, mode)
    if edited is not None:
        return edited
    return json_edit.prepend_item(raw, json_edit.encode({"role": "system", "content": prompt}))


def write_into_system_message(raw: Any, prompt: str, mode: Mode, *, part_type: str = "text") -> RawPieces | None:
    """Return a raw list of messages with the prompt in its first system message; None if it has no system message.

    In mode `replace`, all other system messages are removed.

    Args:
        part_type: the `type` of a text part in this API.
    """
    indexes = _system_message_indexes(raw)
    raw_messages = json_edit.list_items(raw) if indexes else None
    if raw_messages is None:
        return None
    first = json_edit.object_members(raw_messages[indexes[0]])
    content = first.get("content", b'""')
    first["content"] = (
        json_edit.encode(prompt) if mode == "replace" else prepend_prompt(content, prompt, part_type=part_type)
    )
    raw_messages[indexes[0]] = json_edit.join_members(first)
    if mode == "replace":
        for index in reversed(indexes[1:]):
            del raw_messages[index]
    return json_edit.join_list(raw_messages)


def remove_system_messages(raw: Any) -> Any:
    """Return a raw list without its system messages. Return anything else, and a list without them, unchanged."""
    if not (indexes := set(_system_message_indexes(raw))):
        return raw
    raw_messages = json_edit.list_items(raw) or ()
    return json_edit.join_list([message for index, message in enumerate(raw_messages) if index not in indexes])


def prepend_prompt(
    raw_content: Any, prompt: str, *, part_type: str = "text", part_separator: str = ""
) -> bytes | RawPieces:
    """Return raw content (a string or a list of parts) with the prompt before it.

    Args:
        part_separator: text at the end of the prompt, for APIs where vLLM joins parts without a separator.
    """
    if (parts := json_edit.list_items(raw_content)) is not None:
        text = prompt + (part_separator if parts else "")
        return json_edit.join_list([json_edit.encode({"type": part_type, "text": text}), *parts])
    content = json_edit.decode(raw_content)
    if isinstance(content, str) and content:
        return json_edit.encode(f"{prompt}{SEPARATOR}{content}")
    return json_edit.encode(prompt)


def _system_message_indexes(raw: Any) -> list[int]:
    return [index for index, role in enumerate(read_roles(raw)) if isinstance(role, str) and role in SYSTEM_ROLES]
