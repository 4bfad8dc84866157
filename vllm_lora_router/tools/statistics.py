"""Means, their intervals and comparisons, where it is users that are independent of each other and not requests."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

ALPHA = 0.05
RATIO_ALPHA = 0.001  # below it a sample ratio is called wrong
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of an arm, one mean for each key.

    Ratings of one user go together, so each user counts once, however often one rates: the mean is over users, not over
    ratings (as where groups were randomised: Kerry and Bland, Analysis of a trial randomised in clusters, BMJ 316
    (1998), 54).
    """

    keys: int
    mean: float
    variance: float  # of the keys' means, unbiased; 0 for a single key
    successes: int | None = None  # where every key has a single rating, of 0 or 1

    @classmethod
    def of(cls, ratings: Iterable[Sequence[float]]) -> "Sample | None":
        """Of the ratings of each key; None where there are none."""
        kept = [one for one in ratings if one]
        if not kept:
            return None
        means = [fmean(one) for one in kept]
        single = all(len(one) == 1 and one[0] in (0, 1) for one in kept)
        return cls(
            len(means),
            fmean(means),
            variance(means) if len(means) > 1 else 0.0,
            round(sum(means)) if single else None,
        )

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean: Wilson's where every key rated once with 0 or 1, else Student's.

        None for a single key that is no proportion.
        """
        if self.successes is not None:
            return wilson(self.successes, self.keys)
        if self.keys < 2:
            return None
        half = _t_quantile(1 - ALPHA / 2, self.keys - 1) * math.sqrt(self.variance / self.keys)
        return Interval(self.mean - half, self.mean + half)


def wilson(successes: int, n: int) -> Interval:
    """The 95 % interval of a proportion (Wilson, JASA 22 (1927), 209; Brown, Cai and DasGupta, Statistical Science 16
    (2001), 101)."""
    z = _NORMAL.inv_cdf(1 - ALPHA / 2)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True, slots=True)
class Difference:
    """One mean less another."""

    value: float
    interval: Interval | None  # 95 %; None where nothing varies yet
    p: float | None  # two-sided


def welch(one: Sample, other: Sample) -> Difference:
    """Welch's unequal-variances t-test (Biometrika 34 (1947), 28), with Satterthwaite's degrees of freedom."""
    value = one.mean - other.mean
    if min(one.keys, other.keys) < 2 or one.variance + other.variance == 0:
        return Difference(value, None, None)
    a, b = one.variance / one.keys, other.variance / other.keys
    error = math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a * a / (one.keys - 1) + b * b / (other.keys - 1))
    half = _t_quantile(1 - ALPHA / 2, freedom) * error
    return Difference(value, Interval(value - half, value + half), 2 * _t_below(-abs(value) / error, freedom))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P-values that hold together (Holm, Scandinavian Journal of Statistics 6 (1979), 65); None stays, and counts."""
    adjusted: list[float | None] = [None] * len(ps)
    most = 0.0
    for rank, (p, place) in enumerate(sorted((p, place) for place, p in enumerate(ps) if p is not None)):
        most = max(most, min(1.0, (len(ps) - rank) * p))
        adjusted[place] = most
    return adjusted


def keys_needed(
    one: Sample, other: Sample, ratio: float, difference: float, power: float, comparisons: int = 1
) -> float | None:
    """How many keys with feedback `one` needs, and `other` `ratio` times as many, for a difference to be found.

    (z_{1-a/2} + z_power)^2 (v_one + v_other / ratio) / difference^2 (after Chow, Shao and Wang, Sample Size
    Calculations in Clinical Research, 2nd ed., 3.2.1), with a = 0.05 over the number of comparisons, which is the
    strictest of Holm's steps. None where nothing varies yet.
    """
    varies = one.variance + other.variance / ratio
    if min(one.keys, other.keys) < 2 or varies == 0:
        return None
    z = _NORMAL.inv_cdf(1 - ALPHA / comparisons / 2) + _NORMAL.inv_cdf(power)
    return z * z * varies / difference**2


def sample_ratio(keys: Mapping[str, int], weights: Mapping[str, float]) -> float | None:
    """The p-value that keys fell on arms by their weights: Pearson's chi-square test, as in Fabijan et al., Diagnosing
    Sample Ratio Mismatch in Online Controlled Experiments, KDD 2019.

    None with a single arm, or where fewer than five keys are expected in one: too few to tell.
    """
    drawn = {arm: weight for arm, weight in weights.items() if weight > 0}
    total, weight_sum = sum(keys.get(arm, 0) for arm in weights), sum(drawn.values())
    expected = {arm: total * weight / weight_sum for arm, weight in drawn.items()}
    if len(drawn) < 2 or min(expected.values()) < 5:
        return None
    if any(keys.get(arm, 0) for arm in weights.keys() - drawn.keys()):
        return 0.0  # an arm without weight is never drawn
    chi_square = sum((keys.get(arm, 0) - count) ** 2 / count for arm, count in expected.items())
    return _chi_square_above(chi_square, len(drawn) - 1)


def _t_quantile(p: float, freedom: float) -> float:
    try:
        from scipy.special import stdtrit
    except ImportError:
        return _NORMAL.inv_cdf(p)
    return float(stdtrit(freedom, p))


def _t_below(t: float, freedom: float) -> float:
    try:
        from scipy.special import stdtr
    except ImportError:
        return _NORMAL.cdf(t)
    return float(stdtr(freedom, t))


def _chi_square_above(value: float, freedom: int) -> float:
    try:
        from scipy.special import chdtrc
    except ImportError:
        # Its cube root is nearly normal (Wilson and Hilferty, PNAS 17 (1931), 684).
        spread = 2 / (9 * freedom)
        return 1 - _NORMAL.cdf(((value / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))
    return float(chdtrc(freedom, value))
