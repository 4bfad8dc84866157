"""What all methods with a model have in common: windows, thresholds and batches around a scorer."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vllm_lora_router.classifiers.models.batcher import MOST, Batcher, Cost
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.classifiers.thresholds import by_category, choose
from vllm_lora_router.types import Classification, Method, Query, Scale


@dataclass(frozen=True)
class Choice:
    """One column of a scorer's output: the category it speaks for, and what it must reach to be sure."""

    category: str
    threshold: float


@dataclass(frozen=True)
class Part:
    """Choices that are told apart by scores of one kind."""

    scale: Scale
    choices: Sequence[Choice]


@dataclass(frozen=True)
class Scores:
    """What a part of a scorer says of a batch of texts."""

    values: np.ndarray  # float32 [texts, choices]
    evidence: Sequence[Mapping[str, object]]  # one a text


class Scorer(Protocol):
    """A model that scores texts; it runs on a worker's thread and may take its time."""

    method: Method
    fingerprint: str
    worker: Worker
    runs_on: str  # runtime and device
    on_any_thread: bool  # and on several at once

    @property
    def parts(self) -> Sequence[Part]:
        """At least one; the first that is sure answers."""
        ...

    def windows(self, text: str) -> list[str]:
        """The parts of a text that the model can read."""
        ...

    def score(self, texts: Sequence[str]) -> Sequence[Scores]:
        """The scores of texts that fit the model, one for each part."""
        ...


# Going to another thread and back takes as long as a model that runs on any thread does for so many characters, and
# longer under load.
AT_ONCE = 512


class ScoredClassifier:
    """A classifier over a scorer: the best of the choices that reach their threshold, else the best of all, unsure.

    Of several parts the first that is sure answers, else the last says what it holds best.
    """

    reads = frozenset({"text"})

    def __init__(self, scorer: Scorer, *, budget_s: float = 0.025) -> None:
        """`budget_s` is what one batch may take, unless it is of one text."""
        self.scorer = scorer
        self.batcher: Batcher[Classification] = Batcher(scorer.worker, self.decide, budget_s=budget_s)
        self.method: Method = scorer.method
        self.fingerprint = scorer.fingerprint
        self.runs_on = scorer.runs_on
        self.lone_s = 0.0  # what one short text takes, once that was measured
        self._nothing = Classification(None, 0.0, {}, scorer.parts[-1].scale, 0.0, False)

    def warm_up(self, text: str) -> None:
        """Runs the model until it is as fast as it gets, and measures it. Blocks."""
        self.batcher.cost = self.scorer.worker.run_blocking(lambda: Cost.measure(self.decide, text))
        self.lone_s = self.batcher.cost.seconds(1, len(text))

    def now(self, query: Query) -> Classification | None:
        """What can be said without waiting; None where the model's thread has to be asked."""
        if not query.has_text:
            return self._nothing  # without words in it there is nothing to be sure of
        if self.scorer.on_any_thread and len(query.text) <= AT_ONCE:
            return self.batcher.at_once(query.text)
        return None

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        return list(await asyncio.gather(*map(self._one, queries)))

    async def _one(self, query: Query) -> Classification:
        found = self.now(query)
        return await self.batcher.ask(query.text) if found is None else found

    def decide(self, texts: Sequence[str]) -> list[Classification]:
        """The classification of each text, all their windows scored together. For the worker's thread."""
        # A lone surrogate, half of an emoji that a client cut in two, is an error to every tokenizer.
        windows = [self.scorer.windows(text.encode("utf-8", "replace").decode()) for text in texts]
        scores = self._score([window for of_text in windows for window in of_text])
        ends = itertools.accumulate(map(len, windows))
        return [
            self._first_sure(scores, slice(end - len(of_text), end)) for end, of_text in zip(ends, windows, strict=True)
        ]

    def _score(self, windows: Sequence[str]) -> Sequence[Scores]:
        """In passes of no more texts than a batch has: a device's memory was counted for that."""
        passes = [self.scorer.score(windows[start : start + MOST]) for start in range(0, len(windows), MOST)]
        return passes[0] if len(passes) == 1 else [_joined(of_part) for of_part in zip(*passes, strict=True)]

    def _first_sure(self, scores: Sequence[Scores], windows: slice) -> Classification:
        *before, last = zip(self.scorer.parts, scores, strict=True)
        for part, of_part in before:
            if (found := self._classification(part, of_part, windows)).accepted:
                return found
        return self._classification(*last, windows)

    def _classification(self, part: Part, scores: Scores, windows: slice) -> Classification:
        rows = scores.values[windows]  # [windows, choices]
        values: list[float] = (rows[0] if len(rows) == 1 else rows.mean(axis=0)).tolist()
        choices = part.choices
        known = zip(choices, values, strict=True)
        of_category, thresholds = by_category((choice.category, value, choice.threshold) for choice, value in known)
        chosen = choose(of_category, thresholds)
        first = windows.start
        if len(rows) > 1:
            own = [index for index, choice in enumerate(choices) if choice.category == chosen.category]
            first += int(rows[:, max(own, key=values.__getitem__)].argmax())
        return Classification(
            chosen.category,
            chosen.score,
            of_category,
            part.scale,
            chosen.threshold,
            chosen.sure,
            scores.evidence[first],
            thresholds=thresholds,
        )


def _joined(passes: Sequence[Scores]) -> Scores:
    values = np.concatenate([one.values for one in passes])
    return Scores(values, [evidence for one in passes for evidence in one.evidence])
