"""What all methods with a model have in common: windows, thresholds and the worker around a scorer."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vllm_lora_router.classifiers.worker import Worker
from vllm_lora_router.values import Classification, Method, Query, Scale


@dataclass(frozen=True)
class Choice:
    """One column of a scorer's output: the category it speaks for, and what it must reach to be sure."""

    category: str
    threshold: float


@dataclass(frozen=True)
class Scores:
    """What a scorer says of a batch of texts."""

    values: np.ndarray  # float32 [texts, choices]
    evidence: Sequence[Mapping[str, object]]  # one a text


class Scorer(Protocol):
    """A model that scores texts; it runs on a worker's thread and may take its time."""

    method: Method
    scale: Scale
    fingerprint: str
    worker: Worker

    @property
    def choices(self) -> Sequence[Choice]: ...

    def windows(self, text: str) -> list[str]:
        """The parts of a text that the model can read."""
        ...

    def score(self, texts: Sequence[str]) -> Scores:
        """The scores of texts that fit the model."""
        ...


class ScoredClassifier:
    """A classifier over a scorer: the best of the choices that reach their threshold, else the best of all, unsure."""

    reads = frozenset({"text"})

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.worker = scorer.worker
        self.method: Method = scorer.method
        self.fingerprint = scorer.fingerprint
        self._thresholds = np.array([choice.threshold for choice in scorer.choices], dtype=np.float32)

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        # One call a query for now; a batching worker takes the place of this one and joins what waits.
        return list(
            await asyncio.gather(*(self.worker.run(lambda text=query.text: self.decide(text)) for query in queries))
        )

    def decide(self, text: str) -> Classification:
        """The classification of one text; without words in it there is nothing to be sure of."""
        if not text or text.isspace():
            return Classification(None, 0.0, {}, self.scorer.scale, 0.0, False)
        # A lone surrogate, half of an emoji that a client cut in two, is an error to every tokenizer.
        text = text.encode("utf-8", "replace").decode()
        scores = self.scorer.score(self.scorer.windows(text))
        values = scores.values.mean(axis=0)
        choices = self.scorer.choices
        reached = values >= self._thresholds
        best = int(np.where(reached, values, -np.inf).argmax() if reached.any() else values.argmax())
        by_category: dict[str, float] = {}
        for choice, value in zip(choices, values, strict=True):
            by_category[choice.category] = max(by_category.get(choice.category, -1.0), round(float(value), 4))
        return Classification(
            choices[best].category,
            float(values[best]),
            by_category,
            self.scorer.scale,
            choices[best].threshold,
            bool(reached[best]),
            scores.evidence[int(scores.values[:, best].argmax())],
        )
