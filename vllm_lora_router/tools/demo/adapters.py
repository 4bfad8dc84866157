"""LoRA adapters of the demo's base, each taught a sentence of its own."""

from collections.abc import Callable
from pathlib import Path

from vllm_lora_router.tools.demo.answers import AdapterRecipe
from vllm_lora_router.tools.demo.base import NAME as BASE_NAME
from vllm_lora_router.tools.demo.teaching import check, teach

STEPS = 400
LEARNING_RATE = 5e-3
# Not attention: what it adds to the answer's place would grow with the length of the prompt.
TARGETS = ["gate_proj", "up_proj", "down_proj"]


def train_adapter(
    base: Path, directory: Path, recipe: AdapterRecipe, *, advance: Callable[[], None] = lambda: None
) -> None:
    """Writes an adapter's folder: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        base: the folder that `train_base` wrote.
        directory: where to write; made if it does not exist.
        recipe: the adapter's name, words, rank and seed.
        advance: called once a training step, `STEPS` times.

    Raises:
        TeachingError: the adapter does not answer held-out prompts right.
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
    teach(model, tokenizer, recipe.words, steps=STEPS, learning_rate=LEARNING_RATE, seed=recipe.seed, advance=advance)
    check(model, tokenizer, recipe.name, recipe.words, seed=recipe.seed)
    # PEFT notes the folder the base was loaded from, which means nothing on another machine.
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(str(directory))
    # A model card with nothing in it.
    (directory / "README.md").unlink(missing_ok=True)
