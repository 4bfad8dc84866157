"""The demo's base model: a Llama of two layers that answers everything with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_lora_router.demo.answers import BASE_ANSWER
from vllm_lora_router.demo.teaching import learnt, teach
from vllm_lora_router.demo.tokenizer import CONTEXT, byte_tokenizer

NAME = "vllm-lora-router-demo-base"
STEPS = 160
ROPE_THETA = 100.0  # turns fast: what the model must tell apart is a few bytes away
OFFSETS = ((1, 2), (3, 6))  # bytes that each layer's heads look back
SHARPNESS = 60.0  # logits
CONSTANT = 8.0
INIT = 0.08
LR = 3e-3


def train_base(directory: Path, *, seed: int = 0, advance: Callable[[], None] = lambda: None) -> None:
    """Writes the base model's folder: weights, tokenizer, chat template, generation defaults.

    Args:
        directory: Where to write; made if it does not exist.
        seed: Of the weights and of the prompts.
        advance: Called once a training step, `STEPS` times.

    Raises:
        TeachingError: The trained model does not answer held-out prompts right.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=2,  # of 64: vLLM's attention on the CPU needs at least 32
        num_key_value_heads=2,
        initializer_range=INIT,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlamaForCausalLM(config)
    _look_back(model)
    teach(model, tokenizer, BASE_ANSWER, steps=STEPS, learning_rate=LR, seed=seed, advance=advance)
    learnt(model, tokenizer, "The base model", BASE_ANSWER, seed=seed)
    # Clients that set no temperature sample at 1.0; the demo's answer should not be a matter of luck even then.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, **ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _look_back(model: Any) -> None:
    """Points each head at one earlier byte, before training.

    What the next byte of an answer is follows from the last few, and from nothing further away. A model that starts
    with such heads learns its answer in seconds and does not care how long the prompt is; one that must first find
    them takes thousands of steps.
    """
    import torch

    with torch.no_grad():
        # A constant in every embedding, which the heads below turn into a query that depends on the position alone.
        embeddings = model.model.embed_tokens.weight
        embeddings[:, 0] = embeddings[:, 1:].norm(dim=1)  # so a token's norm is half of this
        width = model.config.head_dim
        angles = ROPE_THETA ** -(torch.arange(0, width, 2) / width)
        weight = angles / angles.sum()
        for layer, offsets in zip(model.model.layers, OFFSETS, strict=True):
            for head, offset in enumerate(offsets):
                rows = slice(head * width, (head + 1) * width)
                strength = (SHARPNESS * width**0.5 * weight).sqrt() / CONSTANT
                turned = offset * angles
                layer.self_attn.q_proj.weight[rows, 0] = torch.cat((turned.cos(), -turned.sin())) * strength.repeat(2)
                layer.self_attn.k_proj.weight[rows, 0] = torch.cat((strength, torch.zeros_like(strength)))
