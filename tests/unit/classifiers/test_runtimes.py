"""Which runtime a model gets, and what is said when it cannot have it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import onnx_runtime
from vllm_lora_router.classifiers.models.backend import check_runtime, load_network
from vllm_lora_router.classifiers.models.encoder import torch_device

pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, and an empty place for exports."""
    monkeypatch.setenv(onnx_runtime.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_runtime, "OnnxNetwork", lambda exported, tokenizer, *, int8, threads: (exported, int8))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return model


class Exports:
    """In place of the process that exports: writes what it would write, or fails as it would."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.kinds: list[str] = []

    def __call__(self, command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        assert command[:3] == [sys.executable, "-m", "vllm_lora_router.classifiers.models.onnx_export"]
        kind, _, made = command[3:]
        self.kinds.append(kind)
        (Path(made) / onnx_runtime.EXACT).write_bytes(b"graph")
        if self.problem:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{self.problem}\n")
        (Path(made) / onnx_runtime.INT8).write_bytes(b"graph")
        (Path(made) / onnx_runtime.ABOUT).write_text(json.dumps({"longest": 256, "prompt": "query: "}))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    exports = Exports()
    monkeypatch.setattr(subprocess, "run", exports)
    return exports


def load(
    folder: Path, *, int8: bool = False, kind: onnx_runtime.Kind = "embedding"
) -> tuple[onnx_runtime.Exported, bool]:
    found: Any = onnx_runtime.load(kind, str(folder), int8=int8)
    return found


def test_a_model_is_exported_once_for_both_and_kept(folder: Path, exports: Exports) -> None:
    exact, is_int8 = load(folder)
    assert (exact.longest, exact.prompt, is_int8) == (256, "query: ", False)
    assert load(folder, int8=True) == (exact, True)
    assert exports.kinds == ["embedding"]
    assert [file.name for file in exact.folder.parent.iterdir()] == [exact.folder.name]  # nothing half made is left


def test_a_model_that_changed_or_is_used_for_something_else_is_another_one(folder: Path, exports: Exports) -> None:
    first, _ = load(folder)
    (folder / "model.safetensors").write_bytes(b"Weights")
    second, _ = load(folder)
    third, _ = load(folder, kind="domain")
    assert len({first.folder, second.folder, third.folder}) == 3
    assert exports.kinds == ["embedding", "embedding", "domain"]


def test_what_cannot_be_exported_is_said_and_leaves_nothing(folder: Path, exports: Exports) -> None:
    exports.problem = "its graph is off by 0.5 from what torch says"
    with pytest.raises(
        ClassifierError, match=r"cannot be exported .*: its graph is off by 0\.5 .*; set runtime: torch"
    ):
        load(folder)
    assert not list((onnx_runtime.cache() / "onnx").iterdir())


def test_where_exports_cannot_be_kept_another_place_can_be_named(
    folder: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "file").write_text("")
    monkeypatch.setenv(onnx_runtime.CACHE_VARIABLE, str(folder.parent / "file"))
    with pytest.raises(ClassifierError, match="name another folder by VLLM_LORA_ROUTER_CACHE"):
        load(folder)


def test_another_process_may_be_first(folder: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(command: list[str], **options: Any) -> Any:
        if not kept.exists():
            kept.mkdir()
            exports([*command[:-1], str(kept)])
        return exports(command)

    kept = onnx_runtime._kept_in("embedding", folder)
    monkeypatch.setattr(subprocess, "run", both)
    assert load(folder)[0].folder == kept


def test_without_the_packages_it_is_said_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None if name == "onnxscript" else object())
    says = r"config\.yaml: m\.runtime: onnx needs onnxscript; pip install 'vllm-lora-router\[onnx\]'"
    for ask in (
        lambda: load_network("config.yaml: m", "domain", str(folder), "onnx", "cpu", pytest.fail),
        lambda: check_runtime("config.yaml: m", "onnx", "auto"),
    ):
        with pytest.raises(ClassifierError, match=says):
            ask()
    check_runtime("config.yaml: m", "torch", "auto")


def test_it_runs_on_a_cpu_alone(folder: Path) -> None:
    with pytest.raises(ClassifierError, match="onnx-int8 runs on the CPU alone, not on cuda:1: set device: cpu"):
        load_network("config.yaml: m", "domain", str(folder), "onnx-int8", "cuda:1", pytest.fail)
    assert torch_device("auto", "onnx") == "cpu" and torch_device("cuda:1", "onnx") == "cuda:1"


def test_torch_is_the_default_everywhere(folder: Path) -> None:
    network: Any = object()
    assert load_network("m", "domain", str(folder), "torch", "cuda", lambda: network) is network
