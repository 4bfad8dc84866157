"""A head in a folder: head.safetensors with its numbers, head.json with what they mean and how good they were found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vllm_lora_router.classifiers.heads.head import Head
from vllm_lora_router.classifiers.heads.kernel import Kernel

VERSION = 1
# Two questions that say which encoder it was: another one puts them elsewhere.
PROBES = ("What is the weather like today?", "Please translate this contract into French.")
# How far from where the head's encoder puts a probe it may lie: a cosine of 0.9. The same weights in int8 come to 0.98.
FARTHEST = (2 - 2 * 0.9) ** 0.5


class HeadError(ValueError):
    """A folder without a head that can be used; the message names the file and the way out."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A head as `fit` wrote it."""

    head: Head
    encoder: str  # the model_id of the encoder that it was fitted on
    probes: np.ndarray  # float32 [probes, dimensions]: where that encoder puts `PROBES`
    thresholds: Mapping[str, float]  # category -> what its probability must reach
    about: Mapping[str, Any]  # the data's digest, how it was chosen, the figures that were measured


class _Json(msgspec.Struct, forbid_unknown_fields=True):
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


def write(folder: Path, stored: Stored) -> None:
    """Writes both files; the folder is made where it is not there."""
    from safetensors.numpy import save_file

    head = stored.head
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"points": head.points, "weights": head.weights, "bias": head.bias, "probes": stored.probes}
    file = folder / "head.safetensors"
    save_file({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}, file)
    said = _Json(
        VERSION,
        stored.encoder,
        head.kernel.name,
        head.kernel.parameter,
        list(head.outputs),
        list(head.names),
        head.scale,
        head.none if np.isfinite(head.none) else None,
        dict(stored.thresholds),
        dict(stored.about),
    )
    text = json.dumps(msgspec.to_builtins(said), indent=2, ensure_ascii=False)
    (folder / "head.json").write_text(text + "\n", encoding="utf-8")
    # safetensors 0.8 writes it for its owner alone, who need not be who serves.
    file.chmod((folder / "head.json").stat().st_mode)


def read(folder: Path) -> Stored:
    """The head in a folder.

    Raises:
        HeadError: a file is missing, has another form, or the two do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file, numbers = folder / "head.json", folder / "head.safetensors"
    try:
        said = msgspec.json.decode(file.read_bytes(), type=_Json)
        if said.version != VERSION:
            raise HeadError(f"{file}: is of version {said.version}, and this package reads {VERSION}; fit it again")
        tensors = load_file(numbers)
    except FileNotFoundError as error:
        raise HeadError(f"{error.filename or numbers}: no such file; vllm-lora-router fit writes a head") from None
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise HeadError(f"{folder}: cannot be read as a head ({error}); fit it again") from None
    problem = _problem(said, tensors)
    if problem:
        raise HeadError(f"{folder}: cannot be used: {problem}; fit it again")
    none = -np.inf if said.none is None else said.none
    kernel = Kernel(said.kernel, said.parameter)  # pyright: ignore[reportArgumentType]
    points, weights, bias = (tensors[name] for name in ("points", "weights", "bias"))
    head = Head(kernel, points, weights, bias, said.outputs, said.scale, none, said.names)
    return Stored(head, said.encoder, tensors["probes"], said.thresholds, said.about)


def is_of(stored: Stored, probes: np.ndarray) -> bool:
    """Whether an encoder that puts `PROBES` there, float32 [probes, dimensions], is the one that it was fitted on."""
    if probes.shape != stored.probes.shape:
        return False
    # A distance, for a static encoder that knows no word of it puts a probe at the origin.
    return bool((np.linalg.norm(probes - stored.probes, axis=1) <= FARTHEST).all())


def _problem(said: _Json, tensors: Mapping[str, np.ndarray]) -> str | None:
    if missing := [name for name in ("points", "weights", "bias", "probes") if name not in tensors]:
        return f"head.safetensors has no {missing[0]}"
    shapes: Mapping[str, Sequence[int]] = {name: tensor.shape for name, tensor in tensors.items()}
    if any(tensor.dtype != np.float32 or not np.isfinite(tensor).all() for tensor in tensors.values()):
        return "head.safetensors has numbers that are not finite, or not float32"
    outputs, points = len(said.outputs), shapes["points"]
    wanted = {"points": (points[0], points[-1]), "weights": (points[0], outputs), "bias": (outputs,)}
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            return f"head.safetensors: {name} is {list(shapes[name])}, and by head.json it must be {list(shape)}"
    if said.kernel not in ("linear", "rbf", "cosine"):
        return f"head.json: kernel {said.kernel!r} is not known"
    if not outputs or set(said.thresholds) != set(said.outputs):
        return "head.json: thresholds must name the categories of outputs, each once"
    if not all(0 <= threshold <= 1 for threshold in said.thresholds.values()) or said.scale <= 0:
        return "head.json: a threshold is not between 0 and 1, or scale is not positive"
    return None
