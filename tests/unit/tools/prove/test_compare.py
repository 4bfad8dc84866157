"""Gains, their intervals and the pairs that are needed to detect them."""

import numpy as np
import pytest

from vllm_lora_router.tools.prove.compare import MIN_PAIRS, compare_models
from vllm_lora_router.tools.statistics import Estimate


def sample_values(seed: int, pairs: int, *shifts: float, spread: float = 0.5) -> np.ndarray:
    """Return values of models that differ by shifts, on pairs that differ much more from each other."""
    rng = np.random.default_rng(seed)
    return rng.normal(-3, 2, (pairs, 1)) + rng.normal(0, spread, (pairs, len(shifts))) + np.array(shifts)


def test_models_are_compared_on_the_same_pairs() -> None:
    values = sample_values(0, 40, 0.0, 0.3, -0.3)
    up, down = compare_models(values, 0, [1, 2])
    assert up.value == pytest.approx((values[:, 1] - values[:, 0]).mean())
    # Pairs vary by 2, but each model has every pair, so a difference of 0.3 is detected.
    assert up.is_above and up.is_significant and not up.is_below
    assert down.is_below and not down.is_above
    assert up.interval is not None and up.interval.low < up.interval.value == up.value < up.interval.high


def test_interval_depends_little_on_the_seed() -> None:
    values = sample_values(1, 30, 0.0, 0.2)
    (first,), (same,), (other,) = (compare_models(values, 0, [1], seed=seed) for seed in (5, 5, 6))
    assert first == same != other
    assert first.interval is not None and other.interval is not None
    assert other.interval.low == pytest.approx(first.interval.low, abs=0.03)


@pytest.mark.parametrize("pairs", [6, 20])
def test_interval_excludes_zero_for_equal_models_in_five_percent_of_cases(pairs: int) -> None:
    gains = [compare_models(sample_values(seed, pairs, 0.0, 0.0), 0, [1])[0] for seed in range(400)]
    assert 6 <= sum(gain.is_above or gain.is_below for gain in gains) <= 36  # 20 plus or minus three deviations


def test_holm_correction_prevents_false_gains_of_many_adapters() -> None:
    rows = [compare_models(sample_values(seed, 12, *[0.0] * 9), 0, range(1, 9)) for seed in range(200)]
    assert sum(any(gain.is_above for gain in row) for row in rows) > 20
    assert sum(any(gain.is_significant for gain in row) for row in rows) <= 12


def test_equal_models_have_no_gain() -> None:
    values = np.repeat(sample_values(2, 20, 0.0), 2, axis=1)
    (gain,) = compare_models(values, 0, [1])
    assert (gain.value, gain.interval, gain.p, gain.pairs_needed) == (0, Estimate(0, 0, 0, 20), 1, None)
    (shifted,) = compare_models(values + np.array([0.0, 0.25]), 0, [1])
    assert shifted.is_significant and shifted.value == pytest.approx(0.25)


def test_fewer_than_six_pairs_have_no_interval() -> None:
    for pairs in (1, MIN_PAIRS - 1):
        (gain,) = compare_models(sample_values(3, pairs, 0.0, 9.0), 0, [1])
        assert (gain.interval, gain.p, gain.p_holm) == (None, None, None)
        assert not gain.is_above and not gain.is_significant and gain.value > 5
    assert compare_models(sample_values(3, MIN_PAIRS, 0.0, 9.0), 0, [1])[0].is_above


def test_pairs_needed_detect_the_difference_with_80_percent_power() -> None:
    shift, spread = 0.2, 0.5
    many = compare_models(sample_values(4, 4000, 0.0, shift, spread=spread), 0, [1])[0]
    assert many.pairs_needed == pytest.approx(2.8**2 * 2 * spread**2 / shift**2, rel=0.15)
    needed = many.pairs_needed or 0
    detected = [compare_models(sample_values(seed, needed, 0.0, shift), 0, [1])[0].is_above for seed in range(200)]
    assert 0.7 < np.mean(detected) < 0.9


def test_thousands_of_pairs_are_compared() -> None:
    (gain,) = compare_models(sample_values(5, 5_000, 0.0, 0.04), 0, [1])
    assert gain.is_above
