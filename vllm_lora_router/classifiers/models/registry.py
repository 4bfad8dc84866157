"""Models that are loaded once and shared by every configuration that asks for the same."""

import hashlib
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
from rich.filesize import decimal

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.worker import Worker, limit_cores
from vllm_lora_router.config.schema import Text

T = TypeVar("T")

# Weights are read into host memory and converted on their way to a device.
LOADING = 1.5


class Model(NamedTuple):
    """A loaded model and the one thread that may run it: a tokenizer in two threads at once is an error."""

    parts: Any
    worker: Worker
    fingerprint: str  # of where it came from, and of the files that lay there


class Models:
    """The models of one configuration."""

    def __init__(self, before: "Models | None" = None) -> None:
        """`before` are those of the configuration in force, which stays in memory until the new one is."""
        self._before = before._models if before is not None else None
        self._models: dict[Hashable, Model] = {}

    def get(
        self, method: str, source: str, settings: Hashable, device: str, load: Callable[[], Any], threads: int = 1
    ) -> Model:
        """The model at `source`, a folder or a hub id; `settings` are what else makes it another one.

        Args:
            threads: how many cores it may use on a CPU.

        Raises:
            ClassifierError: it would not fit beside those in force, or beside the engine on a GPU, or what `load`
                raises.
        """
        key = (method, source, settings, threads, device, _files(source))
        model = self._models.get(key) or (self._before or {}).get(key)
        if model is None or model.worker.stuck_s is not None:
            _check_room(method, source, device, beside=self._before is not None)
            fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()
            model = Model(load(), Worker(method, prepare=partial(limit_cores, threads)), fingerprint)
        self._models[key] = model
        return model


def _files(source: str) -> Hashable:
    """What changes when somebody writes another model into the folder."""
    files = [file for file in Path(source).iterdir() if file.is_file()] if Path(source).is_dir() else []
    found = ((file.name, file.stat()) for file in files)
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found))


def _check_room(method: str, source: str, device: str, *, beside: bool) -> None:
    """On a GPU a model also needs room when nothing is `beside` it: the engine has taken its share before."""
    if beside:
        needed = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))  # none: a hub id
        if needed * LOADING > (free := psutil.virtual_memory().available):
            raise _no_room_beside(source, needed, "host memory", free)
    if not device.startswith("cuda"):
        return
    # Not at the top: it counts what the modules load that load their models by this one.
    from vllm_lora_router.classifiers.models.gpu_memory import lower, model_bytes

    needed = model_bytes(method, source, Text().max_tokens)
    if needed is None:
        return
    try:
        import torch

        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
    except Exception:
        return  # whoever loads it says what is wrong with torch or the device
    if needed <= free:
        return
    if beside:
        raise _no_room_beside(source, needed, device, free)
    figure, by = lower(total, free, own, needed)
    way = f"start with --gpu-memory-utilization {figure:.2f} or lower, and at least {by:.2f} lower than now, or "
    raise ClassifierError(
        f"the model in {source} needs {decimal(needed)} of {device}'s {decimal(total)} for its weights and a batch, "
        f"and {decimal(free)} are free; {way if figure else ''}set device: cpu"
    )


def _no_room_beside(source: str, needed: int, place: str, free: int) -> ClassifierError:
    return ClassifierError(
        f"the model in {source} ({decimal(needed)}) does not fit beside those in force: {place} has "
        f"{decimal(free)} left; restart the server with the new configuration"
    )
