"""Reasoning families that need no definition: what each model family's chat template or parser listens to."""

from collections.abc import Mapping

from vllm_lora_router.config.schema import ReasoningFamily

REASONING_FAMILIES: Mapping[str, ReasoningFamily] = {
    "qwen3": ReasoningFamily(type="chat_template_kwargs", parameter="enable_thinking"),
    "deepseek": ReasoningFamily(type="chat_template_kwargs", parameter="thinking"),
    "gpt-oss": ReasoningFamily(type="reasoning_effort", parameter="reasoning_effort"),
    "gpt": ReasoningFamily(type="reasoning_effort", parameter="reasoning_effort"),
}
