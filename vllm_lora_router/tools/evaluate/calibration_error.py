"""Whether scores mean something: probabilities what they say, and low scores that a prompt is out of scope."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.evaluate.figures import Figure, bootstrapped
from vllm_lora_router.tools.evaluate.outcome import Answer

BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Guesses of about the same probability."""

    low: float
    high: float
    prompts: int
    probability: float  # their mean
    right: float  # the share of them


@dataclass(frozen=True, slots=True)
class Reliability:
    """Whether probabilities are what they say, over the prompts in scope whose guess has one."""

    error: Figure  # expected calibration error, 0 to 1
    bins: list[Bin]


@dataclass(frozen=True, slots=True)
class OutOfScope:
    """How well the guess's score tells what is out of scope, which should have the lower one."""

    auroc: Figure
    average_precision: float  # of finding what is out of scope
    share: float  # of the prompts: what the average precision of chance is


def reliability(answers: Sequence[Answer], seed: int = 0) -> Reliability | None:
    """Expected calibration error in 15 bins of equal width (Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017)."""
    if not answers:
        return None
    probabilities = np.array([one.score for one in answers])
    right = np.array([one.guessed_right for one in answers], dtype=float)
    bins = _bins(probabilities)

    def error(counts: np.ndarray) -> float:
        return calibration_error(probabilities, right, counts)

    found = []
    for number in range(BINS):
        if (own := bins == number).any():
            means = (float(probabilities[own].mean()), float(right[own].mean()))
            found.append(Bin(number / BINS, (number + 1) / BINS, int(own.sum()), *means))
    n = len(answers)
    return Reliability(bootstrapped(error(np.ones(n)), n, error, seed), found)


def calibration_error(probabilities: np.ndarray, right: np.ndarray, counts: np.ndarray | None = None) -> float:
    """The expected calibration error, 0 to 1.

    Args:
        probabilities: float [prompts], of what was guessed.
        right: bool or float [prompts]: whether the guess is right.
        counts: how often each counts; None: once.
    """
    counts = np.ones(len(probabilities)) if counts is None else counts
    gaps = np.bincount(_bins(probabilities), weights=counts * (right - probabilities), minlength=BINS)
    return float(np.abs(gaps).sum() / counts.sum())


def _bins(probabilities: np.ndarray) -> np.ndarray:
    return np.minimum((probabilities * BINS).astype(int), BINS - 1)


def out_of_scope(answers: Sequence[Answer], seed: int = 0) -> OutOfScope | None:
    """None unless there are prompts in scope and out of it."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    outside = np.array([not one.in_scope for one in answers])
    if outside.all() or not outside.any():
        return None
    scores = np.array([one.score for one in answers])
    auroc = float(roc_auc_score(outside, -scores))
    precision = float(average_precision_score(outside, -scores))
    interval = bootstrapped(auroc, len(answers), weighted_auroc(outside, -scores), seed)
    return OutOfScope(interval, precision, float(outside.mean()))


def weighted_auroc(positive: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], float]:
    """The area under the ROC curve given each prompt's count: scikit-learn's `roc_auc_score`, a thousand times.

    Args:
        positive: bool [prompts].
        scores: float [prompts], higher where positive.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of equal scores
    positive = positive[order]

    def auroc(counts: np.ndarray) -> float:
        counts = counts[order]
        up = np.add.reduceat(np.where(positive, counts, 0), starts).astype(float)
        down = np.add.reduceat(np.where(positive, 0, counts), starts).astype(float)
        below = np.cumsum(down) - down
        pairs = up.sum() * down.sum()
        return float((up * (below + down / 2)).sum() / pairs) if pairs else float("nan")

    return auroc
