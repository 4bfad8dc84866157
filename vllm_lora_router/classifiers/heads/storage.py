"""Heads on disk: head.safetensors with the arrays, and head.json with settings, thresholds and measured quality."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vllm_lora_router.classifiers.heads.head import Head, Kernel

VERSION = 1
# Two texts whose embeddings identify the encoder, because another encoder embeds them differently.
PROBES = ("What is the weather like today?", "Please translate this contract into French.")
# Maximum distance between a probe's embedding and the stored one. It corresponds to a cosine of 0.9; the same weights
# in int8 reach 0.98.
MAX_PROBE_DISTANCE = (2 - 2 * 0.9) ** 0.5


class HeadError(ValueError):
    """A folder does not contain a usable head. The message names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class StoredHead:
    """A head as `vllm-lora-router fit` writes it."""

    head: Head
    encoder: str  # model_id of the encoder that the head was fitted on
    probes: np.ndarray  # float32 [probes, dimensions]: that encoder's embeddings of `PROBES`
    thresholds: Mapping[str, float]  # category -> the probability that it has to reach
    metadata: Mapping[str, Any]  # digest of the data, the selection of the head, measured quality


class _HeadFile(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    encoder: str
    kernel: str
    parameter: float
    outputs: list[str]
    names: list[str]
    scale: float
    none: float | None
    thresholds: dict[str, float]
    about: dict[str, Any]


def write_head(folder: Path, stored: StoredHead) -> None:
    """Write both files. The folder is created if it does not exist."""
    head = stored.head
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"points": head.points, "weights": head.weights, "bias": head.bias, "probes": stored.probes}
    file = folder / "head.safetensors"
    save_file({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}, file)
    settings = _HeadFile(
        VERSION,
        stored.encoder,
        head.kernel.name,
        head.kernel.parameter,
        list(head.outputs),
        list(head.names),
        head.scale,
        head.none_score if np.isfinite(head.none_score) else None,
        dict(stored.thresholds),
        dict(stored.metadata),
    )
    text = json.dumps(msgspec.to_builtins(settings), indent=2, ensure_ascii=False)
    (folder / "head.json").write_text(text + "\n", encoding="utf-8")
    # safetensors 0.8 creates files that only their owner can read, but the server may run as another user.
    file.chmod((folder / "head.json").stat().st_mode)


def read_head(folder: Path) -> StoredHead:
    """Return the head in a folder.

    Raises:
        HeadError: A file is missing or has an unexpected structure, or the files do not match each other.
    """
    file, array_file = folder / "head.json", folder / "head.safetensors"
    try:
        settings = msgspec.json.decode(file.read_bytes(), type=_HeadFile)
        if settings.version != VERSION:
            raise HeadError(f"{file}: has version {settings.version}, but this package reads {VERSION}; fit it again")
        tensors = load_file(array_file)
    except FileNotFoundError as error:
        raise HeadError(f"{error.filename or array_file}: no such file; vllm-lora-router fit writes a head") from None
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise HeadError(f"{folder}: cannot be read as a head ({error}); fit it again") from None
    problem = _problem(settings, tensors)
    if problem:
        raise HeadError(f"{folder}: cannot be used: {problem}; fit it again")
    none_score = -np.inf if settings.none is None else settings.none
    kernel = Kernel(settings.kernel, settings.parameter)  # pyright: ignore[reportArgumentType]
    points, weights, bias = (tensors[name] for name in ("points", "weights", "bias"))
    head = Head(kernel, points, weights, bias, settings.outputs, settings.scale, none_score, settings.names)
    return StoredHead(head, settings.encoder, tensors["probes"], settings.thresholds, settings.about)


def matches_encoder(stored: StoredHead, probes: np.ndarray) -> bool:
    """Return whether a head was fitted on the encoder that gives these embeddings of `PROBES`.

    Args:
        probes: float32 [probes, dimensions].
    """
    if probes.shape != stored.probes.shape:
        return False
    # The distance instead of the cosine, because a static encoder gives a zero vector for a probe of unknown words.
    return bool((np.linalg.norm(probes - stored.probes, axis=1) <= MAX_PROBE_DISTANCE).all())


def _problem(settings: _HeadFile, tensors: Mapping[str, np.ndarray]) -> str | None:
    if missing := [name for name in ("points", "weights", "bias", "probes") if name not in tensors]:
        return f"head.safetensors has no {missing[0]}"
    shapes: Mapping[str, Sequence[int]] = {name: tensor.shape for name, tensor in tensors.items()}
    if any(tensor.dtype != np.float32 or not np.isfinite(tensor).all() for tensor in tensors.values()):
        return "head.safetensors has numbers that are not finite, or not float32"
    outputs, points = len(settings.outputs), shapes["points"]
    expected = {"points": (points[0], points[-1]), "weights": (points[0], outputs), "bias": (outputs,)}
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            return f"head.safetensors: {name} is {list(shapes[name])}, but by head.json it must be {list(shape)}"
    if settings.kernel not in ("linear", "rbf", "cosine"):
        return f"head.json: unknown kernel {settings.kernel!r}"
    if not outputs or set(settings.thresholds) != set(settings.outputs):
        return "head.json: thresholds must name the categories of outputs, each once"
    if not all(0 <= threshold <= 1 for threshold in settings.thresholds.values()) or settings.scale <= 0:
        return "head.json: a threshold is not between 0 and 1, or scale is not positive"
    return None
