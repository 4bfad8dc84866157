"""Questions about a state: /v1/systemone, and /v1/decisions of later releases."""

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.system_prompt import prepend_prompt
from vllm_lora_router.types import Mode, Query


def read_queries(members: Members) -> tuple[Query, ...]:
    """Return the state that the questions are about: its text, or its JSON if it is not a string."""
    raw = members.get("state", b"null")
    state = json_edit.decode(raw)
    text = state if isinstance(state, str) else "" if state is None else bytes(raw).decode("utf-8", "replace")
    return (Query(text, (text,) if text else (), api="decisions"),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Write the prompt into `instructions`."""
    instructions = members.get("instructions", b"null")
    members["instructions"] = json_edit.encode(prompt) if mode == "replace" else prepend_prompt(instructions, prompt)
    return True


# No reasoning is written: the first token of the answer must be a label.
DECISIONS = ApiProtocol("decisions", "state", read_queries, write_system)
