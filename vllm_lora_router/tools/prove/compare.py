"""Comparison of models by the log-likelihoods of the same pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vllm_lora_router.tools.statistics import ALPHA, Estimate, holm, t_test

RESAMPLES = 2000
# With fewer pairs, all differences have the same sign by chance in more than 5 % of cases.
MIN_PAIRS = 6
POWER = 0.8
_NORMAL = NormalDist()
_COUNTS = 1 << 20  # resampled counts held in memory at a time


@dataclass(frozen=True, slots=True)
class Gain:
    """One model's mean log-likelihood per token minus another's, in nats."""

    value: float
    interval: Estimate | None  # None with fewer than 6 pairs
    p: float | None  # two-sided; None with fewer than 6 pairs
    p_holm: float | None  # corrected for all models compared with the same one
    pairs_needed: int | None  # to detect a difference as large as `value`; None if the pairs do not vary

    @property
    def is_above(self) -> bool:
        """Whether the interval is above 0."""
        return self.interval is not None and self.interval.low > 0

    @property
    def is_below(self) -> bool:
        """Whether the interval is below 0."""
        return self.interval is not None and self.interval.high < 0

    @property
    def is_significant(self) -> bool:
        """Whether the model is better after correction for all models that were compared."""
        return self.is_above and self.p_holm is not None and self.p_holm < ALPHA


def compare_models(values: np.ndarray, reference: int, models: Sequence[int], *, seed: int = 0) -> list[Gain]:
    """Compare some models with a reference model.

    Whole pairs are resampled, so that all models are compared on the same pairs. The interval is the expanded
    percentile interval: the percentiles are moved outwards as far as Student's interval is wider than the normal
    interval, because plain percentiles are too narrow for few pairs (Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69 (2015), 371). P-values use Student's distribution with the bootstrap's
    standard error, and are corrected by Holm's method.

    Args:
        values: Log-likelihood per token in nats, [pairs, models].
        reference: Column of the reference model.
        models: Columns of the models to compare with it.
        seed: Seed of the resampling. The same seed and number of pairs give the same resamples.
    """
    pairs = len(values)
    means = values.mean(axis=0)
    means = means - means[reference]
    deviations = (values - values[:, [reference]]).std(axis=0, ddof=1) if pairs > 1 else np.zeros(values.shape[1])
    needed = {model: _pairs_needed(means[model], deviations[model]) for model in models}
    if pairs < MIN_PAIRS:
        return [Gain(float(means[model]), None, None, None, needed[model]) for model in models]
    resampled = _resampled_means(values, seed)
    resampled = resampled - resampled[:, [reference]]
    tail = _tail(pairs)
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    errors = resampled.std(axis=0, ddof=1) * math.sqrt(pairs / (pairs - 1))
    ps = [_p_value(float(means[model]), float(errors[model]), pairs - 1) for model in models]
    return [
        Gain(
            float(means[model]),
            Estimate(float(means[model]), float(low[model]), float(high[model]), pairs),
            p,
            p_holm,
            needed[model],
        )
        for model, p, p_holm in zip(models, ps, holm(ps), strict=True)
    ]


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the models' means over pairs drawn with replacement, [resamples, models]."""
    rng, pairs = np.random.default_rng(seed), len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    chunk = max(_COUNTS // pairs, 1)
    for start in range(0, RESAMPLES, chunk):
        rows = min(chunk, RESAMPLES - start)
        drawn = rng.integers(pairs, size=(rows, pairs)) + pairs * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * pairs).reshape(rows, pairs)
        means[start : start + rows] = counts @ values / pairs
    return means


def _tail(pairs: int) -> float:
    """Return the share of resamples beyond each end of an expanded 95 % interval."""
    from scipy import stats

    return _NORMAL.cdf(math.sqrt(pairs / (pairs - 1)) * float(stats.t.ppf(ALPHA / 2, pairs - 1)))


def _p_value(value: float, error: float, freedom: int) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return t_test(value, error, freedom)


def _pairs_needed(value: float, deviation: float) -> int | None:
    """Return how many pairs detect a difference with probability `POWER` at 95 % confidence.

    ((z + z_power) deviation / value)^2 (Chow, Shao and Wang, Sample Size Calculations in Clinical Research, 2nd ed.,
    3.1.1).
    """
    if value == 0 or deviation == 0:
        return None
    z = _NORMAL.inv_cdf(1 - ALPHA / 2) + _NORMAL.inv_cdf(POWER)
    return max(math.ceil((z * deviation / value) ** 2), MIN_PAIRS)
