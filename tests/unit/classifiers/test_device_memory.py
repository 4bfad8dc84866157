"""What classifiers take of a GPU's memory, counted from files alone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vllm_lora_router.classifiers.models import encoder, gpu_memory
from vllm_lora_router.classifiers.models.gpu_memory import (
    ASSUMED_BYTES,
    ASSUMED_WIDTH,
    CONTEXT_BYTES,
    batch_bytes,
    lower,
    model_bytes,
    needed_bytes,
    utilization,
    weights_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_lora_router.config.schema import Runtime

    from .conftest import Load

GB = 10**9
ENCODER = "embedding_model: {model_id: encoder}"
DOMAIN = "category_model: {model_id: domain, category_mapping_path: mapping.json}"
RULES = "embedding_rules: [{category: medical, candidates: [a fever]}]"
OFFLINE = "nobody/no-such-model"


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
    """An encoder of 1000 parameters, a domain model of 3000, and labels of the latter that are category names."""
    model(tmp_path / "encoder", 1000)
    model(tmp_path / "domain", 3000)
    labelled(tmp_path, "medical", "technical")


def labelled(folder: Path, *labels: str) -> None:
    write(folder / "mapping.json", {"idx_to_category": {str(place): label for place, label in enumerate(labels)}})


def on_gpu(device: str, runtime: str = "torch", *, use_cpu: bool = False) -> str:
    """What `torch_device` says on a machine with a GPU."""
    if use_cpu:
        return "cpu"
    if device != "auto":
        return device
    return "cuda" if runtime == "torch" else "cpu"


# 64 texts of 512 tokens, 16 numbers of 2 bytes for each of 8 dimensions.
BATCH = 64 * 512 * 8 * 16 * 2
# The largest CUDA graph, which only a domain model has, is of a half as many tokens.
OF_ENCODER, OF_DOMAIN = 2 * 1000 + BATCH, 2 * 3000 + BATCH + BATCH // 2


def test_a_gpu_is_told_of_as_torch_tells_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings: list[tuple[str, Runtime]] = [("auto", "torch"), ("auto", "onnx"), ("cpu", "torch"), ("cuda:1", "torch")]
    for device, runtime in settings:
        assert on_gpu(device, runtime) == encoder.torch_device(device, runtime)
    assert on_gpu("cuda", use_cpu=True) == encoder.torch_device("cuda", use_cpu=True) == "cpu"


def test_the_weights_of_a_model_are_counted_as_a_gpu_holds_them(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    tensors = {"a": np.zeros(10, np.float32), "b": np.zeros(10, np.float16), "positions": np.zeros(10, np.int64)}
    save_file(tensors, folder / "model.safetensors")
    assert weights_bytes(folder) == 20 + 20 + 80
    (folder / "0_Transformer").mkdir()
    save_file({"a": np.zeros(10, np.float32)}, folder / "0_Transformer/model.safetensors")
    assert weights_bytes(folder) == 120 + 20
    (folder / "other.safetensors").write_bytes(b"x" * 1000)  # no header: as it lies there
    assert weights_bytes(folder) == 140 + 1000


def test_weights_that_are_not_there_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert weights_bytes(tmp_path / "empty") is None
    assert model_bytes("embedding", str(tmp_path / "empty"), 512) is None
    assert model_bytes("embedding", "no/such/folder", 512) is None
    assert model_bytes("embedding", str(tmp_path / "encoder"), 512) == OF_ENCODER
    assert model_bytes("domain", str(tmp_path / "domain"), 512) == OF_DOMAIN


def test_a_batch_is_as_long_as_the_model_and_its_settings_let_it(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    assert batch_bytes(folder, 512, graphs=False) == batch_bytes(folder, 8192, graphs=False) == BATCH
    assert batch_bytes(folder, 256, graphs=False) == BATCH / 2
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    assert batch_bytes(folder, 512, graphs=False) == BATCH / 4
    assert batch_bytes(None, 512, graphs=False) == BATCH / 8 * ASSUMED_WIDTH


def test_graphs_take_what_the_largest_of_them_does_however_short_texts_are_cut(tmp_path: Path) -> None:
    folder = tmp_path / "domain"
    assert batch_bytes(folder, 64, graphs=True) == BATCH / 8 + BATCH / 2
    short = model(tmp_path / "short", 10, max_position_embeddings=128)
    assert batch_bytes(short, 512, graphs=True) == BATCH / 4 + BATCH / 4


def test_attention_that_is_written_down_takes_more_with_every_token(tmp_path: Path) -> None:
    folder = model(tmp_path / "deberta", 10, model_type="deberta-v2", num_attention_heads=2)
    assert batch_bytes(folder, 512, graphs=False) == BATCH + 64 * 512 * 512 * 2 * 6 * 2


def test_what_embedding_rules_take_is_the_encoder_and_what_any_process_takes(loaded: Load) -> None:
    assert needed_bytes(loaded(f"classifier: {{{ENCODER}}}\n{RULES}"), on_gpu) == OF_ENCODER + CONTEXT_BYTES


def test_models_of_one_process_are_added(loaded: Load) -> None:
    both = loaded(f"classifier: {{{ENCODER}, {DOMAIN}}}\n{RULES}")
    assert needed_bytes(both, on_gpu) == OF_ENCODER + OF_DOMAIN + CONTEXT_BYTES


def test_labels_that_are_mapped_by_meaning_take_the_encoder(loaded: Load, tmp_path: Path) -> None:
    configured = loaded(f"classifier: {{{ENCODER}, {DOMAIN}}}")
    assert needed_bytes(configured, on_gpu) == OF_DOMAIN + CONTEXT_BYTES
    labelled(tmp_path, "health", "technical")
    assert needed_bytes(configured, on_gpu) == OF_ENCODER + OF_DOMAIN + CONTEXT_BYTES


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
def test_what_is_not_used_or_not_on_the_gpu_takes_nothing_of_it(loaded: Load, text: str) -> None:
    assert needed_bytes(loaded(text), on_gpu) == 0


def test_nothing_is_needed_on_a_machine_without_a_gpu(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert needed_bytes(loaded(f"classifier: {{{ENCODER}, {DOMAIN}}}\n{RULES}")) == 0


def test_a_static_encoder_takes_nothing_of_a_gpu(loaded: Load, tmp_path: Path) -> None:
    write(tmp_path / "encoder/config.json", {"model_type": "model2vec"})
    assert needed_bytes(loaded(f"classifier: {{{ENCODER}}}\n{RULES}"), on_gpu) == 0
    assert model_bytes("embedding", str(tmp_path / "encoder"), 512) is None


def test_the_settings_shorten_the_batch(loaded: Load) -> None:
    own = loaded(f"classifier: {{embedding_model: {{model_id: encoder, max_tokens: 128}}}}\n{RULES}")
    assert needed_bytes(own, on_gpu) == 2000 + BATCH // 4 + CONTEXT_BYTES
    texts = loaded(f"classifier: {{{ENCODER}}}\n{RULES}\nrouter: {{text: {{max_tokens: 64}}}}")
    assert needed_bytes(texts, on_gpu) == 2000 + BATCH // 8 + CONTEXT_BYTES


def test_of_several_gpus_the_fullest_counts(loaded: Load) -> None:
    text = "classifier: {embedding_model: {model_id: encoder, device: %s}, %s}\n" + RULES
    assert needed_bytes(loaded(text % ("cuda:1", DOMAIN)), on_gpu) == OF_DOMAIN + CONTEXT_BYTES
    assert needed_bytes(loaded(text % ("cuda:0", DOMAIN)), on_gpu) == OF_ENCODER + OF_DOMAIN + CONTEXT_BYTES


def test_a_model_of_the_hub_is_counted_where_the_hubs_library_keeps_it(
    loaded: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = loaded(f"classifier: {{embedding_model: {{model_id: {OFFLINE}}}}}\n{RULES}")
    kept: dict[str, str] = {}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: kept.get(f"{name}/{file}"))
    unknown = ASSUMED_BYTES + batch_bytes(None, 512, graphs=False) + CONTEXT_BYTES
    assert needed_bytes(configured, on_gpu) == unknown
    assert model_bytes("embedding", OFFLINE, 512) is None
    kept[f"{OFFLINE}/config.json"] = str(tmp_path / "encoder/config.json")
    assert needed_bytes(configured, on_gpu) == OF_ENCODER + CONTEXT_BYTES
    assert model_bytes("embedding", OFFLINE, 512) == OF_ENCODER


def test_without_the_hubs_library_a_model_of_the_hub_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert gpu_memory._cached(OFFLINE) is None


def test_the_engines_share_leaves_what_every_process_needs() -> None:
    # Of the 1.92 GB that vLLM leaves of 24 GB, a half is taken for classifiers: 2.04 GB are still needed, 8.5 %.
    assert utilization(0.92, 24 * GB, 3 * GB, 1) == 0.83
    assert utilization(0.92, 24 * GB, 3 * GB, 2) == 0.71
    assert utilization(0.92, 100 * GB, 30 * GB, 1) == 0.66  # to the hundredth, not below it


def test_where_the_usual_share_leaves_enough_it_may_stay() -> None:
    most = utilization(0.92, 140 * GB, 3 * GB, 1)
    assert most is not None and most > 0.92


def test_nothing_is_said_of_the_share_when_nothing_is_needed() -> None:
    assert utilization(0.92, 24 * GB, 0, 2) is None
    assert utilization(0.92, 24 * GB, 3 * GB, 0) is None


def test_a_device_without_such_room_has_no_share() -> None:
    assert utilization(0.92, 8 * GB, 3 * GB, 8) == 0


def test_a_model_without_room_is_told_how_much_lower_the_share_must_be() -> None:
    figure, by = lower(24 * GB, 1 * GB, 0, 2 * GB)
    assert figure == utilization(0.92, 24 * GB, 2 * GB + CONTEXT_BYTES, 1)
    assert by == 0.05  # 1 GB of 24 is 4.2 %
    assert lower(24 * GB, 1 * GB, 3 * GB, 2 * GB)[0] == utilization(0.92, 24 * GB, 5 * GB + CONTEXT_BYTES, 1)
    assert lower(2 * GB, 0, 0, 2 * GB)[0] == 0
