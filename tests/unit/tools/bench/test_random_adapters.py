"""Adapters with random weights fit their base model."""

from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import validate_adapter
from vllm_lora_router.tools.bench.serve.random_adapters import write_adapter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def written_base(folder: Path, dtype: str) -> Path:
    """Write a configuration with wide heads and fewer key-value heads."""
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        dtype=dtype,
    )
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_fits_its_base_in_every_layer(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file

    base = written_base(tmp_path / "base", dtype)
    write_adapter(base, tmp_path / "adapter", 4, seed=1)
    adapter = validate_adapter("adapter", tmp_path / "adapter", BaseModel.find(str(base)))
    assert (adapter.rank, adapter.warnings) == (4, ())
    assert adapter.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 * 2 and {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    for tensor in tensors.values():
        assert tensor.float().abs().amax(dim=1).min() > 0 and tensor.float().abs().max() < 0.1


def test_adapter_is_deterministic_for_a_seed(tmp_path: Path) -> None:
    base = written_base(tmp_path / "base", "float32")
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_adapter(base, tmp_path / folder, 4, seed)
    a, b, c = ((tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in "abc")
    assert a == b != c
