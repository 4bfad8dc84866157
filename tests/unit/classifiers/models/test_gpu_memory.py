"""Estimate of the GPU memory that classifiers need, from files only."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vllm_lora_router.classifiers.models import gpu_memory, source
from vllm_lora_router.classifiers.models.gpu_memory import (
    ASSUMED_BYTES,
    ASSUMED_WIDTH,
    CONTEXT_BYTES,
    batch_bytes,
    model_bytes,
    needed_bytes,
    suggest_utilization,
    utilization,
    weights_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_lora_router.config.schema import Runtime

    from ..conftest import Load

GB = 10**9
ENCODER = "embedding_model: {model_id: encoder}"
DOMAIN = "category_model: {model_id: domain, category_mapping_path: mapping.json}"
RULES = "embedding_rules: [{category: medical, candidates: [a fever]}]"
HUB_MODEL = "unknown/no-such-model"


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value), "utf-8")


def model(folder: Path, parameters: int, **config: object) -> Path:
    folder.mkdir()
    save_file({"weight": np.zeros(parameters, np.float32)}, folder / "model.safetensors")
    write(folder / "config.json", {"hidden_size": 8, "max_position_embeddings": 512, **config})
    return folder


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> None:
    """Write an encoder with 1000 parameters and a domain model with 3000 whose labels are category names."""
    model(tmp_path / "encoder", 1000)
    model(tmp_path / "domain", 3000)
    write_labels(tmp_path, "medical", "technical")


def write_labels(folder: Path, *labels: str) -> None:
    write(folder / "mapping.json", {"idx_to_category": {str(place): label for place, label in enumerate(labels)}})


def on_gpu(device: str, runtime: str = "torch", *, use_cpu: bool = False) -> str:
    """Return what `torch_device` returns on a machine with a GPU."""
    if use_cpu:
        return "cpu"
    if device != "auto":
        return device
    return "cuda" if runtime == "torch" else "cpu"


# 64 texts of 512 tokens, 16 numbers of 2 bytes for each of 8 dimensions.
BATCH_BYTES = 64 * 512 * 8 * 16 * 2
# The largest CUDA graph, which only a domain model has, has half as many tokens.
ENCODER_BYTES, DOMAIN_BYTES = 2 * 1000 + BATCH_BYTES, 2 * 3000 + BATCH_BYTES + BATCH_BYTES // 2


def test_the_fake_device_function_equals_torch_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings: list[tuple[str, Runtime]] = [("auto", "torch"), ("auto", "onnx"), ("cpu", "torch"), ("cuda:1", "torch")]
    for device, runtime in settings:
        assert on_gpu(device, runtime) == source.torch_device(device, runtime)
    assert on_gpu("cuda", use_cpu=True) == source.torch_device("cuda", use_cpu=True) == "cpu"


def test_weights_are_counted_in_the_data_type_that_the_gpu_uses(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    tensors = {"a": np.zeros(10, np.float32), "b": np.zeros(10, np.float16), "positions": np.zeros(10, np.int64)}
    save_file(tensors, folder / "model.safetensors")
    assert weights_bytes(folder) == 20 + 20 + 80
    (folder / "0_Transformer").mkdir()
    save_file({"a": np.zeros(10, np.float32)}, folder / "0_Transformer/model.safetensors")
    assert weights_bytes(folder) == 120 + 20
    (folder / "other.safetensors").write_bytes(b"x" * 1000)  # without a valid header the size of the file counts
    assert weights_bytes(folder) == 140 + 1000


def test_missing_weights_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert weights_bytes(tmp_path / "empty") is None
    assert model_bytes("embedding", str(tmp_path / "empty"), 512) is None
    assert model_bytes("embedding", "no/such/folder", 512) is None
    assert model_bytes("embedding", str(tmp_path / "encoder"), 512) == ENCODER_BYTES
    assert model_bytes("domain", str(tmp_path / "domain"), 512) == DOMAIN_BYTES


def test_the_length_of_a_batch_is_limited_by_the_model_and_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    assert batch_bytes(folder, 512, graphs=False) == batch_bytes(folder, 8192, graphs=False) == BATCH_BYTES
    assert batch_bytes(folder, 256, graphs=False) == BATCH_BYTES / 2
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    assert batch_bytes(folder, 512, graphs=False) == BATCH_BYTES / 4
    assert batch_bytes(None, 512, graphs=False) == BATCH_BYTES / 8 * ASSUMED_WIDTH


def test_graphs_need_the_memory_of_the_largest_graph_for_any_text_limit(tmp_path: Path) -> None:
    folder = tmp_path / "domain"
    assert batch_bytes(folder, 64, graphs=True) == BATCH_BYTES / 8 + BATCH_BYTES / 2
    short = model(tmp_path / "short", 10, max_position_embeddings=128)
    assert batch_bytes(short, 512, graphs=True) == BATCH_BYTES / 4 + BATCH_BYTES / 4


def test_materialized_attention_grows_with_the_square_of_the_tokens(tmp_path: Path) -> None:
    folder = model(tmp_path / "deberta", 10, model_type="deberta-v2", num_attention_heads=2)
    assert batch_bytes(folder, 512, graphs=False) == BATCH_BYTES + 64 * 512 * 512 * 2 * 6 * 2


def test_embedding_rules_need_the_encoder_and_the_context_of_the_process(loaded: Load) -> None:
    assert needed_bytes(loaded(f"classifier: {{{ENCODER}}}\n{RULES}"), on_gpu) == ENCODER_BYTES + CONTEXT_BYTES


def test_the_models_of_a_process_are_summed(loaded: Load) -> None:
    both = loaded(f"classifier: {{{ENCODER}, {DOMAIN}}}\n{RULES}")
    assert needed_bytes(both, on_gpu) == ENCODER_BYTES + DOMAIN_BYTES + CONTEXT_BYTES


def test_labels_that_are_mapped_by_similarity_need_the_encoder(loaded: Load, tmp_path: Path) -> None:
    configured = loaded(f"classifier: {{{ENCODER}, {DOMAIN}}}")
    assert needed_bytes(configured, on_gpu) == DOMAIN_BYTES + CONTEXT_BYTES
    write_labels(tmp_path, "health", "technical")
    assert needed_bytes(configured, on_gpu) == ENCODER_BYTES + DOMAIN_BYTES + CONTEXT_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "classifier: {embedding_model: {model_id: encoder, head: off}}",
        f"classifier: {{{ENCODER}, {DOMAIN}}}\n{RULES}\nrouter: {{methods: [keyword]}}",
        f"classifier: {{embedding_model: {{model_id: encoder, device: cpu}}}}\n{RULES}",
        f"classifier: {{embedding_model: {{model_id: encoder, runtime: onnx-int8}}}}\n{RULES}",
        "classifier: {category_model: {model_id: domain, category_mapping_path: mapping.json, use_cpu: true}}",
        "classifier: {category_model: {model_id: domain, category_mapping_path: mapping.json, runtime: onnx}}",
        f"classifier: {{{ENCODER}}}\n{RULES}\ncategories: "
        "[{name: medical, methods: [keyword], model_scores: [{model: base, lora_name: medical-lora}]}]",
    ],
)
def test_unused_models_and_models_on_the_cpu_need_no_gpu_memory(loaded: Load, text: str) -> None:
    assert needed_bytes(loaded(text), on_gpu) == 0


def test_without_a_gpu_no_memory_is_needed(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert needed_bytes(loaded(f"classifier: {{{ENCODER}, {DOMAIN}}}\n{RULES}")) == 0


def test_a_static_encoder_needs_no_gpu_memory(loaded: Load, tmp_path: Path) -> None:
    write(tmp_path / "encoder/config.json", {"model_type": "model2vec"})
    assert needed_bytes(loaded(f"classifier: {{{ENCODER}}}\n{RULES}"), on_gpu) == 0
    assert model_bytes("embedding", str(tmp_path / "encoder"), 512) is None


def test_max_tokens_reduces_the_memory_of_a_batch(loaded: Load) -> None:
    encoder_limit = loaded(f"classifier: {{embedding_model: {{model_id: encoder, max_tokens: 128}}}}\n{RULES}")
    assert needed_bytes(encoder_limit, on_gpu) == 2000 + BATCH_BYTES // 4 + CONTEXT_BYTES
    text_limit = loaded(f"classifier: {{{ENCODER}}}\n{RULES}\nrouter: {{text: {{max_tokens: 64}}}}")
    assert needed_bytes(text_limit, on_gpu) == 2000 + BATCH_BYTES // 8 + CONTEXT_BYTES


def test_with_several_gpus_the_one_with_the_most_models_counts(loaded: Load) -> None:
    text = "classifier: {embedding_model: {model_id: encoder, device: %s}, %s}\n" + RULES
    assert needed_bytes(loaded(text % ("cuda:1", DOMAIN)), on_gpu) == DOMAIN_BYTES + CONTEXT_BYTES
    assert needed_bytes(loaded(text % ("cuda:0", DOMAIN)), on_gpu) == ENCODER_BYTES + DOMAIN_BYTES + CONTEXT_BYTES


def test_a_hub_model_is_read_from_the_hub_cache(loaded: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured = loaded(f"classifier: {{embedding_model: {{model_id: {HUB_MODEL}}}}}\n{RULES}")
    cached: dict[str, str] = {}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: cached.get(f"{name}/{file}"))
    unknown = ASSUMED_BYTES + batch_bytes(None, 512, graphs=False) + CONTEXT_BYTES
    assert needed_bytes(configured, on_gpu) == unknown
    assert model_bytes("embedding", HUB_MODEL, 512) is None
    cached[f"{HUB_MODEL}/config.json"] = str(tmp_path / "encoder/config.json")
    assert needed_bytes(configured, on_gpu) == ENCODER_BYTES + CONTEXT_BYTES
    assert model_bytes("embedding", HUB_MODEL, 512) == ENCODER_BYTES


def test_without_the_hub_library_a_hub_model_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert gpu_memory._hub_cache_folder(HUB_MODEL) is None


def test_the_utilization_leaves_room_for_every_process() -> None:
    # Half of the 1.92 GB that vLLM leaves of 24 GB is available for classifiers; 2.04 GB more are needed, 8.5 %.
    assert utilization(0.92, 24 * GB, 3 * GB, 1) == 0.83
    assert utilization(0.92, 24 * GB, 3 * GB, 2) == 0.71
    assert utilization(0.92, 100 * GB, 30 * GB, 1) == 0.66  # rounded down to exactly this step


def test_a_large_device_allows_more_than_the_default_utilization() -> None:
    largest = utilization(0.92, 140 * GB, 3 * GB, 1)
    assert largest is not None and largest > 0.92


def test_without_needed_memory_there_is_no_utilization() -> None:
    assert utilization(0.92, 24 * GB, 0, 2) is None
    assert utilization(0.92, 24 * GB, 3 * GB, 0) is None


def test_on_a_device_that_is_too_small_the_utilization_is_zero() -> None:
    assert utilization(0.92, 8 * GB, 3 * GB, 8) == 0


def test_the_suggested_utilization_and_reduction_make_room_for_the_model() -> None:
    suggested, reduction = suggest_utilization(24 * GB, 1 * GB, 0, 2 * GB)
    assert suggested == utilization(0.92, 24 * GB, 2 * GB + CONTEXT_BYTES, 1)
    assert reduction == 0.05  # 1 GB of 24 is 4.2 %
    assert suggest_utilization(24 * GB, 1 * GB, 3 * GB, 2 * GB)[0] == utilization(
        0.92, 24 * GB, 5 * GB + CONTEXT_BYTES, 1
    )
    assert suggest_utilization(2 * GB, 0, 0, 2 * GB)[0] == 0
