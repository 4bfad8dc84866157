"""OpenAI's Responses API: /v1/responses."""

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.system_prompt import prepend_prompt, remove_system_messages, write_into_system_message
from vllm_lora_router.protocols.user_text import read_messages, strip_agent_notes, user_turns
from vllm_lora_router.types import Mode, Query


def read_queries(members: Members) -> tuple[Query, ...]:
    """Return the user text of `input`: the string, or the items that are messages of the user."""
    raw = members.get("input", b"null")
    if memoryview(raw)[:1] == b'"':
        text = json_edit.string_value(raw)
        turns = () if text is None else (strip_agent_notes(text),)
    else:
        turns = user_turns(read_messages(raw))
    previous = json_edit.string_value(members.get("previous_response_id"))
    return (Query(turns[-1] if turns else "", turns, api="responses", previous_response_id=previous),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Write the prompt into `instructions`, or into the client's system message in `input` if it has one instead."""
    instructions, input_ = members.get("instructions"), members.get("input", b"null")
    if mode == "replace":
        members["instructions"] = json_edit.encode(prompt)
        if "input" in members:
            members["input"] = remove_system_messages(input_)
        return True
    edited_input = None
    if not json_edit.string_value(instructions):
        edited_input = write_into_system_message(input_, prompt, mode, part_type="input_text")
    if edited_input is not None:
        members["input"] = edited_input
    else:
        members["instructions"] = prepend_prompt(instructions or b"null", prompt)
    return True


RESPONSES = ApiProtocol(
    "responses",
    "input",
    read_queries,
    write_system,
    reasoning.effort_writer("reasoning"),
    id_prefix="resp_",
    id_member="request_id",
)
