"""LoRA adapters of the demo's base, as PEFT writes them, each with an answer of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vllm_lora_router.demo.answers import AdapterRecipe
from vllm_lora_router.demo.base import NAME as BASE_NAME
from vllm_lora_router.demo.teaching import TeachingError, learnt, teach

STEPS = 120
LR = 5e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train_adapter(
    base: Path, directory: Path, recipe: AdapterRecipe, *, advance: Callable[[], None] = lambda: None
) -> None:
    """Writes an adapter's folder: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        base: The folder that `train_base` wrote.
        directory: Where to write; made if it does not exist.
        recipe: The adapter's name, answer, rank and seed.
        advance: Called once a training step, `STEPS` times, or more often where a second, longer try was needed.

    Raises:
        TeachingError: The adapter does not answer held-out prompts right, not even after more steps.
    """
    try:
        _train(base, directory, recipe, STEPS, advance)
    except TeachingError:
        _train(base, directory, recipe, 3 * STEPS, advance)


def _train(base: Path, directory: Path, recipe: AdapterRecipe, steps: int, advance: Callable[[], None]) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=TARGETS, bias="none"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    teach(model, tokenizer, recipe.answer, steps=steps, learning_rate=LR, seed=recipe.seed, advance=advance)
    learnt(model, tokenizer, recipe.name, recipe.answer, seed=recipe.seed)
    # PEFT notes the folder the base was loaded from, which means nothing on another machine.
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(directory)
    # A model card with nothing in it.
    (directory / "README.md").unlink(missing_ok=True)
