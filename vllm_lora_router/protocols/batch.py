"""/v1/chat/completions/batch: several conversations for one model."""

from vllm_lora_router.protocols import json_edit, reasoning
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.system_prompt import write_into_messages
from vllm_lora_router.protocols.user_text import read_conversations, user_turns
from vllm_lora_router.types import Mode, Query


def read_queries(members: Members) -> tuple[Query, ...]:
    """Return one query per conversation."""
    conversations = read_conversations(members.get("messages", b"[]"))
    turns_by_conversation = [user_turns(conversation) for conversation in conversations] or [()]
    return tuple(Query(turns[-1] if turns else "", turns, api="batch") for turns in turns_by_conversation)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Write the prompt into all conversations, or into none if one of them has no place for it."""
    conversations = json_edit.list_items(members.get("messages", b"null")) or ()
    edited = [write_into_messages(raw, prompt, mode) for raw in conversations]
    if not edited or any(conversation is None for conversation in edited):
        return False
    members["messages"] = json_edit.join_list(edited)
    return True


BATCH = ApiProtocol(
    "batch", "messages", read_queries, write_system, reasoning.write_top_level_effort, id_prefix="chatcmpl-"
)
