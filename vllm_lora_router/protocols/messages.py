"""Anthropic's Messages API: /v1/messages and its count_tokens."""

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.system_prompt import SEPARATOR, prepend_prompt
from vllm_lora_router.protocols.user_text import read_messages, user_turns
from vllm_lora_router.types import Mode, Query

_write_output_config = reasoning.effort_writer("output_config")


def read_queries(members: Members) -> tuple[Query, ...]:
    """Return the text blocks of the user's messages, without the tool results in them."""
    turns = user_turns(read_messages(members.get("messages", b"[]")))
    return (Query(turns[-1] if turns else "", turns, api="messages"),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Write the prompt into `system`, which is a string or a list of blocks.

    System messages in the conversation are not changed, because clients declare tools in them.
    """
    system = members.get("system", b"null")
    members["system"] = (
        json_edit.encode(prompt) if mode == "replace" else prepend_prompt(system, prompt, part_separator=SEPARATOR)
    )
    return True


def write_effort(members: Members, effort: str) -> bool:
    """Write the effort into `output_config`. Its lowest effort is "low"; for "none", `thinking` is disabled instead."""
    if effort == "none":
        members["thinking"] = json_edit.encode({"type": "disabled"})
        return True
    return _write_output_config(members, "low" if effort == "minimal" else effort)


MESSAGES = ApiProtocol("messages", "messages", read_queries, write_system, write_effort, id_prefix="chatcmpl-")
