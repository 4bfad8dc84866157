"""Adapter folders and weights files that are missing, damaged or incomplete are refused with the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import AdapterError, validate_adapter
from vllm_lora_router.coordination.shortage import shortage_of

if TYPE_CHECKING:
    from .conftest import Files

BASE = BaseModel("acme/tiny")
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def test_missing_folder_is_reported_with_the_remedy(files: Files) -> None:
    with pytest.raises(
        AdapterError, match=r"adapter 'medical-lora' \(.*/nowhere\): the folder does not exist.*hf:organization/name"
    ):
        validate_adapter("medical-lora", files.root / "nowhere", BASE)


def test_file_in_place_of_the_folder_is_reported(files: Files) -> None:
    with pytest.raises(AdapterError, match="is a file; use the folder"):
        validate_adapter("medical-lora", files.adapter() / "adapter_config.json", BASE)


def test_missing_weights_are_reported(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing; copy all files"):
        validate_adapter("medical-lora", folder, BASE)


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "adapter_model.pt"])
def test_pickle_is_refused_with_a_hint_to_convert_it(files: Files, pickle: str) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").rename(folder / pickle)
    with pytest.raises(AdapterError, match=rf"{pickle} is never loaded because a pickle can run code; convert it"):
        validate_adapter("medical-lora", folder, BASE)


def test_truncated_file_is_reported(files: Files) -> None:
    folder = files.adapter()
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:-1])
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is damaged or incomplete"):
        validate_adapter("medical-lora", folder, BASE)


def test_file_in_another_format_is_reported(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is damaged or incomplete"):
        validate_adapter("medical-lora", folder, BASE)


def test_git_lfs_pointer_is_recognized(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134235048\n"
    )
    with pytest.raises(AdapterError, match="is a Git LFS pointer, not the weights; run 'git lfs pull'"):
        validate_adapter("medical-lora", folder, BASE)


def test_file_without_lora_tensors_is_reported(files: Files) -> None:
    folder = files.adapter({"base_model.model.score.weight": np.zeros((2, 16), np.float32)})
    with pytest.raises(AdapterError, match="has no LoRA tensors"):
        validate_adapter("medical-lora", folder, BASE)


@pytest.mark.parametrize(("missing", "present"), [("lora_B", "lora_A"), ("lora_A", "lora_B")])
def test_module_with_one_lora_tensor_is_refused(files: Files, missing: str, present: str) -> None:
    weights = files.adapter_weights()
    del weights[f"{Q_PROJ}.{missing}.weight"]
    with pytest.raises(
        AdapterError, match=rf"q_proj of layer 0 has {present} but no {missing} \(1 of 8 modules have only one\)"
    ):
        validate_adapter("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize("shape", [(4, 16, 1), (4,), ()])
def test_lora_that_is_not_a_pair_of_matrices_is_refused(files: Files, shape: tuple[int, ...]) -> None:
    weights = files.adapter_weights() | {f"{Q_PROJ}.lora_A.weight": np.zeros(shape, np.float32)}
    with pytest.raises(AdapterError, match=r"q_proj of layer 0 has lora_A of shape \(.*not two matrices"):
        validate_adapter("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize(
    "name", ["base_model.model.lm_head.weight", f"{Q_PROJ}.lora_A.default.weight", f"{Q_PROJ}.lora_magnitude_vector"]
)
def test_tensor_that_vllm_cannot_read_is_refused(files: Files, name: str) -> None:
    weights = files.adapter_weights() | {name: np.zeros((4, 16), np.float32)}
    with pytest.raises(AdapterError, match=f"vLLM cannot read {name!r}"):
        validate_adapter("medical-lora", files.adapter(weights), BASE)


def test_tensors_of_an_unsupported_feature_are_not_reported_twice(files: Files) -> None:
    weights = files.adapter_weights() | {f"{Q_PROJ}.lora_magnitude_vector": np.zeros(16, np.float32)}
    with pytest.raises(AdapterError) as refused:
        validate_adapter("medical-lora", files.adapter(weights, use_dora=True), BASE)
    assert len(refused.value.problems) == 1


def test_names_without_pefts_prefix_are_read(files: Files) -> None:
    weights = {name.removeprefix("base_model.model."): array for name, array in files.adapter_weights(hidden=8).items()}
    with pytest.raises(AdapterError, match="8 of 8 modules do not fit"):
        validate_adapter("medical-lora", files.adapter(weights), files.base())


def test_classifier_head_with_the_lora_is_accepted(files: Files) -> None:
    weights = files.adapter_weights() | {"base_model.model.score.weight": np.zeros((2, 16), np.float32)}
    validate_adapter("medical-lora", files.adapter(weights, modules_to_save=["score"]), BASE)


def test_tensors_that_differ_in_rank_from_the_configuration_are_refused(files: Files) -> None:
    folder = files.adapter(files.adapter_weights(rank=8))
    message = r"has rank 8 in adapter_model.safetensors and rank 4 in adapter_config.json \(8 of 8 modules differ\)"
    with pytest.raises(AdapterError, match=message):
        validate_adapter("medical-lora", folder, BASE)


def test_lora_tensors_of_different_ranks_are_refused(files: Files) -> None:
    weights = files.adapter_weights() | {f"{Q_PROJ}.lora_B.weight": np.zeros((16, 8), np.float32)}
    with pytest.raises(AdapterError, match=r"q_proj of layer 0 has ranks 4 \(lora_A\) and 8 \(lora_B\)"):
        validate_adapter("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize("pattern", ["k_proj", "self_attn.k_proj", r"layers\.[01]\.self_attn\.k_proj", r".*k_proj"])
def test_rank_pattern_is_applied_as_in_vllm_and_counts_for_the_rank(files: Files, pattern: str) -> None:
    weights = files.adapter_weights()
    for layer in range(2):
        weights |= files.lora(f"model.layers.{layer}.self_attn.k_proj", 8, 16, rank=24)
    adapter = validate_adapter(
        "medical-lora", files.adapter(weights, rank_pattern={pattern: 24, r".*\.k_proj": 4}), BASE
    )
    assert adapter.rank == 24


@pytest.mark.parametrize("pattern", ["_proj", "self_attn.k", "layers.0"])
def test_rank_pattern_must_match_whole_parts_at_the_end_of_the_name(files: Files, pattern: str) -> None:
    weights = files.adapter_weights() | files.lora("model.layers.0.self_attn.k_proj", 8, 16, rank=24)
    with pytest.raises(AdapterError, match="k_proj of layer 0 has rank 24"):
        validate_adapter("medical-lora", files.adapter(weights, rank_pattern={pattern: 24}), BASE)


@pytest.mark.parametrize("key", ["r", "rank_pattern"])
def test_rank_above_the_largest_of_vllm_is_refused(files: Files, key: str) -> None:
    folder = files.adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"r": 513} if key == "r" else {"rank_pattern": {"unused": 513}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="rank 513 is above 512, the largest that vLLM serves"):
        validate_adapter("medical-lora", folder, BASE)


@pytest.mark.parametrize("name", ["a" * 600, "layers.0.q\nadapter medical: loaded", "layers." + "1" * 5000 + ".q_proj"])
def test_name_that_is_long_or_not_printable_is_refused(files: Files, name: str) -> None:
    with pytest.raises(AdapterError, match="has more than 512 characters or unprintable ones") as refused:
        validate_adapter("medical-lora", files.adapter(files.lora(name, 16, 16)), BASE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_tensors_that_are_not_floating_point_are_refused(files: Files, dtype: type) -> None:
    weights = {name: array.astype(dtype) for name, array in files.adapter_weights().items()}
    with pytest.raises(AdapterError, match="save the adapter in bfloat16, float16 or float32"):
        validate_adapter("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize("error", [RecursionError("deep"), KeyError("a" * 10_000), MemoryError()])
def test_unexpected_error_is_a_refusal(files: Files, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vllm_lora_router.adapters.files.validation.compare", fail)
    with pytest.raises(AdapterError, match="the files cannot be examined") as refused:
        validate_adapter("medical-lora", files.adapter(), BASE)
    assert len(str(refused.value)) < 1000
    assert (shortage_of(refused.value) is not None) == isinstance(error, MemoryError)
