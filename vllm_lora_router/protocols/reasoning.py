"""Write a category's reasoning settings into a request, unless the client sets reasoning itself."""

from collections.abc import Callable, Mapping
from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.types import Reasoning

# A client that sets one of these members decides on reasoning, also if vLLM reads the member in other APIs only. Mixing
# the client's settings with the category's would give contradictory requests.
CLIENT_REASONING_MEMBERS = ("reasoning_effort", "thinking", "thinking_token_budget")
# These members also have submembers without any effect on reasoning.
CLIENT_REASONING_SUBMEMBERS: Mapping[str, frozenset[str]] = {
    "reasoning": frozenset({"effort", "enabled", "max_tokens"}),
    "output_config": frozenset({"effort"}),
}
CLIENT_TEMPLATE_KWARGS = frozenset({"enable_thinking", "thinking", "reasoning_effort"})

Members = dict[str, Any]


def write(members: Members, reasoning: Reasoning, write_effort: Callable[[Members, str], bool]) -> bool:
    """Write a category's reasoning settings. Return whether anything was written.

    Nothing is written if the client sets reasoning itself.

    Args:
        write_effort: writes an effort in the way of the API; returns False if the API has no place for it.
    """
    if client_sets_reasoning(members):
        return False
    try:
        kwargs = json_edit.optional_members(members.get("chat_template_kwargs"))
    except json_edit.NotAnObjectError:
        return False  # vLLM will refuse the request
    if any(name in kwargs for name in (*CLIENT_TEMPLATE_KWARGS, *reasoning.template_kwargs)):
        return False
    wrote_effort = reasoning.effort is not None and write_effort(members, reasoning.effort)
    if reasoning.template_kwargs:
        members["chat_template_kwargs"] = merge_template_kwargs(members, reasoning.template_kwargs)
    return wrote_effort or bool(reasoning.template_kwargs)


def client_sets_reasoning(members: Members) -> bool:
    """Return whether the client sets reasoning anywhere outside of `chat_template_kwargs`."""
    if any(json_edit.has_value(members.get(name)) for name in CLIENT_REASONING_MEMBERS):
        return True
    for name, submembers in CLIENT_REASONING_SUBMEMBERS.items():
        try:
            value = json_edit.optional_members(members.get(name))
        except json_edit.NotAnObjectError:
            return True  # vLLM will refuse the request, or the member has a meaning that is unknown here
        if any(json_edit.has_value(value.get(submember)) for submember in submembers):
            return True
    return False


def merge_template_kwargs(members: Members, additions: Mapping[str, Any]) -> bytes:
    """Return the client's `chat_template_kwargs` with additions, as raw JSON."""
    kwargs = json_edit.optional_members(members.get("chat_template_kwargs"))
    kwargs.update({name: json_edit.encode(value) for name, value in additions.items()})
    return json_edit.join_members(kwargs)


def effort_writer(member: str) -> Callable[[Members, str], bool]:
    """Return a function that writes the effort into the object `member` and keeps the client's other settings in it."""

    def write_effort(members: Members, effort: str) -> bool:
        settings = {**json_edit.optional_members(members.get(member)), "effort": json_edit.encode(effort)}
        members[member] = json_edit.join_members(settings)
        return True

    return write_effort


def write_top_level_effort(members: Members, effort: str) -> bool:
    """Write the effort into `reasoning_effort`."""
    members["reasoning_effort"] = json_edit.encode(effort)
    return True


def write_template_effort(members: Members, effort: str) -> bool:
    """Write the effort into `chat_template_kwargs`, with the `enable_thinking` that vLLM adds to it in other APIs."""
    kwargs = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    members["chat_template_kwargs"] = merge_template_kwargs(members, kwargs)
    return True


def write_no_effort(members: Members, effort: str) -> bool:
    """Write nothing, for APIs that have no place for an effort."""
    return False
