"""The domain scorer: a sequence classifier from transformers whose labels are mapped to categories."""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.labels import LabelMapping, model_folder
from vllm_lora_router.classifiers.model_classifier import ScoreColumn, ScoreGroup, Scores
from vllm_lora_router.classifiers.models import TextModel
from vllm_lora_router.classifiers.models.backend import load_model
from vllm_lora_router.classifiers.models.pytorch import TorchSequenceClassifier
from vllm_lora_router.classifiers.models.registry import LoadedModel, ModelRegistry
from vllm_lora_router.classifiers.models.source import torch_device
from vllm_lora_router.classifiers.models.truncation import windows
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.types import Method


class DomainScorer:
    """Scores each category by the sum of the probabilities of its labels."""

    method: Method = "domain"

    def __init__(
        self, loaded: LoadedConfig, labels: Sequence[str], mapping: Sequence[LabelMapping], models: ModelRegistry
    ) -> None:
        """Load the model, unless `models` already has it.

        Raises:
            ClassifierError: transformers is not installed, or the folder does not contain a sequence classifier.
        """
        settings = loaded.config.classifier.category_model
        self.labels = tuple(labels)
        categories = list(dict.fromkeys(label.category for label in mapping if label.category is not None))
        columns = [ScoreColumn(category, settings.threshold) for category in categories]
        self.groups = [ScoreGroup("probability", columns)]
        self._membership = np.array(
            [[label.category == category for category in categories] for label in mapping], dtype=np.float32
        )  # [labels, categories]
        self._label_categories = [label.category for label in mapping]
        self._window_count = loaded.config.router.text.windows
        self.model, self.worker, model_fingerprint = load_domain_model(loaded, models)
        self.runs_on = self.model.runs_on
        self.thread_safe = self.model.thread_safe
        limit = self.model.max_length
        self.max_tokens = min(limit, settings.max_tokens or limit, loaded.config.router.text.max_tokens)
        outputs = self.worker.run_blocking(lambda: self.model([""], self.max_tokens)).shape[1]
        if outputs != len(labels):
            raise ClassifierError(
                f"{loaded.file}: classifier.category_model: {settings.model_id} has {outputs} labels, but its mapping "
                f"names {len(labels)}"
            )
        inputs = (model_fingerprint, self.labels, self._label_categories, settings.threshold, self.max_tokens)
        self.fingerprint = hashlib.sha256(repr((inputs, self._window_count)).encode()).hexdigest()

    def windows(self, text: str) -> list[str]:
        return windows(text, self.model.tokenizer, self.max_tokens, self._window_count)

    def score(self, texts: Sequence[str]) -> list[Scores]:
        logits = self.model(texts, self.max_tokens).astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)  # [texts, labels]
        evidence = []
        for row in probabilities:
            best = row.argsort()[::-1][:3]
            evidence.append({"labels": {self.labels[int(label)]: round(float(row[label]), 4) for label in best}})
        return [Scores(probabilities @ self._membership, evidence)]


def load_domain_model(loaded: LoadedConfig, models: ModelRegistry) -> LoadedModel:
    """Return the model of `classifier.category_model` and its worker.

    Raises:
        ClassifierError: A package is not installed, or the model is not available.
    """
    settings = loaded.config.classifier.category_model
    source = str(model_folder(loaded) or settings.model_id)
    device = torch_device(settings.device, settings.runtime, use_cpu=settings.use_cpu)
    load = partial(_load, loaded, source, device)
    return models.get("domain", source, settings.runtime, device, load, settings.threads)


def _load(loaded: LoadedConfig, source: str, device: str) -> TextModel:
    place = f"{loaded.file}: classifier.category_model"
    settings = loaded.config.classifier.category_model
    load_torch = partial(_load_torch, loaded, source, device)
    return load_model(place, "domain", source, settings.runtime, device, load_torch, settings.threads)


def _load_torch(loaded: LoadedConfig, source: str, device: str) -> TextModel:
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ClassifierError(
            f"classifier.category_model needs transformers and torch ({error}); pip install 'vllm-lora-router[models]'"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        model = model.to(device, dtype).eval()
    except Exception as error:
        text = str(error).strip().partition("\n")[0][:300]
        raise ClassifierError(
            f"{loaded.file}: classifier.category_model.model_id: {source} cannot be loaded as a sequence classifier: "
            f"{text}"
        ) from None
    return TorchSequenceClassifier(model, tokenizer, device)
