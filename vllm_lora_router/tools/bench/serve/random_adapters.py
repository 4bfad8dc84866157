"""Write adapters with random weights for any base model: their cost does not depend on the weights."""

import json
from pathlib import Path


def write_adapter(base: Path, folder: Path, rank: int, seed: int) -> None:
    """Write an adapter of every layer's attention in PEFT's format, in bfloat16 if the base model is, else in float32.

    Its weights are small, so that answers hardly change, but no row is zero.

    Args:
        base: the folder of a model with Llama's names of attention modules.
        folder: the output folder.
        rank: the rank.
        seed: the random seed.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    shapes = {  # outputs, inputs
        "q_proj": (heads * head, width),
        "k_proj": (groups * head, width),
        "v_proj": (groups * head, width),
        "o_proj": (width, heads * head),
    }
    dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32
    chance = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.num_hidden_layers):
        for module, (outputs, inputs) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = (torch.randn(rank, inputs, generator=chance) * 1e-2).to(dtype)
            tensors[f"{name}.lora_B.weight"] = (torch.randn(outputs, rank, generator=chance) * 1e-3).to(dtype)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": list(shapes),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2))
