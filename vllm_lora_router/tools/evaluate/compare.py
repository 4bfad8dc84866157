"""Comparison of two evaluations of the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.statistics import RESAMPLES, Estimate, mcnemar, percentile_interval

MAX_EXAMPLES = 20  # prompts that are routed differently


@dataclass(frozen=True, slots=True)
class CategoryChange:
    """How many prompts of a category each target routes correctly."""

    name: str | None  # None: out of scope
    prompts: int
    first_correct: int
    second_correct: int


@dataclass(frozen=True, slots=True)
class DifferentRoute:
    """A prompt that the two targets route differently."""

    text: str
    label: str | None
    first_chosen: str | None
    second_chosen: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second evaluation compared with the first."""

    difference: Estimate  # of accuracy, second minus first
    only_first_correct: int  # prompts
    only_second_correct: int
    p: float  # of McNemar's exact test, two-sided
    categories: list[CategoryChange]  # those whose number of correct prompts differs, largest difference first
    differing: int  # prompts
    examples: list[DifferentRoute]  # at most 20: first prompts that became wrong, then prompts that became correct


def compare(first: Sequence[Outcome], second: Sequence[Outcome], seed: int = 0) -> Comparison:
    """Compare the outcomes of the same prompts in the same order; at least one prompt.

    The interval of the difference is that of a paired bootstrap: each resampled prompt keeps both outcomes.
    """
    pairs = list(zip(first, second, strict=True))
    n = len(pairs)
    lost = sum(before.correct and not after.correct for before, after in pairs)
    gained = sum(after.correct and not before.correct for before, after in pairs)
    # Only the number of prompts of each kind in a resample matters, and these numbers are multinomial.
    shares = np.array([lost, gained, n - lost - gained]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    difference = percentile_interval((gained - lost) / n, (drawn[:, 1] - drawn[:, 0]) / n, n)
    differing = [
        (before, after) for before, after in pairs if (before.chosen, before.accepted) != (after.chosen, after.accepted)
    ]
    differing.sort(key=lambda pair: pair[1].correct - pair[0].correct)
    examples = [
        DifferentRoute(before.text, before.label, before.chosen, after.chosen)
        for before, after in _both_ends(differing)
    ]
    return Comparison(difference, lost, gained, mcnemar(lost, gained), _by_category(pairs), len(differing), examples)


def _by_category(pairs: Sequence[tuple[Outcome, Outcome]]) -> list[CategoryChange]:
    counts: dict[str | None, list[int]] = {}
    for first, second in pairs:
        row = counts.setdefault(first.label, [0, 0, 0])
        row[0] += 1
        row[1] += first.correct
        row[2] += second.correct
    changes = [CategoryChange(name, *row) for name, row in counts.items() if row[1] != row[2]]
    return sorted(changes, key=lambda change: -abs(change.second_correct - change.first_correct))


def _both_ends(differing: Sequence[tuple[Outcome, Outcome]]) -> Sequence[tuple[Outcome, Outcome]]:
    half = MAX_EXAMPLES // 2
    return differing if len(differing) <= MAX_EXAMPLES else [*differing[:half], *differing[-half:]]
