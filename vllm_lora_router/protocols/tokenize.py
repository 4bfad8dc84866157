"""/tokenize with a chat's messages, which has no place of its own for an effort."""

from vllm_lora_router.protocols import chat, reasoning
from vllm_lora_router.protocols.protocol import Shape

TOKENIZE = Shape("tokenize", "messages", chat.read, chat.write_system, reasoning.into_template)
