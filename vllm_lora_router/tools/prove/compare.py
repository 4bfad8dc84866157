"""How much better one model answers than another, on the same pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vllm_lora_router.tools.statistics import ALPHA, holm

RESAMPLES = 2000
# With fewer, differences that are all of one sign come up by chance more often than one time in twenty.
LEAST_PAIRS = 6
POWER = 0.8
_NORMAL = NormalDist()
_COUNTS = 1 << 20  # of how often a pair was drawn, in memory at a time


@dataclass(frozen=True, slots=True)
class Difference:
    """A model's mean log-likelihood a token less another's, in nats; what is None takes more pairs to tell."""

    value: float
    low: float | None  # 95 %
    high: float | None
    p: float | None  # two-sided
    p_holm: float | None  # of all models that were compared with the same one
    pairs_needed: int | None  # to find a difference as large as `value`; None where nothing varies

    @property
    def is_above(self) -> bool:
        """Whether the interval is above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below(self) -> bool:
        """Whether the interval is below 0."""
        return self.high is not None and self.high < 0

    @property
    def is_found_above(self) -> bool:
        """Whether the model is better, and would be so among all that were compared."""
        return self.is_above and self.p_holm is not None and self.p_holm < ALPHA


def differences(values: np.ndarray, to: int, of: Sequence[int], *, seed: int = 0) -> list[Difference]:
    """The differences of some models to one of them.

    Whole pairs are drawn again, so all models are compared on the same ones. The interval is the expanded percentile
    interval: the percentiles are moved outwards as far as Student's interval is wider than the normal one, because
    plain percentiles are too narrow for few pairs (Hesterberg, What Teachers Should Know About the Bootstrap, The
    American Statistician 69 (2015), 371). P-values are Student's, by the bootstrap's standard error, corrected by Holm.

    Args:
        values: [pairs, models] log-likelihood a token, in nats.
        to: the column of the model that others are compared with.
        of: the columns of those others.
        seed: of the draws; with the same seed and number of pairs they are the same.
    """
    pairs = len(values)
    value = values.mean(axis=0)
    value = value - value[to]
    spread = (values - values[:, [to]]).std(axis=0, ddof=1) if pairs > 1 else np.zeros(values.shape[1])
    if pairs < LEAST_PAIRS:
        return [Difference(float(value[one]), None, None, None, None, _needed(value[one], spread[one])) for one in of]
    drawn = _resampled(values, seed)
    drawn = drawn - drawn[:, [to]]
    beyond = _beyond(pairs)
    low, high = np.quantile(drawn, [beyond, 1 - beyond], axis=0)
    error = drawn.std(axis=0, ddof=1) * math.sqrt(pairs / (pairs - 1))
    p = [_p(float(value[one]), float(error[one]), pairs - 1) for one in of]
    return [
        Difference(
            float(value[one]), float(low[one]), float(high[one]), own, corrected, _needed(value[one], spread[one])
        )
        for one, own, corrected in zip(of, p, holm(p), strict=True)
    ]


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """The models' means over pairs that were drawn with replacement: [resamples, models]."""
    draw, pairs = np.random.default_rng(seed), len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    together = max(_COUNTS // pairs, 1)
    for start in range(0, RESAMPLES, together):
        rows = min(together, RESAMPLES - start)
        drawn = draw.integers(pairs, size=(rows, pairs)) + pairs * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * pairs).reshape(rows, pairs)
        means[start : start + rows] = times @ values / pairs
    return means


def _beyond(pairs: int) -> float:
    """The share of resamples beyond each end of a 95 % interval."""
    from scipy.special import stdtrit

    return _NORMAL.cdf(math.sqrt(pairs / (pairs - 1)) * float(stdtrit(pairs - 1, ALPHA / 2)))


def _p(value: float, error: float, freedom: int) -> float:
    from scipy.special import stdtr

    if error == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * float(stdtr(freedom, -abs(value) / error))


def _needed(value: float, deviation: float) -> int | None:
    """Pairs to find a difference with a probability of `POWER` at 95 % confidence: ((z + z_power) deviation / value)^2
    (Chow, Shao and Wang, Sample Size Calculations in Clinical Research, 2nd ed., 3.1.1)."""
    if value == 0 or deviation == 0:
        return None
    z = _NORMAL.inv_cdf(1 - ALPHA / 2) + _NORMAL.inv_cdf(POWER)
    return max(math.ceil((z * deviation / value) ** 2), LEAST_PAIRS)
