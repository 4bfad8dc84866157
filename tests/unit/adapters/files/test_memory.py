"""Memory estimates of adapters, slots and the base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.memory import adapter_bytes, base_bytes, slot_bytes
from vllm_lora_router.adapters.files.validation import validate_adapter

if TYPE_CHECKING:
    from .conftest import Arrays, Files

# Inputs and outputs of q, k, gate and down in both layers, then of embedding and head.
LAYERS = 2 * ((16 + 16) + (16 + 8) + (16 + 32) + (32 + 16))
EMBEDDING = HEAD = 48 + 16
TOTAL = LAYERS + EMBEDDING + HEAD


def test_slot_covers_inputs_and_outputs_of_all_linear_layers_embedding_and_head(
    files: Files,
) -> None:
    base = files.base()
    assert slot_bytes(base, rank=1) == 2 * TOTAL
    assert slot_bytes(base, rank=16) == 16 * 2 * TOTAL
    assert slot_bytes(base, rank=16, element_bytes=4) == 16 * 4 * TOTAL


def test_slot_counts_a_head_that_shares_the_embeddings_weight(files: Files) -> None:
    assert slot_bytes(files.base(files.base_weights(head=False)), rank=1) == 2 * TOTAL


@pytest.mark.parametrize(
    "module",
    [
        "model.visual.blocks.0.attn.qkv",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "multi_modal_projector.linear_1",
        "mtp.layers.0.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",  # the base has layers 0 and 1
    ],
)
def test_slot_excludes_modules_outside_the_language_model(files: Files, module: str) -> None:
    base = files.base({**files.base_weights(), f"{module}.weight": np.zeros((16, 16), np.float16)})
    assert slot_bytes(base, rank=1) == 2 * TOTAL


def test_slot_covers_all_experts_and_their_gate(files: Files) -> None:
    weights = files.base_weights()
    weights["model.layers.0.mlp.gate.weight"] = np.zeros((4, 16), np.float16)
    for expert in range(4):
        weights[f"model.layers.0.mlp.experts.{expert}.up_proj.weight"] = np.zeros((8, 16), np.float16)
    assert slot_bytes(files.base(weights), rank=1) == 2 * (TOTAL + (16 + 4) + 4 * (16 + 8))


@pytest.mark.parametrize(
    "unknown",
    [
        {"model.layers.0.self_attn.o_proj.qweight": np.zeros((2, 16), np.int32)},
        {"model.layers.0.mlp.experts.gate_up_proj": np.zeros((4, 16, 16), np.float16)},
    ],
    ids=["packed", "stacked experts"],
)
def test_slot_is_unknown_if_the_base_has_no_readable_shapes(files: Files, unknown: Arrays) -> None:
    assert slot_bytes(files.base({**files.base_weights(), **unknown}), rank=1) is None


def test_slot_is_unknown_if_only_the_embedding_has_a_shape(files: Files) -> None:
    weights = {
        "word_embeddings.weight": np.zeros((48, 16), np.float16),
        "h.0.self_attention.query_key_value.qweight": np.zeros((2, 16), np.int32),
    }
    assert slot_bytes(files.base(weights), rank=1) is None


def test_slot_is_unknown_if_the_base_is_not_completely_on_disk(files: Files) -> None:
    assert slot_bytes(BaseModel("acme/elsewhere"), rank=1) is None
    folder = files.base_folder(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert slot_bytes(BaseModel.find(str(folder)), rank=1) is None


def test_adapter_takes_two_bytes_per_element_whatever_its_files_dtype_is(files: Files) -> None:
    adapter = validate_adapter("medical", files.adapter(), files.base())  # float32 in the file
    assert adapter_bytes(adapter) == 2 * 4 * LAYERS  # rank 4
    assert adapter_bytes(adapter, element_bytes=4) == 4 * 4 * LAYERS


def test_copy_of_the_bases_embedding_is_not_counted(files: Files) -> None:
    copy = {"base_model.model.model.embed_tokens.base_layer.weight": np.zeros((48, 16), np.float32)}
    adapter = validate_adapter("medical", files.adapter({**files.adapter_weights(), **copy}), files.base())
    assert adapter_bytes(adapter) == 2 * 4 * LAYERS


@pytest.mark.parametrize("shards", [1, 3])
def test_base_takes_the_size_of_its_weight_files(files: Files, shards: int) -> None:
    folder = files.base_folder(shards=shards)
    size_bytes = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    save_file({"copy": np.zeros(64, np.float16)}, folder / "consolidated.safetensors")
    assert base_bytes(BaseModel.find(str(folder))) == size_bytes


def test_base_size_is_unknown_if_a_file_is_missing(files: Files) -> None:
    assert base_bytes(BaseModel("acme/elsewhere")) is None
    folder = files.base_folder(shards=2)
    base = BaseModel.find(str(folder))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert base_bytes(base) is None
