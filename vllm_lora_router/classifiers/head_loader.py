"""The head that a configuration asks for, on the encoder that it names."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.heads.few_shot import Few, fit_few
from vllm_lora_router.classifiers.heads.head import Head
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled
from vllm_lora_router.classifiers.heads.storage import PROBES, HeadError, Stored, is_of, read
from vllm_lora_router.classifiers.models.batcher import MOST
from vllm_lora_router.classifiers.models.encoder import Encoder
from vllm_lora_router.config.cross_checks import suggest
from vllm_lora_router.config.head_source import head_source, texts_of
from vllm_lora_router.config.loader import Loaded

THRESHOLD = 0.5  # rather right than wrong


@dataclass(frozen=True, eq=False)
class UsedHead:
    """A head with what its categories must reach."""

    head: Head
    thresholds: Mapping[str, float]  # of every category of the head
    few: Few | None = None  # where it was fitted from the configuration itself

    @property
    def fingerprint(self) -> str:
        """Changes with everything that its answers depend on."""
        head = self.head
        digest = hashlib.sha256(repr((head.kernel, head.outputs, head.scale, head.none, self.thresholds)).encode())
        for numbers in (head.points, head.weights, head.bias):
            digest.update(np.ascontiguousarray(numbers).tobytes())
        return digest.hexdigest()


def load_head(loaded: Loaded, encoder: Encoder) -> UsedHead | None:
    """The head of `classifier.embedding_model`; None where none is asked for. Blocks.

    Raises:
        ClassifierError: the folder holds no head, or one of another encoder or of categories that there are not, or
            there is too little to fit one from.
    """
    source = head_source(loaded.config)
    if source is None:
        return None
    if source == "folder":
        stored, settings = read_stored(loaded), loaded.config.classifier.embedding_model
        if not is_of(stored, encoder.encode_elsewhere(PROBES)):
            raise ClassifierError(
                f"{_place(loaded)}: {settings.head} was fitted on {stored.encoder}, which is another encoder than "
                f"{settings.model_id}: name that one as model_id, or fit the head again"
            )
        return UsedHead(stored.head, _thresholds(loaded, stored.head, stored.thresholds))
    few = fit_few(*embedded(loaded, encoder))
    return UsedHead(few.head, _thresholds(loaded, few.head, {}), few)


def embedded(loaded: Loaded, encoder: Encoder) -> tuple[Labelled, np.ndarray]:
    """What the configuration says of each category, through the encoder; and bool [texts]: what of it people ask.

    Raises:
        ClassifierError: fewer than two categories have examples or a description.
    """
    texts = texts_of(loaded.config)
    if len(texts) < 2:
        raise ClassifierError(
            f"{_place(loaded)}: a head tells categories apart, and {len(texts)} of them has examples or a description; "
            "give at least two some"
        )
    names = tuple(texts)
    flat = [text for own in texts.values() for text in own]
    asked = np.array([text.asked for text in flat])
    outputs = np.repeat(np.arange(len(names)), [len(own) for own in texts.values()])
    # A device's memory was counted for batches of so many.
    batches = [[text.text for text in flat[start : start + MOST]] for start in range(0, len(flat), MOST)]
    vectors = np.concatenate([encoder.encode_elsewhere(batch) for batch in batches])
    return Labelled(vectors, outputs, names, names), asked


def read_stored(loaded: Loaded) -> Stored:
    """The head in the folder that the configuration names.

    Raises:
        ClassifierError: there is none, it cannot be read, or it knows categories that the configuration does not.
    """
    said = loaded.config.classifier.embedding_model.head or ""
    folder = loaded.locate(said)
    if folder is None:
        raise ClassifierError(
            f"{_place(loaded)}: no such folder: {said!r} (tried in {loaded.file.parent} and {Path.cwd()}); "
            "vllm-lora-router fit writes one"
        )
    try:
        stored = read(folder)
    except HeadError as error:
        raise ClassifierError(f"{_place(loaded)}: {error}") from None
    names = [category.name for category in loaded.config.categories]
    for category in stored.head.categories:
        if category not in names:
            raise ClassifierError(
                f"{_place(loaded)}: {folder} knows {category!r}, which is not a category of this file"
                f"{suggest(category, names)}; fit the head again, or add the category"
            )
    return stored


def _thresholds(loaded: Loaded, head: Head, own: Mapping[str, float]) -> dict[str, float]:
    settings = loaded.config.classifier.embedding_model
    return {
        category: settings.thresholds.get(
            category, own.get(category, THRESHOLD) if settings.threshold is None else settings.threshold
        )
        for category in head.categories
    }


def _place(loaded: Loaded) -> str:
    return f"{loaded.file}: classifier.embedding_model.head"
