"""Which category is taken for which: the confusion matrix, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_lora_router.tools.evaluate.figures import RESAMPLES, Figure, resampled
from vllm_lora_router.tools.evaluate.outcome import Answer


@dataclass(frozen=True, slots=True)
class Category:
    """How one category's prompts fare, and what it is given."""

    name: str | None  # None: no category, which is right for what is out of scope
    precision: float
    recall: float
    f1: float
    prompts: int  # with this label


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many prompts of which label got which category; None stands for no category."""

    names: list[str | None]
    counts: list[list[int]]  # [label, chosen]


def confused(answers: Sequence[Answer]) -> Confusion:
    """The confusion matrix, its names in the order of the alphabet, none last."""
    known = {one.label for one in answers} | {_settled(one) for one in answers}
    names = sorted(known, key=lambda name: (name is None, name or ""))
    places = _places(names)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, ([places[one.label] for one in answers], [places[_settled(one)] for one in answers]), 1)
    return Confusion(names, counts.tolist())


def by_category(answers: Sequence[Answer], confusion: Confusion) -> list[Category]:
    """Precision, recall and F1 of each label and of whatever was chosen; 0 where there is nothing to divide by."""
    from sklearn.metrics import precision_recall_fscore_support

    names, places = confusion.names, _places(confusion.names)
    labels, chosen = [places[one.label] for one in answers], [places[_settled(one)] for one in answers]
    zero: Any = 0  # of which scikit-learn's types know nothing
    found: Any = precision_recall_fscore_support(labels, chosen, labels=range(len(names)), zero_division=zero)
    rows = zip(names, *(values.tolist() for values in found), strict=True)
    return [Category(name, float(p), float(r), float(f1), int(prompts)) for name, p, r, f1, prompts in rows]


def macro_f1(confusion: Confusion, seed: int = 0) -> Figure | None:
    """The mean F1 of the categories that have prompts; what is out of scope is no category, but lowers precision."""
    counts = np.array(confusion.counts)
    own = np.array([name is not None for name in confusion.names]) & (counts.sum(axis=1) > 0)
    if not own.any():
        return None
    labels, chosen = np.nonzero(counts)
    cells, n = counts[labels, chosen], int(counts.sum())
    # Of a resample only the counts in the matrix matter, and these are multinomial.
    drawn = np.random.default_rng(seed).multinomial(n, cells / n, size=RESAMPLES)
    value, *resamples = _mean_f1(np.vstack([cells, drawn]), labels, chosen, own)
    return resampled(float(value), n, np.array(resamples))


def _places(names: Sequence[str | None]) -> dict[str | None, int]:
    return {name: place for place, name in enumerate(names)}


def _settled(one: Answer) -> str | None:
    # `fallback_category` takes what is out of scope, too, and that is as it should be.
    return one.label if one.right else one.chosen


def _mean_f1(cells: np.ndarray, labels: np.ndarray, chosen: np.ndarray, own: np.ndarray) -> np.ndarray:
    # Counts of the cells of a matrix, [resamples, cells] -> [resamples]; what a resample leaves out does not count.
    labelled, taken = (np.eye(len(own))[places] for places in (labels, chosen))  # [cells, names]
    hits, sizes = cells @ (labelled * taken), cells @ (labelled + taken)
    scores = np.ma.masked_array(2 * hits, sizes == 0)[:, own] / sizes[:, own]
    return np.ma.filled(scores.mean(axis=1).astype(float), np.nan)
