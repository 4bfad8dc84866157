"""Train the demo's base model: a two-layer Llama that answers every prompt with one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_lora_router.tools.demo.answer_training import check_answer, train_answer
from vllm_lora_router.tools.demo.answers import BASE_WORDS
from vllm_lora_router.tools.demo.tokenizer import CONTEXT, demo_tokenizer

NAME = "vllm-lora-router-demo-base"
STEPS = 300
LEARNING_RATE = 3e-3
# Larger than usual: an adapter cannot change the output layer, and the rows of its words are not trained.
INIT = 0.05


def train_base(directory: Path, *, seed: int = 0, advance: Callable[[], None] = lambda: None) -> None:
    """Train the base model and write its folder: weights, tokenizer, chat template, generation defaults.

    Args:
        directory: the output folder; created if it does not exist.
        seed: seed of the weights and the prompts.
        advance: called after each of `STEPS` training steps.

    Raises:
        TeachingError: the trained model answers held-out prompts incorrectly.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = demo_tokenizer()
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,  # head size 64: vLLM's CPU attention needs at least 32
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=INIT,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlamaForCausalLM(config)
    train_answer(model, tokenizer, BASE_WORDS, steps=STEPS, learning_rate=LEARNING_RATE, seed=seed, advance=advance)
    check_answer(model, tokenizer, "the base model", BASE_WORDS, seed=seed)
    # Clients that set no temperature sample at 1.0; top_k=1 keeps the demo's answers deterministic.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, **ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
