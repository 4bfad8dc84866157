"""Extract the user text from messages: without system text, tool results and the notes of agents."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from vllm_lora_router.protocols import json_edit

SYSTEM_ROLES = frozenset({"system", "developer"})
TEXT_PARTS = frozenset({"text", "input_text"})
# A user message that consists of these parts is the next step of an agent, not a turn of the user.
TOOL_PARTS = frozenset({"tool_result", "tool_reference"})

# Tags of the notes that agents add to the user's messages: Claude Code, Codex, Cline and Roo Code.
AGENT_NOTE_TAGS = ("system-reminder", "environment_context", "user_instructions", "environment_details")
_NOTE_TAGS = tuple((f"<{name}>", f"</{name}>") for name in AGENT_NOTE_TAGS)


class Part(msgspec.Struct):
    """A part of a message's content. Other members, such as the data of an image, are skipped."""

    type: Any = "text"
    text: Any = None


class Message(msgspec.Struct):
    """The role and the content of a message."""

    role: Any = None
    content: str | list[Part | str] | None = None


class _Role(msgspec.Struct):
    role: Any = None


_messages = msgspec.json.Decoder(list[Message])
_conversations = msgspec.json.Decoder(list[list[Message]])
_roles = msgspec.json.Decoder(list[_Role])


def read_messages(raw: Any) -> list[Message]:
    """Return the messages of a raw list, in one pass over its bytes. An item that is not a message has no role."""
    try:
        return _messages.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(bytes(raw))  # lone surrogates, and requests that vLLM will refuse
    except (ValueError, RecursionError):
        return []
    return [_message(item) for item in value] if isinstance(value, list) else []


def read_conversations(raw: Any) -> list[list[Message]]:
    """Return the messages of each conversation of a raw list."""
    try:
        return _conversations.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [read_messages(conversation) for conversation in json_edit.list_items(raw) or ()]


def read_roles(raw: Any) -> list[Any]:
    """Return the role of each message of a raw list; None for an item that is not a message."""
    try:
        return [message.role for message in _roles.decode(raw)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [message.role for message in read_messages(raw)]


def user_turns(messages: Iterable[Message]) -> tuple[str, ...]:
    """Return the text of each turn of the user, oldest first. A turn with only an image has an empty text."""
    return tuple(_turns(messages))


def strip_agent_notes(text: str) -> str:
    """Return a text without the notes of agents. The time is linear in the length of the text."""
    if "<" not in text:
        return text
    for begin, end in _NOTE_TAGS:
        if begin in text:
            text = _remove_between(text, begin, end)
    return text


def _turns(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        if message.role != "user" or message.content is None:
            continue
        if (text := _sole_text(message.content)) is not None:
            user_text = strip_agent_notes(text)
            if user_text is text or user_text.strip():
                yield user_text
            continue
        texts = [text for part in message.content if (text := _text(part)) is not None]
        user_text = "\n".join(
            stripped for text in texts if (stripped := strip_agent_notes(text)).strip() or not text.strip()
        )
        other_parts = len(message.content) - len(texts)
        tool_parts = sum(_has_type(part, TOOL_PARTS) for part in message.content)
        only_notes = not user_text.strip() and any(text.strip() for text in texts)
        if user_text.strip() or other_parts > tool_parts or not (tool_parts or only_notes):
            yield user_text


def _sole_text(content: str | list[Part | str]) -> str | None:
    """Return the text of a content that is one text, as in nearly all messages; None otherwise."""
    if isinstance(content, str):
        return content
    return _text(content[0]) if len(content) == 1 else None


def _text(part: Part | str) -> str | None:
    if isinstance(part, str):
        return part
    return part.text if _has_type(part, TEXT_PARTS) and isinstance(part.text, str) else None


def _has_type(part: Part | str, types: frozenset[str]) -> bool:
    return isinstance(part, Part) and isinstance(part.type, str) and part.type in types


def _remove_between(text: str, begin: str, end: str) -> str:
    pieces: list[str] = []
    position = 0
    while (start := text.find(begin, position)) >= 0 and (stop := text.find(end, start)) >= 0:
        pieces.append(text[position:start])
        position = stop + len(end)
    return "".join([*pieces, text[position:]])


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        return Message()
    content = value.get("content")
    if isinstance(content, list):
        content = [part if isinstance(part, str) else _part(part) for part in content]
    elif not isinstance(content, str):
        content = None
    return Message(value.get("role"), content)


def _part(value: Any) -> Part:
    return Part(value.get("type", "text"), value.get("text")) if isinstance(value, dict) else Part(None)
