"""Choice of thresholds: the lowest ones with a minimum precision, or those that accept a share of the prompts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.calibrate.scores import MIN_LABELLED, MethodScores
from vllm_lora_router.tools.statistics import Estimate, proportion, wilson_low

# The precision of fewer accepted prompts is too uncertain.
MIN_ACCEPTED = 10
MAX_ROUNDS = 20

# Computes precisions from the numbers of correct and of accepted prompts, int [thresholds].
Precision = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """The chosen value of each threshold."""

    values: tuple[float, ...]
    unchanged: tuple[str | None, ...]  # reason why a threshold keeps its value; None: it was chosen


@dataclass(frozen=True, slots=True)
class Accepted:
    """The prompts that a threshold accepts."""

    prompts: int
    total: int
    precision: Estimate | None  # None: no prompt is accepted, or prompts have no labels


def observed_precision(correct: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Return the share of correct prompts."""
    return correct / accepted


def precision_lower_bound(correct: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """Return the lower end of the 95 % interval of the share of correct prompts."""
    return wilson_low(correct, accepted)


def choose_for_precision(
    scores: MethodScores, minimum: float, precision: Precision = observed_precision
) -> ThresholdChoice:
    """Choose the lowest value of each threshold whose accepted prompts have a minimum precision.

    The prompts that one threshold accepts depend on the other thresholds, so all are chosen in turn until none changes.
    """
    assert scores.correct is not None, "precision needs labels"
    best, columns = scores.best
    correct = np.take_along_axis(scores.correct, columns, axis=1)
    values = [threshold.value for threshold in scores.thresholds]
    unchanged = [threshold.fixed or _rare_labels(scores, threshold.columns) for threshold in scores.thresholds]
    free = [index for index, reason in enumerate(unchanged) if reason is None]
    # At first every free threshold is reached: each prompt belongs to the threshold with its best score.
    effective = [-math.inf if index in free else value for index, value in enumerate(values)]
    for _ in range(MAX_ROUNDS):
        before = list(effective)
        for index in free:
            wins = _wins(best, effective, index)
            lowest = _lowest(best[wins, index], correct[wins, index], minimum, precision)
            unchanged[index] = lowest if isinstance(lowest, str) else None
            values[index] = scores.thresholds[index].value if isinstance(lowest, str) else lowest
            effective[index] = values[index]
        if effective == before:
            break
    return ThresholdChoice(tuple(values), tuple(unchanged))


def choose_for_share(scores: MethodScores, share: float) -> ThresholdChoice:
    """Choose the highest value of each threshold that accepts a share of the prompts with their best score there.

    All thresholds together then accept this share of all prompts.
    """
    best, _ = scores.best
    values: list[float] = []
    unchanged: list[str | None] = []
    for index, threshold in enumerate(scores.thresholds):
        highest = best[_wins(best, [-math.inf] * len(scores.thresholds), index), index]
        reason = threshold.fixed
        if reason is None and len(highest) < MIN_LABELLED:
            reason = f"{len(highest)} prompts have their best score here, and {MIN_LABELLED} are needed"
        unchanged.append(reason)
        count = math.ceil(round(share * len(highest), 6))
        value = float(np.sort(highest)[::-1][count - 1]) if reason is None else threshold.value
        values.append(min(max(value, 0.0), 1.0))
    return ThresholdChoice(tuple(values), tuple(unchanged))


def count_accepted(scores: MethodScores, values: Sequence[float]) -> tuple[list[Accepted], Accepted]:
    """Return the prompts that each threshold accepts at these values, and those that all thresholds accept together."""
    best, columns = scores.best
    hits = None if scores.correct is None else np.take_along_axis(scores.correct, columns, axis=1)
    wins = np.array([_wins(best, values, index) for index in range(len(values))]).T
    wins &= best >= np.array(values)

    def count(accepted: np.ndarray) -> Accepted:
        # At most one threshold accepts a prompt.
        precision = None if hits is None else proportion(hits[accepted].tolist())
        return Accepted(int(accepted.sum()), len(best), precision)

    each = [count(wins & (np.arange(len(values)) == index)) for index in range(len(values))]
    return each, count(wins)


def _wins(best: np.ndarray, values: Sequence[float], index: int) -> np.ndarray:
    """Return where the score of a threshold is known and higher than all other scores that reach their thresholds."""
    masked = np.where(best >= np.array(values), best, -np.inf)
    masked[:, index] = best[:, index]
    return (masked.argmax(axis=1) == index) & (best[:, index] > -np.inf)


def _lowest(scores: np.ndarray, correct: np.ndarray, minimum: float, precision: Precision) -> float | str:
    """Return the lowest value with the minimum precision, or the reason why there is none."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(correct[order])
    # Prompts with equal scores are accepted together, and no threshold is below 0.
    ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True]) if len(scores) else np.array([], dtype=int)
    ends = ends[(scores[ends] >= 0) & (ends + 1 >= MIN_ACCEPTED)]
    if not len(ends):
        return f"fewer than {MIN_ACCEPTED} prompts can be accepted"
    precisions = precision(hits[ends], ends + 1)
    if not (precisions >= minimum).any():
        top = int(np.argmax(precisions))
        at = f"at {scores[ends[top]]:.4g} ({int(ends[top]) + 1} prompts)"
        return f"no threshold reaches a precision of {minimum:g}: the highest is {precisions[top]:.4f} {at}"
    last = np.flatnonzero(precisions >= minimum)[-1]
    return float(min(scores[ends[last]], 1.0))


def _rare_labels(scores: MethodScores, columns: Sequence[int]) -> str | None:
    names = dict.fromkeys(scores.categories[column] for column in columns)
    count = sum(scores.labelled.get(name, 0) for name in names)
    if count >= MIN_LABELLED:
        return None
    return f"{count} prompts are labelled {' or '.join(names)}, and {MIN_LABELLED} are needed"
