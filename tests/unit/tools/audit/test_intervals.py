"""Statistics of users: against published figures, and by simulation."""

import math
import sys
from random import Random

import numpy as np
import pytest

from vllm_lora_router.tools.statistics import Sample, holm, keys_needed, sample_ratio, welch, wilson


def test_a_proportion_has_wilsons_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), 857, table I, method 3.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        interval = wilson(successes, n)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    sample = Sample.of([[1.0], [0.0], [], [1.0]])
    assert sample is not None and sample.successes == 2 and sample.interval == wilson(2, 3)


def test_a_user_counts_once_however_often_one_rates() -> None:
    sample = Sample.of([[1.0] * 100, [0.0], [0.5, 0.0]])
    assert sample is not None
    assert (sample.keys, sample.mean, sample.successes) == (3, pytest.approx(1.25 / 3), None)
    # Student's quantile for two degrees of freedom is 4.303.
    half = 4.30265 * math.sqrt(np.var([1, 0, 0.25], ddof=1) / 3)
    assert sample.interval is not None and sample.interval.high - sample.mean == pytest.approx(half, rel=1e-5)
    assert Sample.of([[], []]) is None
    alone = Sample.of([[0.5]])
    assert alone is not None and alone.interval is None


def test_means_are_compared_as_welch_does() -> None:
    # Of scipy.stats.ttest_ind(..., equal_var=False).
    one, other = Sample.of([[1.0], [2.0], [3.0], [7.0]]), Sample.of([[0.5], [0.7], [1.1], [0.4], [0.9]])
    assert one is not None and other is not None
    found = welch(one, other)
    assert found.value == pytest.approx(2.53) and found.p == pytest.approx(0.149675, rel=1e-4)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(-1.63066, rel=1e-4)
    same = Sample.of([[1.0], [1.0]])
    assert same is not None and welch(same, same).p is None


def test_several_comparisons_are_corrected_as_holm_does() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, 0.02]) == [None, 0.04]
    assert holm([]) == []


def of(variance: float) -> Sample:
    return Sample(100, 0.5, variance)


def test_the_keys_that_are_needed_are_those_of_the_formula() -> None:
    # Two proportions near 0.5, a difference of 0.1 and 80 % power: 392 each.
    needed = keys_needed(of(0.25), of(0.25), 1, 0.1, 0.8)
    assert needed is not None and needed == pytest.approx(392.4, abs=0.1)
    # Nine in ten users on one arm: the small one needs fewer, the large one more.
    small = keys_needed(of(0.25), of(0.25), 9, 0.1, 0.8)
    assert small == pytest.approx(392.4 * (1 + 1 / 9) / 2, abs=0.1)
    assert (keys_needed(of(0.25), of(0.25), 1, 0.1, 0.8, comparisons=3) or 0) > 1.3 * needed
    assert (keys_needed(of(0.25), of(0.25), 1, 0.1, 0.95) or 0) > 1.5 * needed
    assert keys_needed(of(0.0), of(0.0), 1, 0.1, 0.8) is None


def test_keys_that_fall_by_their_weights_are_told_from_keys_that_do_not() -> None:
    weights = {"a": 3.0, "b": 1.0, "none": 0.0}
    assert (sample_ratio({"a": 750, "b": 250}, weights) or 0) == pytest.approx(1)
    assert sample_ratio({"a": 700, "b": 300}, weights) == pytest.approx(0.000261, rel=0.01)  # chi-square of 13.33
    assert sample_ratio({"a": 12, "b": 4}, weights) is None
    assert sample_ratio({"a": 1000}, {"a": 1.0}) is None
    assert sample_ratio({"a": 750, "b": 250, "none": 1}, weights) == 0.0


def test_a_ratio_that_is_right_is_seldom_doubted() -> None:
    rng = np.random.default_rng(1)
    doubted = 0
    for a, b, c in rng.multinomial(2000, [0.5, 0.3, 0.2], size=4000):
        doubted += (sample_ratio({"a": int(a), "b": int(b), "c": int(c)}, {"a": 5, "b": 3, "c": 2}) or 0) < 0.05
    assert 0.04 < doubted / 4000 < 0.06


def test_where_scipy_is_not_installed_large_samples_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    one, other = (Sample.of([[value] for value in rng.normal(mean, 1, 3000).tolist()]) for mean in (0, 0.05))
    assert one is not None and other is not None
    counts, weights = {"a": 520, "b": 290, "c": 190}, {"a": 5.0, "b": 3.0, "c": 2.0}
    exact, ratio, interval = welch(one, other), sample_ratio(counts, weights), one.interval
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    near = welch(one, other)
    assert near.p == pytest.approx(exact.p, abs=1e-3) and near.interval is not None and exact.interval is not None
    assert near.interval.low == pytest.approx(exact.interval.low, abs=1e-4)
    assert sample_ratio(counts, weights) == pytest.approx(ratio, rel=0.01)
    assert (
        one.interval is not None and interval is not None and one.interval.low == pytest.approx(interval.low, abs=1e-4)
    )


def test_users_whose_ratings_go_together_are_not_taken_for_more_than_they_are() -> None:
    # Nobody is better: each user has a taste, and rates one to 20 times by it.
    rng, chance = np.random.default_rng(2), Random(2)
    by_user = by_rating = 0
    for _ in range(400):
        arms: list[list[list[float]]] = []
        for _ in range(2):
            tastes, times = rng.beta(0.5, 0.5, 60), [chance.choice([1, 2, 20]) for _ in range(60)]
            arms.append(
                [(rng.random(n) < taste).astype(float).tolist() for taste, n in zip(tastes, times, strict=True)]
            )
        one, other = map(Sample.of, arms)
        flat = [Sample.of([[score] for user in users for score in user]) for users in arms]
        assert one is not None and other is not None and flat[0] is not None and flat[1] is not None
        by_user += (welch(one, other).p or 1) < 0.05
        by_rating += (welch(flat[0], flat[1]).p or 1) < 0.05
    print(f"false positives: {by_user / 400:.3f} by user, {by_rating / 400:.3f} by rating")
    assert by_user / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400) < 0.3 < by_rating / 400
