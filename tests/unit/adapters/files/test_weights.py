"""What a user is told of an adapter folder or a weights file that is missing, damaged or incomplete."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.validation import AdapterError, check

if TYPE_CHECKING:
    from .conftest import Files

BASE = BaseModel("acme/tiny")
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def test_a_missing_folder_is_said_with_the_way_out(files: Files) -> None:
    with pytest.raises(
        AdapterError, match=r"adapter 'medical-lora' \(.*/nowhere\): the folder does not exist.*hf download"
    ):
        check("medical-lora", files.root / "nowhere", BASE)


def test_a_file_in_place_of_the_folder_is_said(files: Files) -> None:
    with pytest.raises(AdapterError, match="is a file; give the folder"):
        check("medical-lora", files.adapter() / "adapter_config.json", BASE)


def test_missing_weights_are_said(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is missing; copy all files"):
        check("medical-lora", folder, BASE)


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_is_never_loaded_and_the_user_is_told_to_convert_it(files: Files, pickle: str) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").rename(folder / pickle)
    with pytest.raises(AdapterError, match=rf"{pickle} is never loaded, since a pickle can run code; convert it"):
        check("medical-lora", folder, BASE)


def test_a_truncated_file_is_said(files: Files) -> None:
    folder = files.adapter()
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is damaged or not complete"):
        check("medical-lora", folder, BASE)


def test_a_file_that_is_no_safetensors_is_said(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is damaged or not complete"):
        check("medical-lora", folder, BASE)


def test_a_git_lfs_pointer_is_recognised(files: Files) -> None:
    folder = files.adapter()
    (folder / "adapter_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134235048\n"
    )
    with pytest.raises(AdapterError, match="is a Git LFS pointer, not the weights; run 'git lfs pull'"):
        check("medical-lora", folder, BASE)


def test_a_file_without_lora_tensors_is_said(files: Files) -> None:
    folder = files.adapter({"base_model.model.score.weight": np.zeros((2, 16), np.float32)})
    with pytest.raises(AdapterError, match="has no LoRA tensors"):
        check("medical-lora", folder, BASE)


@pytest.mark.parametrize(("gone", "there"), [("lora_B", "lora_A"), ("lora_A", "lora_B")])
def test_half_a_lora_is_refused(files: Files, gone: str, there: str) -> None:
    weights = files.adapter_weights()
    del weights[f"{Q_PROJ}.{gone}.weight"]
    with pytest.raises(
        AdapterError, match=rf"q_proj of layer 0 has {there} but no {gone} \(1 of 8 modules lack a half\)"
    ):
        check("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize("shape", [(4, 16, 1), (4,), ()])
def test_a_lora_that_is_no_pair_of_matrices_is_refused(files: Files, shape: tuple[int, ...]) -> None:
    weights = files.adapter_weights() | {f"{Q_PROJ}.lora_A.weight": np.zeros(shape, np.float32)}
    with pytest.raises(AdapterError, match=r"q_proj of layer 0 has lora_A of shape \(.*not two matrices"):
        check("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize(
    "name", ["base_model.model.lm_head.weight", f"{Q_PROJ}.lora_A.default.weight", f"{Q_PROJ}.lora_magnitude_vector"]
)
def test_a_tensor_that_makes_vllm_refuse_the_file_is_refused(files: Files, name: str) -> None:
    weights = files.adapter_weights() | {name: np.zeros((4, 16), np.float32)}
    with pytest.raises(AdapterError, match=f"vLLM cannot read {name!r}"):
        check("medical-lora", files.adapter(weights), BASE)


def test_tensors_of_a_feature_that_is_refused_anyway_are_not_listed_on_top(files: Files) -> None:
    weights = files.adapter_weights() | {f"{Q_PROJ}.lora_magnitude_vector": np.zeros(16, np.float32)}
    with pytest.raises(AdapterError) as refused:
        check("medical-lora", files.adapter(weights, use_dora=True), BASE)
    assert len(refused.value.problems) == 1


def test_names_without_peft_s_prefix_are_read_as_vllm_reads_them(files: Files) -> None:
    weights = {name.removeprefix("base_model.model."): array for name, array in files.adapter_weights(hidden=8).items()}
    with pytest.raises(AdapterError, match="8 of 8 modules do not fit"):
        check("medical-lora", files.adapter(weights), files.base())


def test_a_classifier_head_beside_the_lora_is_accepted(files: Files) -> None:
    weights = files.adapter_weights() | {"base_model.model.score.weight": np.zeros((2, 16), np.float32)}
    check("medical-lora", files.adapter(weights, modules_to_save=["score"]), BASE)


def test_tensors_of_another_rank_than_the_configuration_says_are_refused(files: Files) -> None:
    folder = files.adapter(files.adapter_weights(rank=8))
    said = r"has rank 8 in adapter_model.safetensors and rank 4 in adapter_config.json \(8 of 8 modules differ\)"
    with pytest.raises(AdapterError, match=said):
        check("medical-lora", folder, BASE)


def test_two_halves_of_different_ranks_are_refused(files: Files) -> None:
    weights = files.adapter_weights() | {f"{Q_PROJ}.lora_B.weight": np.zeros((16, 8), np.float32)}
    with pytest.raises(AdapterError, match=r"q_proj of layer 0 has ranks 4 \(lora_A\) and 8 \(lora_B\)"):
        check("medical-lora", files.adapter(weights), BASE)


@pytest.mark.parametrize("pattern", ["k_proj", "self_attn.k_proj", r"layers\.[01]\.self_attn\.k_proj", r".*k_proj"])
def test_a_rank_pattern_is_read_as_vllm_reads_it_and_counts_for_the_rank_to_allow(files: Files, pattern: str) -> None:
    weights = files.adapter_weights()
    for layer in range(2):
        weights |= files.lora(f"model.layers.{layer}.self_attn.k_proj", 8, 16, rank=24)
    adapter = check("medical-lora", files.adapter(weights, rank_pattern={pattern: 24, r".*\.k_proj": 4}), BASE)
    assert adapter.rank == 24


@pytest.mark.parametrize("pattern", ["_proj", "self_attn.k", "layers.0"])
def test_a_rank_pattern_must_be_the_end_of_the_name_by_whole_words(files: Files, pattern: str) -> None:
    weights = files.adapter_weights() | files.lora("model.layers.0.self_attn.k_proj", 8, 16, rank=24)
    with pytest.raises(AdapterError, match="k_proj of layer 0 has rank 24"):
        check("medical-lora", files.adapter(weights, rank_pattern={pattern: 24}), BASE)


@pytest.mark.parametrize("where", ["r", "rank_pattern"])
def test_a_rank_that_vllm_cannot_be_configured_to_is_refused(files: Files, where: str) -> None:
    folder = files.adapter()
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"r": 513} if where == "r" else {"rank_pattern": {"nothing_here": 513}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="rank 513 is above 512, the largest that vLLM serves"):
        check("medical-lora", folder, BASE)
