"""The head that a configuration names or describes, on the configured encoder."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.heads.few_shot import FewShotFit, fit_few_shot
from vllm_lora_router.classifiers.heads.head import Head
from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings
from vllm_lora_router.classifiers.heads.storage import PROBES, HeadError, StoredHead, matches_encoder, read_head
from vllm_lora_router.classifiers.models.batcher import MAX_BATCH_SIZE
from vllm_lora_router.classifiers.models.encoder import Encoder, load_encoder
from vllm_lora_router.config.head_source import head_source, head_texts
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.text import suggest

DEFAULT_THRESHOLD = 0.5  # the category is more likely right than wrong


@dataclass(frozen=True, eq=False)
class ConfiguredHead:
    """A head with the thresholds of its categories."""

    head: Head
    thresholds: Mapping[str, float]  # for every category of the head
    few_shot: FewShotFit | None = None  # set if the head was fitted from the configuration itself

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything that the head's answers depend on."""
        head = self.head
        settings = (head.kernel, head.outputs, head.scale, head.none_score, self.thresholds)
        digest = hashlib.sha256(repr(settings).encode())
        for array in (head.points, head.weights, head.bias):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_head(loaded: LoadedConfig, encoder: Encoder) -> ConfiguredHead | None:
    """Return the head of `classifier.embedding_model`, or None if the configuration uses none. Blocks.

    Raises:
        ClassifierError: The folder contains no head, the head belongs to another encoder or to unknown categories, or
            the configuration has too few texts to fit one.
    """
    source = head_source(loaded.config)
    if source is None:
        return None
    if source == "folder":
        stored = read_configured_head(loaded)
        _check_encoder(loaded, stored, encoder)
        return ConfiguredHead(stored.head, _thresholds(loaded, stored.head, stored.thresholds))
    few_shot = fit_few_shot(*embed_examples(loaded, encoder))
    return ConfiguredHead(few_shot.head, _thresholds(loaded, few_shot.head, {}), few_shot)


def check_head(loaded: LoadedConfig) -> None:
    """Check the head in the configured folder, and that it belongs to the encoder, which is loaded on the CPU. Blocks.

    Raises:
        ClassifierError: As for `load_head`, or the encoder cannot be loaded.
    """
    stored = read_configured_head(loaded)
    classifier = loaded.config.classifier
    settings = classifier.embedding_model.model_copy(update={"device": "cpu"})
    on_cpu = loaded.config.model_copy(
        update={"classifier": classifier.model_copy(update={"embedding_model": settings})}
    )
    _check_encoder(loaded, stored, load_encoder(replace(loaded, config=on_cpu)))


def _check_encoder(loaded: LoadedConfig, stored: StoredHead, encoder: Encoder) -> None:
    if not matches_encoder(stored, encoder.encode_blocking(PROBES)):
        settings = loaded.config.classifier.embedding_model
        raise ClassifierError(
            f"{_place(loaded)}: {settings.head} was fitted on {stored.encoder}, which is another encoder than "
            f"{settings.model_id}; set model_id to that encoder, or fit the head again"
        )


def embed_examples(loaded: LoadedConfig, encoder: Encoder) -> tuple[LabelledEmbeddings, np.ndarray]:
    """Return the embedded examples and descriptions of all categories, and which of them are examples.

    Returns:
        The embeddings, and bool [texts]: True for an example, False for a description.

    Raises:
        ClassifierError: Fewer than two categories have examples or a description.
    """
    texts = head_texts(loaded.config)
    if len(texts) < 2:
        raise ClassifierError(
            f"{_place(loaded)}: a head needs at least two categories with examples or a description, but "
            f"{len(texts)} of them has any; add some to at least two categories"
        )
    names = tuple(texts)
    flat = [text for of_category in texts.values() for text in of_category]
    is_example = np.array([text.is_example for text in flat])
    outputs = np.repeat(np.arange(len(names)), [len(of_category) for of_category in texts.values()])
    # The memory of a device is planned for batches of this size.
    batches = [
        [text.text for text in flat[start : start + MAX_BATCH_SIZE]] for start in range(0, len(flat), MAX_BATCH_SIZE)
    ]
    vectors = np.concatenate([encoder.encode_blocking(batch) for batch in batches])
    return LabelledEmbeddings(vectors, outputs, names, names), is_example


def read_configured_head(loaded: LoadedConfig) -> StoredHead:
    """Return the head in the folder that the configuration names.

    Raises:
        ClassifierError: The folder does not exist or cannot be read, or the head has categories that the configuration
            does not have.
    """
    name = loaded.config.classifier.embedding_model.head or ""
    folder = loaded.locate(name)
    if folder is None:
        raise ClassifierError(
            f"{_place(loaded)}: no such folder: {name!r} (tried in {loaded.file.parent} and {Path.cwd()}); "
            "vllm-lora-router fit writes one"
        )
    try:
        stored = read_head(folder)
    except HeadError as error:
        raise ClassifierError(f"{_place(loaded)}: {error}") from None
    names = [category.name for category in loaded.config.categories]
    for category in stored.head.categories:
        if category not in names:
            raise ClassifierError(
                f"{_place(loaded)}: {folder} has the category {category!r}, which this file does not have"
                f"{suggest(category, names)}; fit the head again, or add the category"
            )
    return stored


def _thresholds(loaded: LoadedConfig, head: Head, stored: Mapping[str, float]) -> dict[str, float]:
    settings = loaded.config.classifier.embedding_model
    return {
        category: settings.thresholds.get(
            category, stored.get(category, DEFAULT_THRESHOLD) if settings.threshold is None else settings.threshold
        )
        for category in head.categories
    }


def _place(loaded: LoadedConfig) -> str:
    return f"{loaded.file}: classifier.embedding_model.head"
