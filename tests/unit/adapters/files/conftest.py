"""Small base models and adapters in the file formats of transformers and PEFT."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vllm_lora_router.adapters.files.base_model import BaseModel

Arrays = dict[str, np.ndarray]

HIDDEN = 16
VOCABULARY = 48


def linear_shapes(hidden: int) -> dict[str, tuple[int, int]]:
    # (outputs, inputs); k_proj is narrower, as with grouped-query attention
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "mlp.gate_proj": (2 * hidden, hidden),
        "mlp.down_proj": (hidden, 2 * hidden),
    }


@dataclass(frozen=True)
class Files:
    """Writes base models of two layers of width 16, and adapters of rank 4 for them, into one folder."""

    root: Path

    def base_weights(self, prefix: str = "model.", head: bool = True) -> Arrays:
        weights: Arrays = {f"{prefix}embed_tokens.weight": np.zeros((VOCABULARY, HIDDEN), np.float16)}
        for layer in range(2):
            weights[f"{prefix}layers.{layer}.input_layernorm.weight"] = np.zeros(HIDDEN, np.float16)
            for module, shape in linear_shapes(HIDDEN).items():
                weights[f"{prefix}layers.{layer}.{module}.weight"] = np.zeros(shape, np.float16)
        if head:
            weights["lm_head.weight"] = np.zeros((VOCABULARY, HIDDEN), np.float16)
        return weights

    def base_folder(
        self, weights: Arrays | None = None, config: Mapping[str, Any] | None = None, shards: int = 1
    ) -> Path:
        folder = self.root / "tiny"
        folder.mkdir()
        settings = {"num_hidden_layers": 2, "hidden_size": HIDDEN, **(config or {})}
        (folder / "config.json").write_text(json.dumps(settings))
        weights = self.base_weights() if weights is None else weights
        if shards == 1:
            save_file(weights, folder / "model.safetensors")
            return folder
        weight_map: dict[str, str] = {}
        for number in range(shards):
            name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = dict(list(weights.items())[number::shards])
            save_file(part, folder / name)
            weight_map |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    def base(self, weights: Arrays | None = None, config: Mapping[str, Any] | None = None) -> BaseModel:
        return BaseModel.find(str(self.base_folder(weights, config)))

    def lora(self, module: str, outputs: int, inputs: int, rank: int = 4) -> Arrays:
        """Return the two tensors of one module under PEFT's names."""
        return {
            f"base_model.model.{module}.lora_A.weight": np.zeros((rank, inputs), np.float32),
            f"base_model.model.{module}.lora_B.weight": np.zeros((outputs, rank), np.float32),
        }

    def adapter_weights(self, hidden: int = HIDDEN, layers: int = 2, prefix: str = "model.", rank: int = 4) -> Arrays:
        weights: Arrays = {}
        for layer in range(layers):
            for module, (outputs, inputs) in linear_shapes(hidden).items():
                weights |= self.lora(f"{prefix}layers.{layer}.{module}", outputs, inputs, rank)
        return weights

    def adapter(self, weights: Arrays | None = None, without: str = "", **settings: Any) -> Path:
        """Write an adapter whose adapter_config.json has `settings` in addition, and no key `without`."""
        folder = self.root / "medical"
        folder.mkdir()
        config: dict[str, object] = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj", "gate_proj", "down_proj"],
            "bias": "none",
            "modules_to_save": None,
            "init_lora_weights": True,
            "base_model_name_or_path": "acme/other",
            **settings,
        }
        config.pop(without, None)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(self.adapter_weights() if weights is None else weights, folder / "adapter_model.safetensors")
        return folder


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
