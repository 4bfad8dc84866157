"""Comparing an adapter with the base model: accepted, refused with the reason, or not comparable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import AdapterError, validate_adapter

if TYPE_CHECKING:
    from .conftest import Files

UNKNOWN = BaseModel("acme/tiny")


def test_compatible_adapter_is_accepted_with_its_properties(files: Files) -> None:
    folder = files.adapter()
    adapter = validate_adapter("medical-lora", folder, files.base())
    assert (adapter.name, adapter.folder, adapter.rank, adapter.warnings) == ("medical-lora", folder, 4, ())
    assert adapter.size_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert adapter.target_modules == ("down_proj", "gate_proj", "k_proj", "q_proj")


@pytest.mark.parametrize("hidden", [8, 32])
def test_adapter_of_another_width_is_refused_with_an_example_and_its_origin(files: Files, hidden: int) -> None:
    base = files.base()
    with pytest.raises(AdapterError) as refused:
        validate_adapter("medical-lora", files.adapter(files.adapter_weights(hidden=hidden)), base)
    message = str(refused.value)
    expected = f"down_proj of layer 0 expects {2 * hidden} inputs and {hidden} outputs"
    assert f"{expected}, the base {base.name!r} has 32 and 16; gate_proj of layer 0 expects" in message
    assert "8 of 8 modules" in message
    assert (
        "was it trained on another base? base_model_name_or_path in its adapter_config.json is 'acme/other'" in message
    )
    assert len(refused.value.problems) == 1


def test_adapter_with_other_outputs_is_refused(files: Files) -> None:
    # more key heads than the base has
    weights = files.adapter_weights() | files.lora("model.layers.1.self_attn.k_proj", outputs=16, inputs=16)
    with pytest.raises(
        AdapterError, match=r"k_proj of layer 1 expects 16 outputs, the base '.*' has 8 \(1 of 8 modules"
    ):
        validate_adapter("medical-lora", files.adapter(weights), files.base())


def test_adapter_of_a_deeper_base_is_refused_with_the_number_of_layers(files: Files) -> None:
    with pytest.raises(AdapterError, match=r"of layer 2: the base '.*' has 2 layers \(0 to 1\).*\(4 of 12 modules"):
        validate_adapter("medical-lora", files.adapter(files.adapter_weights(layers=3)), files.base())


def test_adapter_of_another_architecture_is_refused(files: Files) -> None:
    weights = files.lora("model.layers.0.mlp.fc1", outputs=32, inputs=16)
    with pytest.raises(AdapterError, match=r"fc1 of layer 0: the base '.*' has no 'model.layers.0.mlp.fc1'"):
        validate_adapter("medical-lora", files.adapter(weights), files.base())


def test_missing_base_files_give_a_warning_that_nothing_was_compared(files: Files) -> None:
    adapter = validate_adapter("medical-lora", files.adapter(files.adapter_weights(hidden=64, layers=9)), UNKNOWN)
    assert adapter.warnings == ("not compared with the base 'acme/tiny': its weights are not on disk as safetensors",)


def test_other_prefix_of_the_same_layers_is_accepted(files: Files) -> None:
    # a multimodal base, saved by an older transformers than the adapter
    base = files.base(files.base_weights(prefix="language_model.model.", head=False))
    folder = files.adapter(files.adapter_weights(prefix="model.language_model."))
    adapter = validate_adapter("medical-lora", folder, base)
    assert adapter.warnings == ()


def test_other_prefix_does_not_hide_another_width(files: Files) -> None:
    base = files.base(files.base_weights(prefix="language_model.model.", head=False))
    weights = files.adapter_weights(hidden=8, prefix="model.language_model.")
    with pytest.raises(AdapterError, match="8 of 8 modules do not fit"):
        validate_adapter("medical-lora", files.adapter(weights), base)


def test_text_adapter_is_accepted_by_base_with_vision_layers(files: Files) -> None:
    vision = {"vision_tower.encoder.layers.0.self_attn.q_proj.weight": np.zeros((6, 6), np.float16)}
    base = files.base(vision | files.base_weights(prefix="language_model.model.", head=False))
    validate_adapter("medical-lora", files.adapter(files.adapter_weights(prefix="model.language_model.")), base)


def test_exact_name_takes_precedence_over_a_vision_layer_that_would_fit(files: Files) -> None:
    vision = {"vision_tower.encoder.layers.0.self_attn.q_proj.weight": np.zeros((8, 8), np.float16)}
    weights = files.lora("model.layers.0.self_attn.q_proj", outputs=8, inputs=8)
    with pytest.raises(AdapterError, match="q_proj of layer 0 expects 8 inputs"):
        validate_adapter("medical-lora", files.adapter(weights), files.base(vision | files.base_weights()))


def test_quantized_base_is_compared_by_name_with_a_warning(files: Files) -> None:
    packed = {
        f"model.layers.0.self_attn.q_proj.{part}": np.zeros((2, 16), np.int32)
        for part in ("qweight", "qzeros", "scales")
    } | {"model.layers.1.self_attn.q_proj.weight": np.zeros((128, 1), np.uint8)}
    base = files.base(packed)
    weights = files.lora("model.layers.0.self_attn.q_proj", 16, 16) | files.lora(
        "model.layers.1.self_attn.q_proj", 16, 16
    )
    folder = files.adapter(weights)
    assert "2 modules were compared" in validate_adapter("medical-lora", folder, base).warnings[0]
    assert "by name only" in validate_adapter("medical-lora", folder, base).warnings[0]


def test_module_that_a_quantized_base_lacks_is_refused(files: Files) -> None:
    base = files.base({"model.layers.0.self_attn.q_proj.qweight": np.zeros((2, 16), np.int32)})
    weights = files.lora("model.layers.7.self_attn.q_proj", 16, 16)
    with pytest.raises(AdapterError, match="q_proj of layer 7"):
        validate_adapter("medical-lora", files.adapter(weights), base)


@pytest.mark.parametrize(
    ("stored", "adapted"), [("qkv_proj", "q_proj"), ("q_proj", "qkv_proj"), ("gate_up_proj", "up_proj")]
)
def test_module_that_the_base_stores_fused_or_split_is_accepted_with_a_warning(
    files: Files, stored: str, adapted: str
) -> None:
    base = files.base({f"model.layers.0.block.{stored}.weight": np.zeros((32, 16), np.float16)})
    folder = files.adapter(files.lora(f"model.layers.0.block.{adapted}", 16, 16))
    warnings = validate_adapter("medical-lora", folder, base).warnings
    assert f"1 modules, such as 'model.layers.0.block.{adapted}', have another name in the base" in warnings[0]


MIXTRAL = {"model.layers.0.block_sparse_moe.gate.weight": np.zeros((4, 16), np.float16)}


def test_module_that_transformers_renamed_is_accepted_with_a_warning(files: Files) -> None:
    folder = files.adapter(files.lora("model.layers.0.mlp.gate", outputs=4, inputs=16))
    (warning,) = validate_adapter("medical-lora", folder, files.base(MIXTRAL)).warnings
    assert "vLLM may skip them or refuse the adapter" in warning


def test_module_that_transformers_renamed_is_compared(files: Files) -> None:
    folder = files.adapter(files.lora("model.layers.0.mlp.gate", outputs=8, inputs=16))
    with pytest.raises(AdapterError, match="gate of layer 0 expects 8 outputs"):
        validate_adapter("medical-lora", folder, files.base(MIXTRAL))


def test_experts_are_not_compared_and_give_a_warning(files: Files) -> None:
    stacked = (
        files.lora("model.layers.0.mlp.experts.base_layer", 64, 16, rank=32)
        | files.lora("model.layers.0.mlp.experts.3.w1", 7, 7)
        | files.lora("model.layers.0.feed_forward.base_layer", 64, 16, rank=32)
    )
    adapter = validate_adapter("medical-lora", files.adapter(files.adapter_weights() | stacked), files.base())
    assert adapter.target_modules == ("down_proj", "experts", "gate_proj", "k_proj", "q_proj")
    assert adapter.warnings == (f"3 expert modules were not compared with the base {str(files.root / 'tiny')!r}",)


def test_adapter_of_a_dense_base_is_refused_if_only_experts_have_its_modules(files: Files) -> None:
    base = files.base({"model.layers.0.mlp.experts.3.up_proj.weight": np.zeros((32, 16), np.float16)})
    with pytest.raises(AdapterError, match=r"up_proj of layer 0: the base '.*' has no 'model.layers.0.mlp.up_proj'"):
        validate_adapter("medical-lora", files.adapter(files.lora("model.layers.0.mlp.up_proj", 32, 16)), base)


def test_shared_experts_are_compared_like_other_layers(files: Files) -> None:
    module = "model.layers.0.mlp.shared_experts.up_proj"
    base = files.base(files.base_weights() | {f"{module}.weight": np.zeros((32, 16), np.float16)})
    with pytest.raises(AdapterError, match="up_proj of layer 0 expects 8 inputs"):
        validate_adapter("medical-lora", files.adapter(files.lora(module, 32, 8)), base)


@pytest.mark.parametrize("vocabulary", [48, 50])
def test_adapted_embedding_must_have_the_bases_vocabulary(files: Files, vocabulary: int) -> None:
    weights = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((4, vocabulary), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.zeros((16, 4), np.float32),
        "base_model.model.model.embed_tokens.base_layer.weight": np.zeros((vocabulary, 16), np.float32),
    }
    base, folder = files.base(), files.adapter(weights)
    if vocabulary == 48:
        assert validate_adapter("medical-lora", folder, base).target_modules == ("embed_tokens",)
    else:
        with pytest.raises(AdapterError, match=r"embed_tokens expects 50 inputs, the base '.*' has 48"):
            validate_adapter("medical-lora", folder, base)


@pytest.mark.parametrize("vocabulary", [48, 50])
def test_adapted_head_is_compared_with_the_embedding_of_shared_weight(files: Files, vocabulary: int) -> None:
    base = files.base(files.base_weights(head=False), config={"tie_word_embeddings": True})
    folder = files.adapter(files.lora("lm_head", vocabulary, 16))
    if vocabulary == 48:
        assert validate_adapter("medical-lora", folder, base).warnings == ()
    else:
        with pytest.raises(AdapterError, match=r"lm_head expects 50 outputs, the base '.*' has 48"):
            validate_adapter("medical-lora", folder, base)


def test_adapted_head_is_refused_if_the_base_has_none(files: Files) -> None:
    base = files.base(files.base_weights(head=False), config={"tie_word_embeddings": False})
    with pytest.raises(AdapterError, match=r"lm_head: the base '.*' has no 'lm_head'"):
        validate_adapter("medical-lora", files.adapter(files.lora("lm_head", 48, 16)), base)
