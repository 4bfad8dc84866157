"""Estimates with 95 % confidence intervals, and hypothesis tests, for the commands that report measurements.

The functions import scipy when they are called, so commands that need no statistics start without it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from statistics import median as _middle

import numpy as np

ALPHA = 0.05
RATIO_ALPHA = 0.001  # a sample ratio with a smaller p-value counts as mismatched
RESAMPLES = 1000  # of a bootstrap
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int  # independent observations: prompts, users, pairs or runs


def wilson(successes: int, n: int) -> Estimate:
    """Return a proportion with Wilson's interval.

    Source: Wilson, JASA 22 (1927), 209; Brown, Cai and DasGupta, Statistical Science 16 (2001), 101.
    """
    from scipy import stats

    interval = stats.binomtest(successes, n).proportion_ci(1 - ALPHA, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def wilson_low(successes: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the lower ends of many Wilson intervals, float [proportions].

    The formula is written out because `scipy.stats.binomtest` takes 0.5 ms per proportion, and a threshold search needs
    one for every distinct score.
    """
    z = _NORMAL.inv_cdf(1 - ALPHA / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    margin = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.maximum((centre - margin) / (1 + z * z / n), 0.0)


def proportion(hits: Iterable[object]) -> Estimate | None:
    """Return the share of true values with Wilson's interval; None without values."""
    values = list(map(bool, hits))
    return wilson(sum(values), len(values)) if values else None


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean of at least two values with Student's interval.

    Suits a small number of values that are medians themselves.
    """
    return _student(fmean(values), math.sqrt(variance(values) / len(values)), len(values) - 1, len(values))


def median(values: Sequence[float]) -> Estimate:
    """Return the median of at least one value with its distribution-free interval from order statistics.

    The interval inverts the sign test. With fewer than six values it spans all of them, and its confidence is below
    95 %. Source: Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2.
    """
    from scipy import stats

    interval = stats.quantile_test(values, p=0.5).confidence_interval(1 - ALPHA)
    low, high = (min(values), max(values)) if math.isnan(interval.low) else (interval.low, interval.high)
    return Estimate(_middle(values), float(low), float(high), len(values))


def bootstrap(value: float, n: int, statistic: Callable[[np.ndarray], float], seed: int) -> Estimate:
    """Return a value with its percentile bootstrap interval (Efron, Annals of Statistics 7 (1979), 1).

    `scipy.stats.bootstrap` is not used because a resample may have no value (NaN), and because statistics of counts
    are much faster than statistics of repeated observations.

    Args:
        value: The statistic over all observations.
        n: The number of observations.
        statistic: Returns the statistic of a resample from how often it holds each observation, int64 [n]; NaN where
            the resample has none.
        seed: Seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    resamples = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    return percentile_interval(value, np.array([statistic(counts) for counts in resamples]), n)


def percentile_interval(value: float, resampled: np.ndarray, n: int) -> Estimate:
    """Return a value with the interval of its resampled values, float [resamples]; NaN values are ignored."""
    if np.isnan(resampled).all():
        return Estimate(float(value), float(value), float(value), n)
    low, high = np.nanquantile(resampled, (ALPHA / 2, 1 - ALPHA / 2))
    return Estimate(float(value), float(low), float(high), n)


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of one arm, summarised over its users.

    Ratings of one user are correlated, so each user contributes one mean, and the sample's mean is over users (as for
    trials randomised in clusters: Kerry and Bland, BMJ 316 (1998), 54).
    """

    keys: int  # users with ratings
    mean: float
    variance: float  # of the users' means, unbiased; 0 for a single user
    successes: int | None = None  # set where every user has one rating, of 0 or 1

    @classmethod
    def of(cls, ratings: Iterable[Sequence[float]]) -> "Sample | None":
        """Summarise the ratings of each user; None without ratings."""
        rated = [of_user for of_user in ratings if of_user]
        if not rated:
            return None
        means = [fmean(of_user) for of_user in rated]
        binary = all(len(of_user) == 1 and of_user[0] in (0, 1) for of_user in rated)
        return cls(
            len(means),
            fmean(means),
            variance(means) if len(means) > 1 else 0.0,
            round(sum(means)) if binary else None,
        )

    @property
    def estimate(self) -> Estimate | None:
        """The mean with its interval: Wilson's where every user rated once with 0 or 1, else Student's.

        None for a single user whose rating is not 0 or 1.
        """
        if self.successes is not None:
            return wilson(self.successes, self.keys)
        if self.keys < 2:
            return None
        return _student(self.mean, math.sqrt(self.variance / self.keys), self.keys - 1, self.keys)


def welch(first: Sample, second: Sample) -> tuple[Estimate, float] | None:
    """Return the difference of two means, first minus second, and its two-sided p-value by Welch's t-test.

    The degrees of freedom are Satterthwaite's. Source: Welch, Biometrika 34 (1947), 28.

    Returns:
        None where a sample has fewer than two users or neither sample varies.
    """
    if min(first.keys, second.keys) < 2 or first.variance + second.variance == 0:
        return None
    squares = (first.variance / first.keys, second.variance / second.keys)
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / (first.keys - 1) + squares[1] ** 2 / (second.keys - 1))
    value, error = first.mean - second.mean, math.sqrt(sum(squares))
    return _student(value, error, freedom, first.keys + second.keys), t_test(value, error, freedom)


def t_test(value: float, error: float, freedom: float) -> float:
    """Return the two-sided p-value of a value with a positive standard error under Student's distribution."""
    from scipy import stats

    return 2 * float(stats.t.sf(abs(value) / error, freedom))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        only_first: Observations that are right only under the first of two conditions.
        only_second: Observations that are right only under the second.

    Source: McNemar, Psychometrika 12 (1947), 153, in its exact form.
    """
    from scipy import stats

    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6 (1979), 65).

    None stays None, and counts as one of the tests.
    """
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(sorted((p, place) for place, p in enumerate(ps) if p is not None)):
        largest = max(largest, min(1.0, (len(ps) - rank) * p))
        corrected[place] = largest
    return corrected


def keys_needed(
    first: Sample, second: Sample, ratio: float, difference: float, power: float, comparisons: int = 1
) -> float | None:
    """Return how many users with feedback the first arm needs to detect a difference; None where nothing varies.

    (z_{1-a/2} + z_power)^2 (v_first + v_second / ratio) / difference^2 (after Chow, Shao and Wang, Sample Size
    Calculations in Clinical Research, 2nd ed., 3.2.1), with a = 0.05 over the number of comparisons, the strictest of
    Holm's steps.

    Args:
        ratio: Users of the second arm per user of the first.
        difference: The difference of means to detect.
        power: The probability of detecting it.
        comparisons: How many comparisons are corrected together.
    """
    total = first.variance + second.variance / ratio
    if min(first.keys, second.keys) < 2 or total == 0:
        return None
    z = _NORMAL.inv_cdf(1 - ALPHA / comparisons / 2) + _NORMAL.inv_cdf(power)
    return z * z * total / difference**2


def sample_ratio(keys: Mapping[str, int], weights: Mapping[str, float]) -> float | None:
    """Return the p-value that users were assigned to arms by the arms' weights, by Pearson's chi-square test.

    Source: Fabijan et al., Diagnosing Sample Ratio Mismatch in Online Controlled Experiments, KDD 2019.

    Returns:
        None for a single arm, or where fewer than five users are expected in an arm.
    """
    from scipy import stats

    weighted = {arm: weight for arm, weight in weights.items() if weight > 0}
    total, weight_sum = sum(keys.get(arm, 0) for arm in weights), sum(weighted.values())
    expected = [total * weight / weight_sum for weight in weighted.values()]
    if len(weighted) < 2 or min(expected) < 5:
        return None
    if any(keys.get(arm, 0) for arm in weights.keys() - weighted.keys()):
        return 0.0  # an arm of weight 0 is never assigned
    return float(stats.chisquare([keys.get(arm, 0) for arm in weighted], expected).pvalue)


def _student(value: float, error: float, freedom: float, n: int) -> Estimate:
    # `stats.t.interval` is undefined for a standard error of 0.
    from scipy import stats

    half = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return Estimate(value, value - half, value + half, n)
