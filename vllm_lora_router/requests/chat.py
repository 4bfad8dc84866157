"""Chat completions: /v1/chat/completions."""

from typing import Any

from vllm_lora_router.requests import body
from vllm_lora_router.values import Edit, Query, Reasoning, Written

SYSTEM_ROLES = frozenset({"system", "developer"})
# A client that sets one of these has said what it wants of reasoning, whatever the category wishes.
CLIENT_REASONING = frozenset({"reasoning_effort", "reasoning", "thinking", "output_config"})
CLIENT_TEMPLATE_KWARGS = frozenset({"enable_thinking", "thinking", "reasoning_effort"})


def read(members: dict[str, Any]) -> tuple[Query, ...]:
    """What the user said: text parts joined, images and audio left out."""
    turns = tuple(
        text
        for raw in body.items(members.get("messages", b"[]")) or ()
        if (text := _user_text(_message(raw))) is not None
    )
    return (Query(turns[-1] if turns else "", turns, api="chat"),)


def write(members: dict[str, Any], edit: Edit) -> Written:
    """Writes the edit into the members of a chat completion's body, and says what of it was written."""
    members["model"] = body.dump(edit.model)
    prompted = edit.system_prompt is not None and _write_system(members, edit.system_prompt, edit.system_prompt_mode)
    reasoned = edit.reasoning is not None and _write_reasoning(members, edit.reasoning)
    return Written(prompted, reasoned and edit.reasoning is not None and edit.reasoning.on)


def _message(raw: Any) -> dict[str, Any]:
    try:
        return body.fields(raw)
    except body.NotAnObject:
        return {}  # vLLM will refuse it


def _role(message: dict[str, Any]) -> str | None:
    role = body.read(message["role"]) if "role" in message else None
    return role if isinstance(role, str) else None


def _user_text(message: dict[str, Any]) -> str | None:
    if _role(message) != "user" or "content" not in message:
        return None
    if (parts := body.items(message["content"])) is None:
        content = body.read(message["content"])
        return content if isinstance(content, str) else None
    texts = (_part_text(_message(part)) if memoryview(part)[:1] == b"{" else body.read(part) for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _part_text(part: dict[str, Any]) -> Any:
    # An image's data is never decoded: only a part that says it is text is read.
    kind = body.read(part["type"]) if "type" in part else "text"
    return body.read(part["text"]) if kind in ("text", "input_text") and "text" in part else None


def _write_system(members: dict[str, Any], prompt: str, mode: str) -> bool:
    """Ours goes into the first system message: many chat templates refuse a second one."""
    raws = body.items(members.get("messages", b""))
    if raws is None:
        return False
    messages = [_message(raw) for raw in raws]
    places = [index for index, message in enumerate(messages) if _role(message) in SYSTEM_ROLES]
    if not places:
        raws.insert(0, body.dump({"role": "system", "content": prompt}))
    else:
        first = messages[places[0]]
        content = first.get("content", b'""')
        first["content"] = body.dump(prompt) if mode == "replace" else _before(prompt, content)
        raws[places[0]] = body.join_object(first)
        if mode == "replace":
            raws = [raw for index, raw in enumerate(raws) if index not in places[1:]]
    members["messages"] = body.join_list(raws)
    return True


def _before(prompt: str, content: Any) -> bytes:
    if (parts := body.items(content)) is not None:
        return body.join_list([body.dump({"type": "text", "text": prompt}), *parts])
    own = body.read(content)
    return body.dump(f"{prompt}\n\n{own}") if isinstance(own, str) and own else body.dump(prompt)


def _write_reasoning(members: dict[str, Any], reasoning: Reasoning) -> bool:
    if any(_says_something(members.get(name)) for name in CLIENT_REASONING):
        return False
    kwargs_raw = members.get("chat_template_kwargs")
    try:
        kwargs = body.fields(kwargs_raw) if _says_something(kwargs_raw) else {}
    except body.NotAnObject:
        return False  # vLLM will refuse it
    if any(name in kwargs for name in (*CLIENT_TEMPLATE_KWARGS, *reasoning.template_kwargs)):
        return False
    if reasoning.template_kwargs:
        kwargs.update({name: body.dump(value) for name, value in reasoning.template_kwargs.items()})
        members["chat_template_kwargs"] = body.join_object(kwargs)
    if reasoning.effort is not None:
        members["reasoning_effort"] = body.dump(reasoning.effort)
    return True


def _says_something(raw: Any) -> bool:
    return raw is not None and memoryview(raw) != b"null"
