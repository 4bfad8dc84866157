"""Models that ONNX Runtime runs on a CPU: exported when they are first used, and kept."""

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

Kind = Literal["embedding", "domain"]  # what a model's outputs are: a unit vector, or logits

CACHE_VARIABLE = "VLLM_LORA_ROUTER_CACHE"
EXACT, INT8, ABOUT = "model.onnx", "model.int8.onnx", "export.json"
EXTRA = "pip install 'vllm-lora-router[onnx]'"
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
EXPORT_SECONDS = 900
READ = ("*.json", "*.safetensors", "*.txt", "*.model")  # the files of a hub's model that make it


@dataclass(frozen=True)
class Exported:
    """A folder with an export, and what is not in its graph."""

    folder: Path
    longest: int  # tokens, special ones included
    prompt: str = ""  # what goes before every text


class OnnxNetwork:
    """A graph from `input_ids` and `attention_mask` to one row a text."""

    on_any_thread = False

    def __init__(self, exported: Exported, tokenizer: Any, *, int8: bool, threads: int = 1) -> None:
        """Threads that have nothing to do do not spin: the engine needs the cores."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(exported.folder / (INT8 if int8 else EXACT)), options, providers=["CPUExecutionProvider"]
        )
        self._prompt = exported.prompt
        self.tokenizer = tokenizer
        self.longest = exported.longest
        self.runs_on = "ONNX Runtime int8, cpu" if int8 else "ONNX Runtime, cpu"

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        batch = self.tokenizer(
            [self._prompt + text for text in texts],
            padding=True,
            truncation=True,
            max_length=min(max_tokens, self.longest),
            return_tensors="np",
        )
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        return np.asarray(self._session.run(None, inputs)[0])


def load(kind: Kind, source: str, *, int8: bool, threads: int = 1) -> OnnxNetwork:
    """The model at `source`, a folder or a hub id. Blocks, for a minute or so when it was not exported before.

    Raises:
        ClassifierError: the model is not to be had, cannot be exported, or the export cannot be kept.
    """
    with LOAD_LOCK:
        from transformers import AutoTokenizer

    folder = _folder(source)
    exported = _kept(kind, folder, int8=int8) or _export(kind, folder, int8=int8)
    with LOAD_LOCK:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return OnnxNetwork(exported, tokenizer, int8=int8, threads=threads)


def missing() -> str | None:
    """What must be installed first, or None."""
    packages = [package for package in PACKAGES if find_spec(package) is None]
    return f"needs {', '.join(packages)}; {EXTRA}" if packages else None


def cache() -> Path:
    """Where exports are kept: `$VLLM_LORA_ROUTER_CACHE`, or under the user's own cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vllm-lora-router"


def _folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(READ)))
    except Exception as error:
        raise ClassifierError(f"the model {source!r} is not to be had from the hub: {error}") from None


def _kept_in(kind: Kind, folder: Path) -> Path:
    """By content, so that a model that changed in its folder is exported again."""
    digest = hashlib.sha256(repr((kind, version("torch"), version("transformers"))).encode())
    for file in sorted(file for pattern in READ for file in folder.rglob(pattern)):
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return cache() / "onnx" / digest.hexdigest()[:32]


def _kept(kind: Kind, folder: Path, *, int8: bool) -> Exported | None:
    return _read(_kept_in(kind, folder), int8=int8)


def _read(kept: Path, *, int8: bool) -> Exported | None:
    if not (kept / (INT8 if int8 else EXACT)).is_file():
        return None
    about = json.loads((kept / ABOUT).read_text("utf-8"))
    return Exported(kept, about["longest"], about["prompt"])


def _export(kind: Kind, folder: Path, *, int8: bool) -> Exported:
    kept = _kept_in(kind, folder)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".export-"))
    except OSError as error:
        raise ClassifierError(
            f"the export of {folder} cannot be kept in {kept.parent}: {error}; name another folder by {CACHE_VARIABLE}"
        ) from None
    # In a process of its own, which gives back the gigabytes that an export takes and leaves torch here as it is.
    command = [sys.executable, "-m", "vllm_lora_router.classifiers.models.onnx_export", kind, str(folder), str(made)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False)
        problem = done.stderr.strip().rpartition("\n")[2] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not done after {EXPORT_SECONDS} s"
    if not problem and not kept.exists():
        try:
            made.rename(kept)
        except OSError as error:  # another process was first, or the disk is full
            problem = "" if kept.exists() else str(error)
    shutil.rmtree(made, ignore_errors=True)
    exported = _read(kept, int8=int8) if not problem else None
    if exported is None:
        raise ClassifierError(f"{folder} cannot be exported for ONNX Runtime: {problem}; set runtime: torch")
    return exported
