"""OpenAI's Responses API: /v1/responses."""

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.protocols.system_prompt import before, into_system_message, without_system
from vllm_lora_router.protocols.user_text import messages, own_words, turns
from vllm_lora_router.types import Mode, Query


def read(members: Members) -> tuple[Query, ...]:
    """A string, or the items that are the user's messages; what tools gave back is not the user's word."""
    raw = members.get("input", b"null")
    if memoryview(raw)[:1] == b'"':
        text = json_edit.text(raw)
        said = () if text is None else (own_words(text),)
    else:
        said = turns(messages(raw))
    previous = json_edit.text(members.get("previous_response_id"))
    return (Query(said[-1] if said else "", said, api="responses", previous_response_id=previous),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Into `instructions`; where the client's stand in an item of `input` instead, into that."""
    instructions, given = members.get("instructions"), members.get("input", b"null")
    if mode == "replace":
        members["instructions"] = json_edit.dump(prompt)
        if "input" in members:
            members["input"] = without_system(given)
        return True
    written = None if json_edit.text(instructions) else into_system_message(given, prompt, mode, part="input_text")
    if written is not None:
        members["input"] = written
    else:
        members["instructions"] = before(instructions or b"null", prompt)
    return True


RESPONSES = Shape(
    "responses", "input", read, write_system, reasoning.within("reasoning"), id_prefix="resp_", id_member="request_id"
)
