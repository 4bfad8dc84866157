"""What the user said, out of a list of messages: no system text, no tool results, no agent's notes."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from vllm_lora_router.protocols import json_edit

SYSTEM_ROLES = frozenset({"system", "developer"})
TEXT_PARTS = frozenset({"text", "input_text"})
# A user message of these alone is an agent's next step, not another thing that the user said.
TOOL_PARTS = frozenset({"tool_result", "tool_reference"})

# Agents put notes of their own into the user's messages: Claude Code, Codex, Cline and Roo Code.
NOTES = ("system-reminder", "environment_context", "user_instructions", "environment_details")
_NOTES = tuple((f"<{name}>", f"</{name}>") for name in NOTES)


class Part(msgspec.Struct):
    """A part of a message's content. Its other members, an image's data among them, are passed over."""

    type: Any = "text"
    text: Any = None


class Message(msgspec.Struct):
    """A message, as far as its words go."""

    role: Any = None
    content: str | list[Part | str] | None = None


class _Role(msgspec.Struct):
    role: Any = None


_messages = msgspec.json.Decoder(list[Message])
_conversations = msgspec.json.Decoder(list[list[Message]])
_roles = msgspec.json.Decoder(list[_Role])


def messages(raw: Any) -> list[Message]:
    """The messages of raw JSON, in one pass over its bytes; what is no message has no role."""
    try:
        return _messages.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(bytes(raw))  # lone surrogates, and what vLLM will refuse
    except (ValueError, RecursionError):
        return []
    return [_message(one) for one in value] if isinstance(value, list) else []


def conversations(raw: Any) -> list[list[Message]]:
    """The messages of each of a raw list's conversations."""
    try:
        return _conversations.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [messages(one) for one in json_edit.items(raw) or ()]


def roles(raw: Any) -> list[Any]:
    """The role of each of a raw list's messages; None for what is no message."""
    try:
        return [message.role for message in _roles.decode(raw)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [message.role for message in messages(raw)]


def turns(said: Iterable[Message]) -> tuple[str, ...]:
    """What the user said, oldest first. One who sent an image alone said nothing: an empty turn."""
    return tuple(_turns(said))


def own_words(text: str) -> str:
    """A text without the notes that an agent put between the user's words. Takes time in proportion to its length."""
    if "<" not in text:
        return text
    for begin, end in _NOTES:
        if begin in text:
            text = _without(text, begin, end)
    return text


def _turns(said: Iterable[Message]) -> Iterator[str]:
    for message in said:
        if message.role != "user" or message.content is None:
            continue
        if (text := _sole_text(message.content)) is not None:
            words = own_words(text)
            if words is text or words.strip():
                yield words
            continue
        texts = [text for part in message.content if (text := _text(part)) is not None]
        words = "\n".join(own for text in texts if (own := own_words(text)).strip() or not text.strip())
        others = len(message.content) - len(texts)
        tools = sum(_is_a(part, TOOL_PARTS) for part in message.content)
        notes_alone = not words.strip() and any(text.strip() for text in texts)
        if words.strip() or others > tools or not (tools or notes_alone):
            yield words


def _sole_text(content: str | list[Part | str]) -> str | None:
    """The text of a content that is nothing else, as nearly all are."""
    if isinstance(content, str):
        return content
    return _text(content[0]) if len(content) == 1 else None


def _text(part: Part | str) -> str | None:
    if isinstance(part, str):
        return part
    return part.text if _is_a(part, TEXT_PARTS) and isinstance(part.text, str) else None


def _is_a(part: Part | str, types: frozenset[str]) -> bool:
    return isinstance(part, Part) and isinstance(part.type, str) and part.type in types


def _without(text: str, begin: str, end: str) -> str:
    kept: list[str] = []
    at = 0
    while (start := text.find(begin, at)) >= 0 and (stop := text.find(end, start)) >= 0:
        kept.append(text[at:start])
        at = stop + len(end)
    return "".join([*kept, text[at:]])


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
