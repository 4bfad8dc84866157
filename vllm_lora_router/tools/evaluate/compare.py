"""Two evaluations on the same prompts: whether one is better, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.evaluate.figures import RESAMPLES, Figure, resampled
from vllm_lora_router.tools.evaluate.outcome import Answer

SHOWN = 20  # prompts that are routed differently


@dataclass(frozen=True, slots=True)
class CategoryChange:
    """How many of a category's prompts are right under each."""

    name: str | None  # None: out of scope
    prompts: int
    right: int
    right_other: int


@dataclass(frozen=True, slots=True)
class Differing:
    """A prompt that the two route differently."""

    text: str
    label: str | None
    chosen: str | None
    chosen_other: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The other less the one."""

    difference: Figure  # of accuracy
    only_right: int  # prompts that the one has right and the other wrong
    only_other_right: int
    p: float  # McNemar's, exact, two-sided
    categories: list[CategoryChange]  # those of which not as many are right, the most changed first
    differing: int  # prompts
    examples: list[Differing]  # at most 20 of them; those first that the other has wrong and the one right


def compare(one: Sequence[Answer], other: Sequence[Answer], seed: int = 0) -> Comparison:
    """Compares answers to the same prompts in the same order; at least one.

    The interval is a paired bootstrap's: prompts are resampled with what both say of them. McNemar, Psychometrika 12
    (1947), 153, in its exact form.
    """
    pairs = list(zip(one, other, strict=True))
    n = len(pairs)
    lost = sum(first.right and not second.right for first, second in pairs)
    gained = sum(second.right and not first.right for first, second in pairs)
    # Of a resample only how many of each kind it has matters, and these are multinomial.
    drawn = np.random.default_rng(seed).multinomial(n, np.array([lost, gained, n - lost - gained]) / n, size=RESAMPLES)
    difference = resampled((gained - lost) / n, n, (drawn[:, 1] - drawn[:, 0]) / n)
    differing = [(a, b) for a, b in pairs if (a.chosen, a.sure) != (b.chosen, b.sure)]
    differing.sort(key=lambda pair: pair[1].right - pair[0].right)
    shown = [Differing(a.text, a.label, a.chosen, b.chosen) for a, b in _both_ends(differing)]
    return Comparison(difference, lost, gained, mcnemar(lost, gained), _by_category(pairs), len(differing), shown)


def mcnemar(lost: int, gained: int) -> float:
    """The exact two-sided p-value that changes for better and for worse are equally likely."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5))) if lost + gained else 1.0


def _by_category(pairs: Sequence[tuple[Answer, Answer]]) -> list[CategoryChange]:
    counts: dict[str | None, list[int]] = {}
    for first, second in pairs:
        own = counts.setdefault(first.label, [0, 0, 0])
        own[0] += 1
        own[1] += first.right
        own[2] += second.right
    changes = [CategoryChange(name, *own) for name, own in counts.items() if own[1] != own[2]]
    return sorted(changes, key=lambda change: -abs(change.right_other - change.right))


def _both_ends(differing: Sequence[tuple[Answer, Answer]]) -> Sequence[tuple[Answer, Answer]]:
    # What got worse stands at one end and what got better at the other.
    half = SHOWN // 2
    return differing if len(differing) <= SHOWN else [*differing[:half], *differing[-half:]]
