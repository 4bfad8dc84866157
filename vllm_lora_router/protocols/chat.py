"""Chat completions: /v1/chat/completions, and what else has their messages."""

from vllm_lora_router.protocols import reasoning
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.protocols.system_prompt import into_messages
from vllm_lora_router.protocols.user_text import messages, turns
from vllm_lora_router.types import Mode, Query


def read(members: Members) -> tuple[Query, ...]:
    """What the user said: text parts joined, images and audio left out."""
    said = turns(messages(members.get("messages", b"[]")))
    return (Query(said[-1] if said else "", said, api="chat"),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    written = into_messages(members.get("messages", b"null"), prompt, mode)
    if written is not None:
        members["messages"] = written
    return written is not None


CHAT = Shape("chat", "messages", read, write_system, reasoning.at_top, id_prefix="chatcmpl-")

# /cohere/v2/chat: an effort has no place there.
COHERE = Shape("cohere", "messages", read, write_system, reasoning.nowhere)
