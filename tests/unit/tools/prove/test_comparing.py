"""Differences come with intervals that hold, and with the number of pairs that would find them."""

import numpy as np
import pytest

from vllm_lora_router.tools.prove.compare import LEAST_PAIRS, differences


def drawn(seed: int, pairs: int, *shifts: float, spread: float = 0.5) -> np.ndarray:
    """Models that differ by shifts, on pairs that differ far more from each other."""
    draw = np.random.default_rng(seed)
    return draw.normal(-3, 2, (pairs, 1)) + draw.normal(0, spread, (pairs, len(shifts))) + np.array(shifts)


def test_the_same_models_are_compared_on_the_same_pairs() -> None:
    values = drawn(0, 40, 0.0, 0.3, -0.3)
    up, down = differences(values, 0, [1, 2])
    assert up.value == pytest.approx((values[:, 1] - values[:, 0]).mean())
    # Pairs vary by 2, and yet a difference of 0.3 is found, as each model has every pair.
    assert up.is_above and up.is_found_above and not up.is_below
    assert down.is_below and not down.is_above
    assert up.low is not None and up.high is not None and up.low < up.value < up.high


def test_the_same_seed_gives_the_same_interval_and_another_nearly() -> None:
    values = drawn(1, 30, 0.0, 0.2)
    (one,), (same,), (other,) = (differences(values, 0, [1], seed=seed) for seed in (5, 5, 6))
    assert one == same != other
    assert other.low == pytest.approx(one.low, abs=0.03)


@pytest.mark.parametrize("pairs", [6, 20])
def test_a_difference_of_nothing_is_outside_its_interval_about_one_time_in_twenty(pairs: int) -> None:
    found = [differences(drawn(seed, pairs, 0.0, 0.0), 0, [1])[0] for seed in range(400)]
    assert 6 <= sum(one.is_above or one.is_below for one in found) <= 36  # 20, give or take three deviations and more


def test_the_correction_keeps_many_adapters_from_looking_better_by_chance() -> None:
    found = [differences(drawn(seed, 12, *[0.0] * 9), 0, range(1, 9)) for seed in range(200)]
    assert sum(any(one.is_above for one in row) for row in found) > 20
    assert sum(any(one.is_found_above for one in row) for row in found) <= 12


def test_models_that_say_the_same_do_not_differ() -> None:
    values = np.repeat(drawn(2, 20, 0.0), 2, axis=1)
    (one,) = differences(values, 0, [1])
    assert (one.value, one.low, one.high, one.p, one.pairs_needed) == (0, 0, 0, 1, None)
    (shifted,) = differences(values + np.array([0.0, 0.25]), 0, [1])
    assert shifted.is_found_above and shifted.value == pytest.approx(0.25)


def test_few_pairs_tell_nothing() -> None:
    for pairs in (1, LEAST_PAIRS - 1):
        (one,) = differences(drawn(3, pairs, 0.0, 9.0), 0, [1])
        assert (one.low, one.high, one.p, one.p_holm) == (None, None, None, None)
        assert not one.is_above and not one.is_found_above and one.value > 5
    assert differences(drawn(3, LEAST_PAIRS, 0.0, 9.0), 0, [1])[0].is_above


def test_so_many_pairs_as_are_said_to_be_needed_find_the_difference() -> None:
    shift, spread = 0.2, 0.5
    many = differences(drawn(4, 4000, 0.0, shift, spread=spread), 0, [1])[0]
    assert many.pairs_needed == pytest.approx(2.8**2 * 2 * spread**2 / shift**2, rel=0.15)
    found = [differences(drawn(seed, many.pairs_needed or 0, 0.0, shift), 0, [1])[0].is_above for seed in range(200)]
    assert 0.7 < np.mean(found) < 0.9


def test_thousands_of_pairs_take_a_moment_and_little_memory() -> None:
    (one,) = differences(drawn(5, 5_000, 0.0, 0.04), 0, [1])
    assert one.is_above
