"""Models that run with ONNX Runtime on a CPU. A model is exported when it is first used, and the export is kept."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.pytorch import LOAD_LOCK
from vllm_lora_router.file_access import check_trusted

ModelKind = Literal["embedding", "domain"]  # the model's outputs: unit vectors or logits

CACHE_VARIABLE = "VLLM_LORA_ROUTER_CACHE"
FLOAT32_FILE, INT8_FILE, METADATA_FILE = "model.onnx", "model.int8.onnx", "export.json"
EXTRA = "pip install 'vllm-lora-router[onnx]'"
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
EXPORT_TIMEOUT_S = 900
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # the files of a hub model that are needed and hashed


@dataclass(frozen=True)
class ExportedModel:
    """A folder with an export, and the settings that the graph does not contain."""

    folder: Path
    longest: int  # maximum number of tokens, including special tokens
    prompt: str = ""  # prefix of every text


class OnnxModel:
    """A graph that maps `input_ids` and `attention_mask` to one row for each text."""

    thread_safe = False

    def __init__(self, exported: ExportedModel, tokenizer: Any, *, int8: bool, threads: int = 1) -> None:
        """Load the graph. Idle threads do not spin, because the engine needs the cores."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(exported.folder / (INT8_FILE if int8 else FLOAT32_FILE)), options, providers=["CPUExecutionProvider"]
        )
        self._prompt = exported.prompt
        self.tokenizer = tokenizer
        self.max_length = exported.longest
        self.runs_on = "ONNX Runtime int8, cpu" if int8 else "ONNX Runtime, cpu"

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        batch = self.tokenizer(
            [self._prompt + text for text in texts],
            padding=True,
            truncation=True,
            max_length=min(max_tokens, self.max_length),
            return_tensors="np",
        )
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        return np.asarray(self._session.run(None, inputs)[0])


def load(kind: ModelKind, source: str, *, int8: bool, threads: int = 1) -> OnnxModel:
    """Load a model from a folder or a hub id. Blocks, for about a minute if the model has to be exported.

    Raises:
        ClassifierError: The model is not available or cannot be exported, or the export cannot be stored.
    """
    with LOAD_LOCK:
        from transformers import AutoTokenizer

    folder = _model_folder(source)
    exported = _read_export(_export_folder(kind, folder), int8=int8) or _export(kind, folder, int8=int8)
    with LOAD_LOCK:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return OnnxModel(exported, tokenizer, int8=int8, threads=threads)


def missing_packages() -> str | None:
    """Return the packages that have to be installed and the command for it, or None."""
    packages = [package for package in PACKAGES if find_spec(package) is None]
    return f"needs {', '.join(packages)}; {EXTRA}" if packages else None


def cache_folder() -> Path:
    """Return the folder for exports: `$VLLM_LORA_ROUTER_CACHE`, or a folder in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vllm-lora-router"


def _model_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(MODEL_FILES)))
    except Exception as error:
        raise ClassifierError(f"the model {source!r} is not available from the hub: {error}") from None


def _export_folder(kind: ModelKind, folder: Path) -> Path:
    """Return the folder of a model's export. It is named by content, so a changed model is exported again."""
    digest = hashlib.sha256(repr((kind, version("torch"), version("transformers"))).encode())
    for file in sorted(file for pattern in MODEL_FILES for file in folder.rglob(pattern)):
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return cache_folder() / "onnx" / digest.hexdigest()[:32]


def _read_export(folder: Path, *, int8: bool) -> ExportedModel | None:
    file = folder / (INT8_FILE if int8 else FLOAT32_FILE)
    if not file.is_file():
        return None
    try:
        for path in (folder, file, folder / METADATA_FILE):
            check_trusted(path)
    except PermissionError as error:
        raise ClassifierError(
            f"the export in {folder} is not used: {error}, or set another folder with {CACHE_VARIABLE}"
        ) from None
    metadata = json.loads((folder / METADATA_FILE).read_text("utf-8"))
    return ExportedModel(folder, metadata["longest"], metadata["prompt"])


def _export(kind: ModelKind, folder: Path, *, int8: bool) -> ExportedModel:
    target = _export_folder(kind, folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    except OSError as error:
        raise ClassifierError(
            f"the export of {folder} cannot be stored in {target.parent}: {error}; set another folder with "
            f"{CACHE_VARIABLE}"
        ) from None
    # A separate process, so that the gigabytes of an export are released and torch's state here does not change.
    command = [sys.executable, "-m", "vllm_lora_router.classifiers.models.onnx_export", kind, str(folder), str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S, check=False)
        problem = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not finished after {EXPORT_TIMEOUT_S} s"
    if not problem and not target.exists():
        try:
            partial.rename(target)
        except OSError as error:  # another process was faster, or the disk is full
            problem = "" if target.exists() else str(error)
    shutil.rmtree(partial, ignore_errors=True)
    exported = _read_export(target, int8=int8) if not problem else None
    if exported is None:
        raise ClassifierError(f"{folder} cannot be exported for ONNX Runtime: {problem}; set runtime: torch")
    return exported
