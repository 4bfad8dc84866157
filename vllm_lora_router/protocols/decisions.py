"""Questions about a state: /v1/systemone, and /v1/decisions of later releases."""

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.protocols.system_prompt import before
from vllm_lora_router.types import Mode, Query


def read(members: Members) -> tuple[Query, ...]:
    """The state that the questions are about: a text, or else its JSON."""
    raw = members.get("state", b"null")
    state = json_edit.read(raw)
    text = state if isinstance(state, str) else "" if state is None else bytes(raw).decode("utf-8", "replace")
    return (Query(text, (text,) if text else (), api="decisions"),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    own = members.get("instructions", b"null")
    members["instructions"] = json_edit.dump(prompt) if mode == "replace" else before(own, prompt)
    return True


# A label must be the answer's first token, so that such a request takes no reasoning.
DECISIONS = Shape("decisions", "state", read, write_system)
