"""The classifier for all methods with a model: windows, thresholds and batches around a scorer."""

import asyncio
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vllm_lora_router.classifiers.models.batcher import MAX_BATCH_SIZE, BatchCost, Batcher
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.classifiers.thresholds import best_by_category, select_category
from vllm_lora_router.types import Classification, Method, Query, Scale


@dataclass(frozen=True)
class ScoreColumn:
    """One column of a scorer's output: its category, and the threshold that its score has to reach."""

    category: str
    threshold: float


@dataclass(frozen=True)
class ScoreGroup:
    """Columns whose scores have the same scale and are compared with each other."""

    scale: Scale
    columns: Sequence[ScoreColumn]


@dataclass(frozen=True)
class Scores:
    """The scores of a batch of texts for one group of columns."""

    values: np.ndarray  # float32 [texts, columns]
    evidence: Sequence[Mapping[str, object]]  # one for each text


class Scorer(Protocol):
    """A model that scores texts. It runs on a worker thread and may block."""

    method: Method
    fingerprint: str
    worker: Worker
    runs_on: str  # runtime and device
    thread_safe: bool  # whether any thread may call it, and several threads at once

    @property
    def groups(self) -> Sequence[ScoreGroup]:
        """Return the groups of columns, at least one. The first group with an accepted category decides."""
        ...

    def windows(self, text: str) -> list[str]:
        """Return the parts of a text that the model reads."""
        ...

    def score(self, texts: Sequence[str]) -> Sequence[Scores]:
        """Return the scores of texts that fit the model, one element for each group."""
        ...


# Texts up to this length are classified inline if the model is thread-safe: handing a text to another thread and back
# takes as long as such a model does for this many characters, and longer under load.
MAX_INLINE_CHARACTERS = 512


class ModelClassifier:
    """A classifier around a scorer.

    It selects the best category among those that reach their threshold. If none does, it names the best category of
    the last group, which is then not accepted.
    """

    reads = frozenset({"text"})

    def __init__(self, scorer: Scorer, *, budget_s: float = 0.025) -> None:
        """Create the classifier.

        Args:
            budget_s: Maximum duration of a batch, unless the batch has a single text.
        """
        self.scorer = scorer
        self.batcher: Batcher[Classification] = Batcher(scorer.worker, self.decide, budget_s=budget_s)
        self.method: Method = scorer.method
        self.fingerprint = scorer.fingerprint
        self.runs_on = scorer.runs_on
        self.single_text_s = 0.0  # duration for one short text, once `warm_up` has measured it
        self._no_text = Classification(None, 0.0, {}, scorer.groups[-1].scale, 0.0, False)

    def warm_up(self, text: str) -> None:
        """Run the model until it reaches its full speed and measure it. Blocks."""
        self.batcher.cost = self.scorer.worker.run_blocking(lambda: BatchCost.measure(self.decide, text))
        self.single_text_s = self.batcher.cost.seconds(1, len(text))

    def classify_now(self, query: Query) -> Classification | None:
        """Return the classification if it does not need the worker thread, otherwise None."""
        if not query.has_text:
            return self._no_text  # without text nothing can be accepted
        if self.scorer.thread_safe and len(query.text) <= MAX_INLINE_CHARACTERS:
            return self.batcher.run_inline(query.text)
        return None

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        return list(await asyncio.gather(*map(self._classify_query, queries)))

    async def _classify_query(self, query: Query) -> Classification:
        classification = self.classify_now(query)
        return await self.batcher.submit(query.text, _flow(query)) if classification is None else classification

    def decide(self, texts: Sequence[str]) -> list[Classification]:
        """Return the classification of each text. All windows are scored together. Runs on the worker thread."""
        # A lone surrogate, such as half of an emoji that a client truncated, is an error in every tokenizer.
        windows = [self.scorer.windows(text.encode("utf-8", "replace").decode()) for text in texts]
        scores = self._score([window for of_text in windows for window in of_text])
        ends = itertools.accumulate(map(len, windows))
        return [
            self._select(scores, slice(end - len(of_text), end)) for end, of_text in zip(ends, windows, strict=True)
        ]

    def _score(self, windows: Sequence[str]) -> Sequence[Scores]:
        """Score windows in passes of at most one batch, because the memory of a device is planned for that."""
        passes = [
            self.scorer.score(windows[start : start + MAX_BATCH_SIZE])
            for start in range(0, len(windows), MAX_BATCH_SIZE)
        ]
        return passes[0] if len(passes) == 1 else [_concatenate(of_group) for of_group in zip(*passes, strict=True)]

    def _select(self, scores: Sequence[Scores], windows: slice) -> Classification:
        *earlier, last = zip(self.scorer.groups, scores, strict=True)
        for group, of_group in earlier:
            if (classification := self._classification(group, of_group, windows)).accepted:
                return classification
        return self._classification(*last, windows)

    def _classification(self, group: ScoreGroup, scores: Scores, windows: slice) -> Classification:
        rows = scores.values[windows]  # [windows, columns]
        values: list[float] = (rows[0] if len(rows) == 1 else rows.mean(axis=0)).tolist()
        columns = group.columns
        pairs = zip(columns, values, strict=True)
        of_category, thresholds = best_by_category(
            (column.category, value, column.threshold) for column, value in pairs
        )
        selected = select_category(of_category, thresholds)
        evidence_row = windows.start
        if len(rows) > 1:
            # The evidence comes from the window with the highest score for the selected category.
            indexes = [index for index, column in enumerate(columns) if column.category == selected.category]
            evidence_row += int(rows[:, max(indexes, key=values.__getitem__)].argmax())
        return Classification(
            selected.category,
            selected.score,
            of_category,
            group.scale,
            selected.threshold,
            selected.accepted,
            scores.evidence[evidence_row],
            thresholds=thresholds,
        )


def _flow(query: Query) -> Hashable | None:
    """Return the flow in which a query shares the model; None for dry runs and paths that no API key guards."""
    if not query.may_call_tools:
        return None  # an API key in such a request was not checked
    return query.client.tenant, query.client.api_key_fingerprint


def _concatenate(passes: Sequence[Scores]) -> Scores:
    values = np.concatenate([scores.values for scores in passes])
    return Scores(values, [evidence for scores in passes for evidence in scores.evidence])
