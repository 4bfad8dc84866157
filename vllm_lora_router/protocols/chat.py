"""/v1/chat/completions, and other APIs with the same messages: /cohere/v2/chat and /tokenize."""

from vllm_lora_router.protocols import reasoning
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.protocols.system_prompt import write_into_messages
from vllm_lora_router.protocols.user_text import read_messages, user_turns
from vllm_lora_router.types import Mode, Query


def read_queries(members: Members) -> tuple[Query, ...]:
    """Return the user text: text parts are joined, images and audio are left out."""
    turns = user_turns(read_messages(members.get("messages", b"[]")))
    return (Query(turns[-1] if turns else "", turns, api="chat"),)


def write_system(members: Members, prompt: str, mode: Mode) -> bool:
    """Write the prompt into `messages`. Return False if it is not a list."""
    edited = write_into_messages(members.get("messages", b"null"), prompt, mode)
    if edited is not None:
        members["messages"] = edited
    return edited is not None


CHAT = ApiProtocol(
    "chat", "messages", read_queries, write_system, reasoning.write_top_level_effort, id_prefix="chatcmpl-"
)

# /cohere/v2/chat has no member for an effort.
COHERE = ApiProtocol("cohere", "messages", read_queries, write_system, reasoning.write_no_effort)

# /tokenize with messages. It has no member for an effort, so the effort goes into the chat template.
TOKENIZE = ApiProtocol("tokenize", "messages", read_queries, write_system, reasoning.write_template_effort)
