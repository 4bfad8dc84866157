"""From scores to thresholds: the lowest with a wanted precision, or those that answer a wanted share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.calibrate.scored import FEWEST, Scored
from vllm_lora_router.tools.evaluate.figures import Figure, share
from vllm_lora_router.tools.statistics import wilson

# One prompt that is right is no precision of 100 %.
FEWEST_ANSWERED = 10
ROUNDS = 20

# The precision that counts, of so many right ones of so many that are answered.
Precision = Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold for each knob."""

    thresholds: tuple[float, ...]
    why_not: tuple[str | None, ...]  # a knob: why it is left as it is; None: it was chosen


@dataclass(frozen=True, slots=True)
class Answered:
    """What reaches a threshold, and is answered by it."""

    prompts: int
    of: int
    precision: Figure | None  # None: nothing is answered, or nobody knows what is right


def plain(right: int, answered: int) -> float:
    """The share of right ones."""
    return right / answered


def confident(right: int, answered: int) -> float:
    """The lower end of the 95 % interval of that share."""
    return wilson(right, answered).low


def for_precision(scored: Scored, least: float, precision: Precision = plain) -> Chosen:
    """The lowest threshold of each knob with a precision of at least `least` among what it then answers.

    What one answers depends on which others are reached, so all are chosen in turn until none changes any more.
    """
    assert scored.right is not None, "without labels nobody knows what is precise"
    best, columns = scored.best
    right = np.take_along_axis(scored.right, columns, axis=1)
    thresholds = [knob.threshold for knob in scored.knobs]
    why_not = [knob.fixed or _too_few_labels(scored, knob.columns) for knob in scored.knobs]
    free = [place for place, why in enumerate(why_not) if why is None]
    # At first every other is taken to be reached: a prompt is looked at by the knob that it suits best.
    reached = [-math.inf if place in free else threshold for place, threshold in enumerate(thresholds)]
    for _ in range(ROUNDS):
        before = list(reached)
        for place in free:
            own = _wins(best, reached, place)
            found = _lowest(best[own, place], right[own, place], least, precision)
            why_not[place] = found if isinstance(found, str) else None
            thresholds[place] = scored.knobs[place].threshold if isinstance(found, str) else found
            reached[place] = thresholds[place]
        if reached == before:
            break
    return Chosen(tuple(thresholds), tuple(why_not))


def for_share(scored: Scored, wanted: float) -> Chosen:
    """The highest threshold of each knob that answers at least the wanted share of the prompts that it suits best.

    So all together answer that share of the prompts.
    """
    best, _ = scored.best
    thresholds: list[float] = []
    why_not: list[str | None] = []
    for place, knob in enumerate(scored.knobs):
        suited = best[_wins(best, [-math.inf] * len(scored.knobs), place), place]
        why = knob.fixed
        if why is None and len(suited) < FEWEST:
            why = f"it suits {len(suited)} prompts best, and {FEWEST} are needed"
        why_not.append(why)
        count = math.ceil(round(wanted * len(suited), 6))
        found = float(np.sort(suited)[::-1][count - 1]) if why is None else knob.threshold
        thresholds.append(min(max(found, 0.0), 1.0))
    return Chosen(tuple(thresholds), tuple(why_not))


def answered(scored: Scored, thresholds: Sequence[float]) -> tuple[list[Answered], Answered]:
    """What each knob answers under these thresholds, and all of them together."""
    best, columns = scored.best
    hits = None if scored.right is None else np.take_along_axis(scored.right, columns, axis=1)
    wins = np.array([_wins(best, thresholds, place) for place in range(len(thresholds))]).T
    wins &= best >= np.array(thresholds)

    def count(which: np.ndarray) -> Answered:
        # A prompt is answered by one knob at most.
        precision = None if hits is None else share(hits[which].tolist())
        return Answered(int(which.sum()), len(best), precision)

    each = [count(wins & (np.arange(len(thresholds)) == place)) for place in range(len(thresholds))]
    return each, count(wins)


def _wins(best: np.ndarray, thresholds: Sequence[float], place: int) -> np.ndarray:
    # Where a knob's score is known and better than all others that reach their thresholds.
    masked = np.where(best >= np.array(thresholds), best, -np.inf)
    masked[:, place] = best[:, place]
    return (masked.argmax(axis=1) == place) & (best[:, place] > -np.inf)


def _lowest(scores: np.ndarray, right: np.ndarray, least: float, precision: Precision) -> float | str:
    """The lowest threshold that reaches the precision, or why there is none."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    # Of equal scores all are answered or none, and no threshold is below 0.
    ends = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True]) if len(scores) else np.array([], dtype=int)
    ends = ends[(scores[ends] >= 0) & (ends + 1 >= FEWEST_ANSWERED)]
    if not len(ends):
        return f"it would answer fewer than {FEWEST_ANSWERED} prompts"
    found = [precision(int(hits[end]), int(end) + 1) for end in ends]
    if not any(value >= least for value in found):
        top = int(np.argmax(found))
        at = f"{scores[ends[top]]:.4g} ({int(ends[top]) + 1} prompts)"
        return f"no threshold has a precision of {least:g}: the best is {found[top]:.4f}, at {at}"
    last = max(place for place, value in enumerate(found) if value >= least)
    return float(min(scores[ends[last]], 1.0))


def _too_few_labels(scored: Scored, columns: Sequence[int]) -> str | None:
    names = dict.fromkeys(scored.categories[column] for column in columns)
    count = sum(scored.labelled.get(name, 0) for name in names)
    if count >= FEWEST:
        return None
    return f"{count} prompts of {' and '.join(names)} are labelled, and {FEWEST} are needed"
