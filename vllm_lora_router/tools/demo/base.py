"""The demo's base model: a Llama of two layers that answers everything with one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_lora_router.tools.demo.answers import BASE_WORDS
from vllm_lora_router.tools.demo.teaching import check, teach
from vllm_lora_router.tools.demo.tokenizer import CONTEXT, demo_tokenizer

NAME = "vllm-lora-router-demo-base"
STEPS = 300
LEARNING_RATE = 3e-3
# Wider than usual: an adapter cannot move the output layer, whose rows for its words nobody taught to stand out.
INIT = 0.05


def train_base(directory: Path, *, seed: int = 0, advance: Callable[[], None] = lambda: None) -> None:
    """Writes the base model's folder: weights, tokenizer, chat template, generation defaults.

    Args:
        directory: where to write; made if it does not exist.
        seed: of the weights and of the prompts.
        advance: called once a training step, `STEPS` times.

    Raises:
        TeachingError: the trained model does not answer held-out prompts right.
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
        num_attention_heads=2,  # of 64: vLLM's attention on the CPU needs at least 32
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=INIT,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlamaForCausalLM(config)
    teach(model, tokenizer, BASE_WORDS, steps=STEPS, learning_rate=LEARNING_RATE, seed=seed, advance=advance)
    check(model, tokenizer, "the base model", BASE_WORDS, seed=seed)
    # Clients that set no temperature sample at 1.0; the demo's answer should not be a matter of luck even then.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, **ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
