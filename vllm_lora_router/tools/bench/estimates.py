"""Medians and means with their intervals: a few values are far off whenever the machine has something else to do."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, floor, sqrt

_EXACT = 200  # values; of more the normal approximation is as good


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> Estimate:
    """The median of at least one value, and its distribution-free interval from order statistics.

    The ranks are those of the sign test. Of fewer than six values the interval is from the least to the greatest, and
    less than 95 % sure.
    Source: Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2.
    """
    ordered = sorted(values)
    rank = _rank(len(ordered))
    return Estimate(statistics.median(ordered), ordered[rank], ordered[len(ordered) - 1 - rank])


def mean(values: Sequence[float]) -> Estimate:
    """The mean of at least two values, and its interval by Student's t: for few values that are medians themselves."""
    from scipy import stats

    value = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / sqrt(len(values))
    return Estimate(value, value - half, value + half)


def _rank(count: int) -> int:
    if count > _EXACT:
        return floor(count / 2 - 1.959964 * sqrt(count) / 2)
    below, rank = 1, 0  # of 2 ** count
    while 2 * (below + comb(count, rank + 1)) <= 0.05 * 2**count and rank + 1 < count // 2:
        rank += 1
        below += comb(count, rank)
    return rank
