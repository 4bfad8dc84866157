"""Models that are loaded once and shared by every configuration that asks for the same."""

import hashlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
from rich.filesize import decimal

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.worker import Worker, one_core

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

    def get(self, method: str, source: str, settings: Hashable, device: str, load: Callable[[], Any]) -> Model:
        """The model at `source`, a folder or a hub id; `settings` are what else makes it another one.

        Raises:
            ClassifierError: it would not fit beside those in force, or what `load` raises.
        """
        key = (method, source, settings, device, _files(source))
        model = self._models.get(key) or (self._before or {}).get(key)
        if model is None or model.worker.stuck_s is not None:
            if self._before is not None:
                _check_room(source, device)
            fingerprint = hashlib.sha256(repr(key).encode()).hexdigest()
            model = Model(load(), Worker(method, prepare=one_core), fingerprint)
        self._models[key] = model
        return model


def _files(source: str) -> Hashable:
    """What changes when somebody writes another model into the folder."""
    files = [file for file in Path(source).iterdir() if file.is_file()] if Path(source).is_dir() else []
    found = ((file.name, file.stat()) for file in files)
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found))


def _check_room(source: str, device: str) -> None:
    needed = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))  # none: a hub id
    rooms = [("host memory", psutil.virtual_memory().available)]
    if device.startswith("cuda"):
        import torch

        rooms.append((device, torch.cuda.mem_get_info(device)[0]))
    for place, free in rooms:
        if needed * LOADING > free:
            raise ClassifierError(
                f"the model in {source} ({decimal(needed)}) does not fit beside those in force: {place} has "
                f"{decimal(free)} left; restart the server with the new configuration"
            )
