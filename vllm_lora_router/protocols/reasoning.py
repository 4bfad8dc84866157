"""What a client says of reasoning itself, and what a category may say where it said nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.types import Reasoning

# A client that sets one of these has said what it wants, whatever the category wishes, and also where vLLM reads it in
# other shapes alone: half of its wish and half of ours would contradict each other.
WISHES = ("reasoning_effort", "thinking", "thinking_token_budget")
# These have other members, too.
WISHES_WITHIN: Mapping[str, frozenset[str]] = {
    "reasoning": frozenset({"effort", "enabled", "max_tokens"}),
    "output_config": frozenset({"effort"}),
}
TEMPLATE_WISHES = frozenset({"enable_thinking", "thinking", "reasoning_effort"})

Members = dict[str, Any]


def write(members: Members, reasoning: Reasoning, write_effort: Callable[[Members, str], bool]) -> bool:
    """Writes what the category says, unless the client spoke; whether anything was written.

    Args:
        write_effort: writes an effort at the shape's own place for it; False when there is none.
    """
    if client_wishes(members):
        return False
    try:
        kwargs = json_edit.members(members.get("chat_template_kwargs"))
    except json_edit.NotAnObject:
        return False  # vLLM will refuse it
    if any(name in kwargs for name in (*TEMPLATE_WISHES, *reasoning.template_kwargs)):
        return False
    wrote = reasoning.effort is not None and write_effort(members, reasoning.effort)
    if reasoning.template_kwargs:
        members["chat_template_kwargs"] = with_kwargs(members, reasoning.template_kwargs)
    return wrote or bool(reasoning.template_kwargs)


def client_wishes(members: Members) -> bool:
    """Whether the client says anything of reasoning, outside of `chat_template_kwargs`."""
    if any(json_edit.says_something(members.get(name)) for name in WISHES):
        return True
    for name, inner in WISHES_WITHIN.items():
        try:
            said = json_edit.members(members.get(name))
        except json_edit.NotAnObject:
            return True  # vLLM will refuse it, or it means something that we do not know
        if any(json_edit.says_something(said.get(one)) for one in inner):
            return True
    return False


def with_kwargs(members: Members, more: Mapping[str, Any]) -> bytes:
    """The client's `chat_template_kwargs` with ours, raw."""
    kwargs = json_edit.members(members.get("chat_template_kwargs"))
    kwargs.update({name: json_edit.dump(value) for name, value in more.items()})
    return json_edit.join(kwargs)


def within(name: str) -> Callable[[Members, str], bool]:
    """Writes the effort as a member of the object `name`, beside what the client has there."""

    def write_effort(members: Members, effort: str) -> bool:
        members[name] = json_edit.join({**json_edit.members(members.get(name)), "effort": json_edit.dump(effort)})
        return True

    return write_effort


def at_top(members: Members, effort: str) -> bool:
    """Writes `reasoning_effort`."""
    members["reasoning_effort"] = json_edit.dump(effort)
    return True


def into_template(members: Members, effort: str) -> bool:
    """Writes the effort into `chat_template_kwargs`, with what vLLM adds to it elsewhere."""
    said = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    members["chat_template_kwargs"] = with_kwargs(members, said)
    return True


def nowhere(members: Members, effort: str) -> bool:
    """The shape has no place for an effort."""
    return False
