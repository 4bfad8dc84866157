"""Loaded models, shared by all configurations that need the same model."""

import hashlib
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
from rich.filesize import decimal

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.gpu_memory import model_bytes, suggest_utilization
from vllm_lora_router.classifiers.models.worker import Worker, limit_cores
from vllm_lora_router.config.schema import TextSettings

T = TypeVar("T")

# Host memory needed to load a model, relative to its files: weights are read into host memory and converted there.
LOADING_FACTOR = 1.5


class LoadedModel(NamedTuple):
    """A loaded model and the only thread that may run it, because a tokenizer must not run in two threads at once."""

    model: Any
    worker: Worker
    fingerprint: str  # digest of the model's source, its settings and its files


class ModelRegistry:
    """The models of one configuration."""

    def __init__(self, before: "ModelRegistry | None" = None) -> None:
        """Create a registry.

        Args:
            before: The models of the configuration in effect. They stay in memory until the new configuration
                replaces it.
        """
        self._before = before._models if before is not None else None
        self._models: dict[Hashable, LoadedModel] = {}

    def get(
        self, method: str, source: str, settings: Hashable, device: str, load: Callable[[], Any], threads: int = 1
    ) -> LoadedModel:
        """Return a model, and load it if no configuration has it yet.

        Args:
            source: A folder or a hub id.
            settings: Other settings that distinguish this model from others with the same source.
            load: Loads the model.
            threads: Number of CPU cores that the model may use.

        Raises:
            ClassifierError: The model does not fit into memory together with the models in effect, or together with
                the engine on a GPU. Errors of `load` are raised, too.
        """
        key = (method, source, settings, threads, device, _file_states(source))
        model = self._models.get(key) or (self._before or {}).get(key)
        if model is None or model.worker.stuck_s is not None:
            _check_memory(method, source, device, beside=self._before is not None)
            fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()
            model = LoadedModel(load(), Worker(method, prepare=partial(limit_cores, threads)), fingerprint)
        self._models[key] = model
        return model


def _file_states(source: str) -> Hashable:
    """Return the state of the files in a folder, which changes when another model is written into it."""
    files = [file for file in Path(source).iterdir() if file.is_file()] if Path(source).is_dir() else []
    states = ((file.name, file.stat()) for file in files)
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in states))


def _check_memory(method: str, source: str, device: str, *, beside: bool) -> None:
    """Check that a model fits into memory.

    On a GPU this is checked even for the first configuration, because the engine has allocated its share already.

    Args:
        beside: Whether the models of a configuration in effect stay loaded next to this model.
    """
    if beside:
        needed = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))  # 0 for a hub id
        if needed * LOADING_FACTOR > (free := psutil.virtual_memory().available):
            raise _no_room_error(source, needed, "host memory", free)
    if not device.startswith("cuda"):
        return
    needed = model_bytes(method, source, TextSettings().max_tokens)
    if needed is None:
        return
    try:
        import torch

        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
    except Exception:
        return  # loading the model reports what is wrong with torch or the device
    if needed <= free:
        return
    if beside:
        raise _no_room_error(source, needed, device, free)
    utilization, reduction = suggest_utilization(total, free, reserved, needed)
    remedy = (
        f"start with --gpu-memory-utilization {utilization:.2f} or lower, and at least {reduction:.2f} lower than now, "
        "or "
    )
    raise ClassifierError(
        f"the model in {source} needs {decimal(needed)} of {device}'s {decimal(total)} for its weights and a batch, "
        f"but {decimal(free)} are free; {remedy if utilization else ''}set device: cpu"
    )


def _no_room_error(source: str, needed: int, place: str, free: int) -> ClassifierError:
    return ClassifierError(
        f"the model in {source} ({decimal(needed)}) does not fit next to the models in effect: {place} has "
        f"{decimal(free)} free; restart the server with the new configuration"
    )
