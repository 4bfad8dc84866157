"""ONNX Runtime: exports, their cache, and errors about the runtime."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import onnx_runtime
from vllm_lora_router.classifiers.models.backend import check_runtime, load_model
from vllm_lora_router.classifiers.models.source import torch_device

pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, with an empty folder for exports."""
    monkeypatch.setenv(onnx_runtime.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_runtime, "OnnxModel", lambda exported, tokenizer, *, int8, threads: (exported, int8))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return model


class FakeExport:
    """Replaces the export process: writes the same files, or fails with a problem."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.kinds: list[str] = []

    def __call__(self, command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        assert command[:3] == [sys.executable, "-m", "vllm_lora_router.classifiers.models.onnx_export"]
        kind, _, target = command[3:]
        self.kinds.append(kind)
        (Path(target) / onnx_runtime.FLOAT32_FILE).write_bytes(b"graph")
        if self.problem:
            return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{self.problem}\n")
        (Path(target) / onnx_runtime.INT8_FILE).write_bytes(b"graph")
        (Path(target) / onnx_runtime.METADATA_FILE).write_text(json.dumps({"longest": 256, "prompt": "query: "}))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> FakeExport:
    exports = FakeExport()
    monkeypatch.setattr(subprocess, "run", exports)
    return exports


def load(
    folder: Path, *, int8: bool = False, kind: onnx_runtime.ModelKind = "embedding"
) -> tuple[onnx_runtime.ExportedModel, bool]:
    loaded: Any = onnx_runtime.load(kind, str(folder), int8=int8)
    return loaded


def test_a_model_is_exported_once_for_float32_and_int8(folder: Path, exports: FakeExport) -> None:
    exact, is_int8 = load(folder)
    assert (exact.longest, exact.prompt, is_int8) == (256, "query: ", False)
    assert load(folder, int8=True) == (exact, True)
    assert exports.kinds == ["embedding"]
    assert [file.name for file in exact.folder.parent.iterdir()] == [exact.folder.name]  # no partial export is left


def test_a_changed_model_or_another_kind_is_exported_again(folder: Path, exports: FakeExport) -> None:
    first, _ = load(folder)
    (folder / "model.safetensors").write_bytes(b"Weights")
    second, _ = load(folder)
    third, _ = load(folder, kind="domain")
    assert len({first.folder, second.folder, third.folder}) == 3
    assert exports.kinds == ["embedding", "embedding", "domain"]


def test_a_failed_export_is_reported_and_leaves_no_files(folder: Path, exports: FakeExport) -> None:
    exports.problem = "the ONNX graph differs by 0.5 from torch"
    with pytest.raises(
        ClassifierError, match=r"cannot be exported .*: the ONNX graph differs by 0\.5 .*; set runtime: torch"
    ):
        load(folder)
    assert not list((onnx_runtime.cache_folder() / "onnx").iterdir())


def test_an_unusable_export_folder_is_reported_with_the_variable_to_set(
    folder: Path, exports: FakeExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "file").write_text("")
    monkeypatch.setenv(onnx_runtime.CACHE_VARIABLE, str(folder.parent / "file"))
    with pytest.raises(ClassifierError, match="set another folder with VLLM_LORA_ROUTER_CACHE"):
        load(folder)


def test_an_export_that_other_users_can_change_is_not_used(folder: Path, exports: FakeExport) -> None:
    exported, _ = load(folder)
    for path in (exported.folder, exported.folder / onnx_runtime.FLOAT32_FILE, exported.folder.parent):
        before = path.stat().st_mode
        path.chmod(0o777)
        with pytest.raises(ClassifierError, match=r"run `chmod go-w .*set another folder with VLLM_LORA_ROUTER_CACHE"):
            load(folder)
        path.chmod(before)
    load(folder)


def test_an_export_of_another_process_is_used(
    folder: Path, exports: FakeExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_twice(command: list[str], **options: Any) -> Any:
        if not target.exists():
            target.mkdir()
            exports([*command[:-1], str(target)])
        return exports(command)

    target = onnx_runtime._export_folder("embedding", folder)
    monkeypatch.setattr(subprocess, "run", export_twice)
    assert load(folder)[0].folder == target


def test_missing_packages_are_reported_before_a_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None if name == "onnxscript" else object())
    message = r"config\.yaml: m\.runtime: onnx needs onnxscript; pip install 'vllm-lora-router\[onnx\]'"
    for call in (
        lambda: load_model("config.yaml: m", "domain", str(folder), "onnx", "cpu", pytest.fail),
        lambda: check_runtime("config.yaml: m", "onnx", "auto"),
    ):
        with pytest.raises(ClassifierError, match=message):
            call()
    check_runtime("config.yaml: m", "torch", "auto")


def test_onnx_runtime_supports_only_the_cpu(folder: Path) -> None:
    with pytest.raises(ClassifierError, match="onnx-int8 runs only on the CPU, not on cuda:1; set device: cpu"):
        load_model("config.yaml: m", "domain", str(folder), "onnx-int8", "cuda:1", pytest.fail)
    assert torch_device("auto", "onnx") == "cpu" and torch_device("cuda:1", "onnx") == "cuda:1"


def test_the_torch_runtime_uses_the_torch_loader(folder: Path) -> None:
    model: Any = object()
    assert load_model("m", "domain", str(folder), "torch", "cuda", lambda: model) is model
