"""The confusion matrix, and the metrics that are computed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.statistics import RESAMPLES, Estimate, percentile_interval


@dataclass(frozen=True, slots=True)
class CategoryMetrics:
    """Precision, recall and F1 of one category."""

    name: str | None  # None: no category, which is correct for out-of-scope prompts
    precision: float
    recall: float
    f1: float
    prompts: int  # with this label


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix; the name None stands for no category."""

    names: list[str | None]
    counts: list[list[int]]  # prompts, [label, chosen]


def confusion_matrix(outcomes: Sequence[Outcome]) -> Confusion:
    """Return the confusion matrix with its names in alphabetical order, no category last."""
    known = {outcome.label for outcome in outcomes} | {_effective_choice(outcome) for outcome in outcomes}
    names = sorted(known, key=lambda name: (name is None, name or ""))
    index = _index(names)
    counts = np.zeros((len(names), len(names)), dtype=int)
    labels = [index[outcome.label] for outcome in outcomes]
    choices = [index[_effective_choice(outcome)] for outcome in outcomes]
    np.add.at(counts, (labels, choices), 1)
    return Confusion(names, counts.tolist())


def category_metrics(outcomes: Sequence[Outcome], confusion: Confusion) -> list[CategoryMetrics]:
    """Return precision, recall and F1 of each name in the matrix; 0 where the denominator is 0."""
    from sklearn.metrics import precision_recall_fscore_support

    names, index = confusion.names, _index(confusion.names)
    labels = [index[outcome.label] for outcome in outcomes]
    choices = [index[_effective_choice(outcome)] for outcome in outcomes]
    zero: Any = 0  # scikit-learn's type hints do not allow 0
    columns: Any = precision_recall_fscore_support(labels, choices, labels=range(len(names)), zero_division=zero)
    rows = zip(names, *(values.tolist() for values in columns), strict=True)
    return [CategoryMetrics(name, float(p), float(r), float(f1), int(prompts)) for name, p, r, f1, prompts in rows]


def macro_f1(confusion: Confusion, seed: int = 0) -> Estimate | None:
    """Return the mean F1 of the categories that have prompts; None without such categories.

    Out of scope is not a category, but accepted out-of-scope prompts lower the categories' precision.
    """
    counts = np.array(confusion.counts)
    averaged = np.array([name is not None for name in confusion.names]) & (counts.sum(axis=1) > 0)
    if not averaged.any():
        return None
    labels, chosen = np.nonzero(counts)
    cells, n = counts[labels, chosen], int(counts.sum())
    # Only the counts in a resample's matrix matter, and these counts are multinomial.
    drawn = np.random.default_rng(seed).multinomial(n, cells / n, size=RESAMPLES)
    value, *resamples = _mean_f1(np.vstack([cells, drawn]), labels, chosen, averaged)
    return percentile_interval(float(value), np.array(resamples), n)


def _index(names: Sequence[str | None]) -> dict[str | None, int]:
    return {name: place for place, name in enumerate(names)}


def _effective_choice(outcome: Outcome) -> str | None:
    # `fallback_category` also serves out-of-scope prompts, which is correct.
    return outcome.label if outcome.correct else outcome.chosen


def _mean_f1(cells: np.ndarray, labels: np.ndarray, chosen: np.ndarray, averaged: np.ndarray) -> np.ndarray:
    """Return the mean F1 of each resample; categories that a resample does not contain are ignored.

    Args:
        cells: Counts of the non-empty cells of the matrix, [resamples, cells].
        labels: Row of each cell.
        chosen: Column of each cell.
        averaged: Which names to average over, bool [names].
    """
    of_label, of_choice = (np.eye(len(averaged))[places] for places in (labels, chosen))  # [cells, names]
    hits, sizes = cells @ (of_label * of_choice), cells @ (of_label + of_choice)
    scores = np.ma.masked_array(2 * hits, sizes == 0)[:, averaged] / sizes[:, averaged]
    return np.ma.filled(scores.mean(axis=1).astype(float), np.nan)
