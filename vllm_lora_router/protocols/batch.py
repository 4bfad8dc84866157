"""Several conversations for one model: /v1/chat/completions/batch."""

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.protocols.system_prompt import into_messages
from vllm_lora_router.protocols.user_text import conversations, turns
from vllm_lora_router.types import Mode, Query


def read(members: Members) -> tuple[Query, ...]:
    """One query a conversation."""
    said = [turns(one) for one in conversations(members.get("messages", b"[]"))] or [()]
    return tuple(Query(one[-1] if one else "", one, api="batch") for one in said)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Into every conversation, or into none."""
    written = [into_messages(raw, prompt, mode) for raw in json_edit.items(members.get("messages", b"null")) or ()]
    if not written or any(one is None for one in written):
        return False
    members["messages"] = json_edit.join_list(written)
    return True


BATCH = Shape("batch", "messages", read, write_system, reasoning.at_top, id_prefix="chatcmpl-")
