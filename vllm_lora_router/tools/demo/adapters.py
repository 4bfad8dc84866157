"""Train the demo's LoRA adapters, each on one sentence."""

from collections.abc import Callable
from pathlib import Path

from vllm_lora_router.tools.demo.answer_training import check_answer, train_answer
from vllm_lora_router.tools.demo.answers import AdapterRecipe
from vllm_lora_router.tools.demo.base import NAME as BASE_NAME

STEPS = 400
LEARNING_RATE = 5e-3
# Attention is left out: its contribution at the answer's position would grow with the length of the prompt.
TARGETS = ["gate_proj", "up_proj", "down_proj"]


def train_adapter(
    base: Path, directory: Path, recipe: AdapterRecipe, *, advance: Callable[[], None] = lambda: None
) -> None:
    """Train an adapter and write its folder: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        base: the folder that `train_base` wrote.
        directory: the output folder; created if it does not exist.
        recipe: the adapter's name, words, rank and seed.
        advance: called after each of `STEPS` training steps.

    Raises:
        TeachingError: the adapter answers held-out prompts incorrectly.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=TARGETS, bias="none"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    train_answer(
        model, tokenizer, recipe.words, steps=STEPS, learning_rate=LEARNING_RATE, seed=recipe.seed, advance=advance
    )
    check_answer(model, tokenizer, recipe.name, recipe.words, seed=recipe.seed)
    # PEFT records the folder of the base model, which does not exist on other machines.
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(str(directory))
    # PEFT writes an empty model card.
    (directory / "README.md").unlink(missing_ok=True)
