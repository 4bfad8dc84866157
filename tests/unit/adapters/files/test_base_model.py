"""Properties of a base model that its files give without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel

if TYPE_CHECKING:
    from .conftest import Files


def test_folder_gives_shapes_layers_and_width(files: Files) -> None:
    folder = files.base_folder()
    base = BaseModel.find(str(folder))
    assert (base.name, base.folder, base.layers, base.hidden_size) == (str(folder), folder, 2, 16)
    assert base.shapes is not None
    assert base.shapes["model.layers.1.self_attn.k_proj"] == (8, 16)
    assert base.shapes["model.layers.1.input_layernorm"] is None


def test_all_shards_are_read(files: Files) -> None:
    shapes = BaseModel.find(str(files.base_folder(shards=3))).shapes
    assert shapes is not None
    assert {shapes["model.embed_tokens"], shapes["lm_head"]} == {(48, 16)}
    assert [shapes[f"model.layers.{layer}.mlp.down_proj"] for layer in range(2)] == [(16, 32), (16, 32)]


def test_modules_of_a_missing_shard_have_no_shape(files: Files) -> None:
    folder = files.base_folder(shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    module = "model.layers.0.self_attn.q_proj"
    (folder / index[f"{module}.weight"]).unlink()
    assert BaseModel.find(str(folder)).shapes_of(module) == (None,)


def test_multimodal_base_gives_the_properties_of_its_language_model(files: Files) -> None:
    text = {"num_hidden_layers": 7, "hidden_size": 24}
    base = files.base(config={"text_config": text, "num_hidden_layers": 99})
    assert (base.layers, base.hidden_size) == (7, 24)


def test_shared_head_with_two_possible_embeddings_has_no_shape(files: Files) -> None:
    audio = {"audio.embed_tokens.weight": np.zeros((9, 9), np.float16)}
    assert files.base(files.base_weights(head=False) | audio).shapes_of("lm_head") == (None,)


@pytest.mark.parametrize("model", ["acme/not-downloaded", "/no/such/folder", "s3://bucket/model"])
def test_base_that_is_not_on_disk_has_only_a_name(tmp_path: Path, model: str) -> None:
    assert BaseModel.find(model, cache=tmp_path) == BaseModel(model)


def test_hub_id_is_found_in_the_cache_by_its_revision(files: Files) -> None:
    repository = files.root / "models--acme--tiny"
    for revision in ("main", "v2"):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(f"commit-of-{revision}")
    (repository / "snapshots").mkdir()
    files.base_folder().rename(repository / "snapshots" / "commit-of-v2")
    base = BaseModel.find("acme/tiny", revision="v2", cache=files.root)
    assert base.name == "acme/tiny"
    assert base.folder == repository / "snapshots" / "commit-of-v2"
    assert base.shapes_of("lm_head") == ((48, 16),)
    assert BaseModel.find("acme/tiny", cache=files.root) == BaseModel("acme/tiny")


@pytest.mark.parametrize("weights", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_unreadable_weights_give_no_shapes(files: Files, weights: bytes) -> None:
    folder = files.base_folder()
    (folder / "model.safetensors").write_bytes(weights)
    base = BaseModel.find(str(folder))
    assert (base.shapes, base.layers) == (None, 2)


@pytest.mark.parametrize("config", ["", "[]", '{"num_hidden_layers": "two"}'])
def test_unusable_config_gives_no_numbers(files: Files, config: str) -> None:
    folder = files.base_folder()
    (folder / "config.json").write_text(config)
    base = BaseModel.find(str(folder))
    assert (base.layers, base.hidden_size) == (None, None)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": '{"model_max_length": 8}'}, False),
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, True),
        ({"chat_template.jinja": "{{ messages }}"}, True),
        ({"chat_template.json": "{}"}, True),
        ({"additional_chat_templates/rag.jinja": "{{ messages }}"}, True),
    ],
)
def test_chat_template_is_detected(files: Files, contents: dict[str, str], expected: bool | None) -> None:
    folder = files.base_folder()
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    assert BaseModel.find(str(folder)).chat_template is expected
