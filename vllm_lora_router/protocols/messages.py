"""Anthropic's Messages API: /v1/messages and its count_tokens."""

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.protocols.system_prompt import BETWEEN, before
from vllm_lora_router.protocols.user_text import messages, turns
from vllm_lora_router.types import Mode, Query

_write_output_config = reasoning.within("output_config")


def read(members: Members) -> tuple[Query, ...]:
    """The text blocks of the user's messages; tool results stand in them too, and are not the user's words."""
    said = turns(messages(members.get("messages", b"[]")))
    return (Query(said[-1] if said else "", said, api="messages"),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Into `system`, a string or blocks. System messages within the conversation stay: tools are declared in them."""
    own = members.get("system", b"null")
    members["system"] = json_edit.dump(prompt) if mode == "replace" else before(own, prompt, between_parts=BETWEEN)
    return True


def write_effort(members: Members, effort: str) -> bool:
    """Into `output_config`, which knows no effort below "low"; none at all is `thinking` that is disabled."""
    if effort == "none":
        members["thinking"] = json_edit.dump({"type": "disabled"})
        return True
    return _write_output_config(members, "low" if effort == "minimal" else effort)


MESSAGES = Shape("messages", "messages", read, write_system, write_effort, id_prefix="chatcmpl-")
