"""The domain model: a sequence classifier of transformers whose labels stand for categories."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.labels import Mapped
from vllm_lora_router.classifiers.model_classifier import Choice, Part, Scores
from vllm_lora_router.classifiers.models import Network
from vllm_lora_router.classifiers.models.backend import load_network
from vllm_lora_router.classifiers.models.encoder import torch_device
from vllm_lora_router.classifiers.models.pytorch import SequenceNetwork
from vllm_lora_router.classifiers.models.registry import Model, Models
from vllm_lora_router.classifiers.models.truncation import windows
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.types import Method


class DomainScorer:
    """The probability of each category: the sum over the labels that stand for it."""

    method: Method = "domain"

    def __init__(self, loaded: Loaded, labels: Sequence[str], mapped: Sequence[Mapped], models: Models) -> None:
        """Loads the model, unless it is among `models`.

        Raises:
            ClassifierError: transformers is not installed, or the folder holds no such model.
        """
        settings = loaded.config.classifier.category_model
        self.labels = tuple(labels)
        categories = list(dict.fromkeys(one.category for one in mapped if one.category is not None))
        self.parts = [Part("probability", [Choice(category, settings.threshold) for category in categories])]
        self._membership = np.array(
            [[one.category == category for category in categories] for one in mapped], dtype=np.float32
        )  # [labels, categories]
        self._label_categories = [one.category for one in mapped]
        self._window_count = loaded.config.router.text.windows
        self.network, self.worker, of_model = load_model(loaded, models)
        self.runs_on = self.network.runs_on
        self.on_any_thread = self.network.on_any_thread
        longest = self.network.longest
        self.max_tokens = min(longest, settings.max_tokens or longest, loaded.config.router.text.max_tokens)
        outputs = self.worker.run_blocking(lambda: self.network([""], self.max_tokens)).shape[1]
        if outputs != len(labels):
            raise ClassifierError(
                f"{loaded.file}: classifier.category_model: {settings.model_id} has {outputs} labels, its mapping "
                f"names {len(labels)}"
            )
        known = (of_model, self.labels, self._label_categories, settings.threshold, self.max_tokens)
        self.fingerprint = hashlib.sha256(repr((known, self._window_count)).encode()).hexdigest()

    def windows(self, text: str) -> list[str]:
        return windows(text, self.network.tokenizer, self.max_tokens, self._window_count)

    def score(self, texts: Sequence[str]) -> list[Scores]:
        logits = self.network(texts, self.max_tokens).astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)  # [texts, labels]
        evidence = []
        for row in probabilities:
            best = row.argsort()[::-1][:3]
            evidence.append({"labels": {self.labels[int(label)]: round(float(row[label]), 4) for label in best}})
        return [Scores(probabilities @ self._membership, evidence)]


def load_model(loaded: Loaded, models: Models) -> Model:
    """The network of `classifier.category_model`, with its thread.

    Raises:
        ClassifierError: a package is not installed, or the model is not to be had.
    """
    settings = loaded.config.classifier.category_model
    source = str(model_folder(loaded) or settings.model_id)
    device = torch_device(settings.device, settings.runtime, use_cpu=settings.use_cpu)
    load = partial(_load, loaded, source, device)
    return models.get("domain", source, settings.runtime, device, load, settings.threads)


def read_labels(loaded: Loaded) -> list[str]:
    """The domain model's labels in the order of its outputs, from `category_mapping_path` or its own config.json.

    Reads JSON only.

    Raises:
        ClassifierError: a file is missing or has another form.
    """
    settings = loaded.config.classifier.category_model
    where = f"{loaded.file}: classifier.category_model."
    if settings.category_mapping_path:
        file = loaded.locate(settings.category_mapping_path)
        if file is None:
            raise ClassifierError(
                f"{where}category_mapping_path: no such file: {settings.category_mapping_path!r} (tried in "
                f"{loaded.file.parent} and {Path.cwd()})"
            )
        return _indexed(_json(file).get("idx_to_category"), f"{where}category_mapping_path: {file}: idx_to_category")
    folder = model_folder(loaded)
    if folder is None:
        from transformers import AutoConfig

        return _indexed(AutoConfig.from_pretrained(settings.model_id).id2label, f"{where}model_id: id2label")
    if (mapping := folder / "category_mapping.json").is_file():
        return _indexed(_json(mapping).get("idx_to_category"), f"{mapping}: idx_to_category")
    return _indexed(_json(folder / "config.json").get("id2label"), f"{where}model_id: {folder}/config.json: id2label")


def model_folder(loaded: Loaded) -> Path | None:
    """The domain model's folder; None when `model_id` is a hub id.

    Raises:
        ClassifierError: `model_id` is neither a folder nor to be had from the hub.
    """
    settings = loaded.config.classifier.category_model
    folder = loaded.locate(settings.model_id)
    place = f"{loaded.file}: classifier.category_model.model_id: "
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ClassifierError(f"{place}{folder} holds no config.json; it must be a model saved by transformers")
        if not any(folder.glob("*.safetensors")):
            raise ClassifierError(f"{place}{folder} holds no *.safetensors; save the model with save_pretrained")
        return folder
    try:
        from transformers import AutoConfig

        AutoConfig.from_pretrained(settings.model_id)
    except ImportError:
        raise ClassifierError(f"{place}needs transformers; pip install 'vllm-lora-router[models]'") from None
    except Exception:
        raise ClassifierError(
            f"{place}{settings.model_id!r} does not exist: no such folder in {loaded.file.parent} or {Path.cwd()}, and "
            "not to be had from the hub"
        ) from None
    return None


def check_files(loaded: Loaded) -> list[str]:
    """The domain model's labels, after a look at everything that can be seen without loading it.

    Raises:
        ClassifierError: the folder or the mapping is missing or wrong, or they do not fit each other.
    """
    folder = model_folder(loaded)
    labels = read_labels(loaded)
    if folder is not None:
        config = _json(folder / "config.json")
        own = config.get("id2label")
        outputs = len(own) if isinstance(own, dict) and own else config.get("num_labels", 2)
        if outputs != len(labels):
            raise ClassifierError(
                f"{loaded.file}: classifier.category_model: the model in {folder} has {outputs} labels, its mapping "
                f"names {len(labels)}"
            )
    return labels


def _load(loaded: Loaded, source: str, device: str) -> Network:
    place = f"{loaded.file}: classifier.category_model"
    settings = loaded.config.classifier.category_model
    load_torch = partial(_load_torch, loaded, source, device)
    return load_network(place, "domain", source, settings.runtime, device, load_torch, settings.threads)


def _load_torch(loaded: Loaded, source: str, device: str) -> Network:
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
    return SequenceNetwork(model, tokenizer, device)


def _indexed(mapping: Any, where: str) -> list[str]:
    if not isinstance(mapping, dict) or not mapping:
        raise ClassifierError(f'{where} must be an object such as {{"0": "biology", "1": "business"}}')
    try:
        by_index = {int(index): str(label) for index, label in mapping.items()}
    except ValueError:
        raise ClassifierError(f"{where}: its keys must be the numbers of the model's outputs") from None
    if sorted(by_index) != list(range(len(by_index))):
        raise ClassifierError(
            f"{where}: its keys must be 0 to {len(by_index) - 1}, each once; they are {sorted(by_index)}"
        )
    return [by_index[index] for index in range(len(by_index))]


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ClassifierError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ClassifierError(f"{file} must hold a JSON object")
    return value
