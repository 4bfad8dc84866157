"""Several conversations for one model: /v1/chat/completions/batch."""

from vllm_lora_router.requests import body, reasoning
from vllm_lora_router.requests.shape import Members, Shape
from vllm_lora_router.requests.system import into_messages
from vllm_lora_router.requests.words import conversations, turns
from vllm_lora_router.values import Mode, Query


def read(members: Members) -> tuple[Query, ...]:
    """One query a conversation."""
    said = [turns(one) for one in conversations(members.get("messages", b"[]"))] or [()]
    return tuple(Query(one[-1] if one else "", one, api="batch") for one in said)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Into every conversation, or into none."""
    written = [into_messages(raw, prompt, mode) for raw in body.items(members.get("messages", b"null")) or ()]
    if not written or any(one is None for one in written):
        return False
    members["messages"] = body.join_list(written)
    return True


BATCH = Shape("batch", "messages", read, write_system, reasoning.at_top, id_prefix="chatcmpl-")
