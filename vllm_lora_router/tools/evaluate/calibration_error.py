"""Quality of scores: the calibration error of probabilities, and the detection of out-of-scope prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.statistics import Estimate, bootstrap

BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Guesses of similar probability."""

    low: float
    high: float
    prompts: int
    probability: float  # mean
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """The calibration of probabilities, over in-scope prompts whose guess has a probability."""

    error: Estimate  # expected calibration error, 0 to 1
    bins: list[Bin]


@dataclass(frozen=True, slots=True)
class OutOfScopeDetection:
    """How well a low score of the guess detects out-of-scope prompts."""

    auroc: Estimate
    average_precision: float  # with out of scope as the positive class
    prevalence: float  # share of out-of-scope prompts: the average precision of chance


def reliability(outcomes: Sequence[Outcome], seed: int = 0) -> Reliability | None:
    """Return the expected calibration error in 15 bins of equal width; None without outcomes.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if not outcomes:
        return None
    probabilities = np.array([outcome.score for outcome in outcomes])
    correct = np.array([outcome.guess_correct for outcome in outcomes], dtype=float)
    bin_of = _bin_numbers(probabilities)

    def error(counts: np.ndarray) -> float:
        return calibration_error(probabilities, correct, counts)

    bins = []
    for number in range(BINS):
        if (inside := bin_of == number).any():
            means = (float(probabilities[inside].mean()), float(correct[inside].mean()))
            bins.append(Bin(number / BINS, (number + 1) / BINS, int(inside.sum()), *means))
    n = len(outcomes)
    return Reliability(bootstrap(error(np.ones(n)), n, error, seed), bins)


def calibration_error(probabilities: np.ndarray, correct: np.ndarray, counts: np.ndarray | None = None) -> float:
    """Return the expected calibration error, 0 to 1.

    Args:
        probabilities: Probability of each guess, float [prompts].
        correct: Whether each guess is correct, bool or float [prompts].
        counts: Weight of each prompt; None: 1.
    """
    counts = np.ones(len(probabilities)) if counts is None else counts
    gaps = np.bincount(_bin_numbers(probabilities), weights=counts * (correct - probabilities), minlength=BINS)
    return float(np.abs(gaps).sum() / counts.sum())


def _bin_numbers(probabilities: np.ndarray) -> np.ndarray:
    return np.minimum((probabilities * BINS).astype(int), BINS - 1)


def out_of_scope_detection(outcomes: Sequence[Outcome], seed: int = 0) -> OutOfScopeDetection | None:
    """Return how well low scores detect out-of-scope prompts; None unless there are prompts of both kinds."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    outside = np.array([not outcome.in_scope for outcome in outcomes])
    if outside.all() or not outside.any():
        return None
    scores = np.array([outcome.score for outcome in outcomes])
    auroc = float(roc_auc_score(outside, -scores))
    average_precision = float(average_precision_score(outside, -scores))
    estimate = bootstrap(auroc, len(outcomes), weighted_auroc(outside, -scores), seed)
    return OutOfScopeDetection(estimate, average_precision, float(outside.mean()))


def weighted_auroc(positive: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return a function that computes the area under the ROC curve from the weight of each prompt.

    It equals scikit-learn's `roc_auc_score` with weights, but sorts the scores only once for all resamples.

    Args:
        positive: Whether each prompt is positive, bool [prompts].
        scores: Score of each prompt, float [prompts]; higher for positive prompts.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of runs of equal scores
    positive = positive[order]

    def auroc(counts: np.ndarray) -> float:
        counts = counts[order]
        up = np.add.reduceat(np.where(positive, counts, 0), starts).astype(float)
        down = np.add.reduceat(np.where(positive, 0, counts), starts).astype(float)
        below = np.cumsum(down) - down
        pairs = up.sum() * down.sum()
        return float((up * (below + down / 2)).sum() / pairs) if pairs else float("nan")

    return auroc
