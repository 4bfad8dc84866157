"""A figure with its 95 % interval: Wilson's for shares, the bootstrap for everything else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.statistics import ALPHA, wilson

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, with its 95 % interval."""

    value: float
    low: float
    high: float
    of: int  # prompts


def share(hits: Iterable[object]) -> Figure | None:
    """The share of those that hold; None of nothing."""
    found = list(map(bool, hits))
    if not found:
        return None
    interval = wilson(sum(found), len(found))
    return Figure(sum(found) / len(found), interval.low, interval.high, len(found))


def bootstrapped(value: float, n: int, measure: Callable[[np.ndarray], float], seed: int) -> Figure:
    """A figure with its percentile interval by the bootstrap (Efron, Annals of Statistics 7 (1979), 1).

    Args:
        value: of all prompts.
        n: how many prompts there are.
        measure: the figure of a resample, given how often each prompt is in it, int64 [n]; NaN where it has none.
    """
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    return _figure(value, np.array([measure(counts) for counts in drawn]), n)


def resampled(value: float, n: int, of_resamples: np.ndarray) -> Figure:
    """The same where the figures of the resamples are known, float [resamples]."""
    return _figure(value, of_resamples, n)


def _figure(value: float, values: np.ndarray, n: int) -> Figure:
    low, high = np.nanquantile(values, (ALPHA / 2, 1 - ALPHA / 2)) if not np.isnan(values).all() else (value, value)
    return Figure(float(value), float(low), float(high), n)
