"""Statistics, compared with published figures, with scipy and by simulation."""

import math
import random
from math import comb
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
from scipy import stats

from vllm_lora_router.tools.statistics import (
    Estimate,
    Sample,
    bootstrap,
    holm,
    keys_needed,
    mcnemar,
    mean,
    median,
    percentile_interval,
    proportion,
    sample_ratio,
    welch,
    wilson,
    wilson_low,
)


def sample_of(*ratings: list[float]) -> Sample:
    sample = Sample.of(ratings)
    assert sample is not None
    return sample


def test_wilson_interval_matches_published_figures() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), 857, table I, method 3.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        estimate = wilson(successes, n)
        assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
        assert (estimate.value, estimate.n) == (successes / n, n)


def test_wilson_low_matches_wilson() -> None:
    cases = [(successes, n) for n in (1, 7, 20, 2000) for successes in {0, 1, n // 3, n}]
    successes, n = np.array(cases).T
    assert wilson_low(successes, n) == pytest.approx([wilson(*case).low for case in cases], abs=1e-12)


def test_proportion_counts_true_values() -> None:
    assert proportion([1, 0, True]) == wilson(2, 3)
    assert proportion([]) is None


def test_sample_of_single_binary_ratings_has_wilson_interval() -> None:
    sample = sample_of([1.0], [0.0], [], [1.0])
    assert sample.successes == 2 and sample.estimate == wilson(2, 3)


def test_sample_counts_each_user_once() -> None:
    sample = sample_of([1.0] * 100, [0.0], [0.5, 0.0])
    assert (sample.keys, sample.mean, sample.successes) == (3, pytest.approx(1.25 / 3), None)
    # Student's quantile for two degrees of freedom is 4.303.
    half = 4.30265 * math.sqrt(np.var([1, 0, 0.25], ddof=1) / 3)
    assert sample.estimate is not None and sample.estimate.high - sample.mean == pytest.approx(half, rel=1e-5)
    assert Sample.of([[], []]) is None
    assert sample_of([0.5]).estimate is None


def test_welch_matches_scipy() -> None:
    first, second = [1.0, 2.0, 3.0, 7.0], [0.5, 0.7, 1.1, 0.4, 0.9]
    result = welch(*(sample_of(*([value] for value in values)) for values in (first, second)))
    assert result is not None
    difference, p = result
    assert (difference.value, difference.n) == (pytest.approx(2.53), 9) and p == pytest.approx(0.149675, rel=1e-4)
    assert difference.low == pytest.approx(-1.63066, rel=1e-4)
    expected: Any = stats.ttest_ind(first, second, equal_var=False)
    assert p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_welch_without_variance_returns_none() -> None:
    constant = sample_of([1.0], [1.0])
    assert welch(constant, constant) is None


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([None, 0.02]) == [None, 0.04]
    assert holm([]) == []


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 1), (3, 12), (12, 3), (5, 5), (40, 70)])
def test_mcnemar_p_value_is_the_exact_binomial_p_value(lost: int, gained: int) -> None:
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))


def of_variance(variance: float) -> Sample:
    return Sample(100, 0.5, variance)


def test_keys_needed_matches_the_formula() -> None:
    # Two proportions near 0.5, a difference of 0.1 and 80 % power: 392 each.
    half, none = of_variance(0.25), of_variance(0.0)
    needed = keys_needed(half, half, 1, 0.1, 0.8)
    assert needed is not None and needed == pytest.approx(392.4, abs=0.1)
    # With nine in ten users on one arm, the small arm needs fewer users and the large arm more.
    assert keys_needed(half, half, 9, 0.1, 0.8) == pytest.approx(392.4 * (1 + 1 / 9) / 2, abs=0.1)
    assert (keys_needed(half, half, 1, 0.1, 0.8, comparisons=3) or 0) > 1.3 * needed
    assert (keys_needed(half, half, 1, 0.1, 0.95) or 0) > 1.5 * needed
    assert keys_needed(none, none, 1, 0.1, 0.8) is None


def test_sample_ratio_detects_keys_that_do_not_match_the_weights() -> None:
    weights = {"a": 3.0, "b": 1.0, "none": 0.0}
    assert (sample_ratio({"a": 750, "b": 250}, weights) or 0) == pytest.approx(1)
    assert sample_ratio({"a": 700, "b": 300}, weights) == pytest.approx(0.000261, rel=0.01)  # chi-square of 13.33
    assert sample_ratio({"a": 12, "b": 4}, weights) is None
    assert sample_ratio({"a": 1000}, {"a": 1.0}) is None
    assert sample_ratio({"a": 750, "b": 250, "none": 1}, weights) == 0.0


def test_correct_sample_ratio_is_doubted_in_five_percent_of_cases() -> None:
    rng = np.random.default_rng(1)
    doubted = 0
    for a, b, c in rng.multinomial(2000, [0.5, 0.3, 0.2], size=4000):
        doubted += (sample_ratio({"a": int(a), "b": int(b), "c": int(c)}, {"a": 5, "b": 3, "c": 2}) or 0) < 0.05
    assert 0.04 < doubted / 4000 < 0.06


def test_correlated_ratings_of_one_user_do_not_cause_false_positives() -> None:
    # Both arms are equally good: each user has a preference, and rates 1, 2 or 20 times by it.
    rng, choices = np.random.default_rng(2), random.Random(2)
    by_user = by_rating = 0

    def is_significant(first: Sample, second: Sample) -> bool:
        result = welch(first, second)
        return result is not None and result[1] < 0.05

    for _ in range(400):
        arms: list[list[list[float]]] = []
        for _ in range(2):
            preferences, times = rng.beta(0.5, 0.5, 60), [choices.choice([1, 2, 20]) for _ in range(60)]
            arms.append(
                [
                    (rng.random(n) < preference).astype(float).tolist()
                    for preference, n in zip(preferences, times, strict=True)
                ]
            )
        by_user += is_significant(*(sample_of(*users) for users in arms))
        by_rating += is_significant(*(sample_of(*([score] for user in users for score in user)) for users in arms))
    print(f"false positives: {by_user / 400:.3f} by user, {by_rating / 400:.3f} by rating")
    assert by_user / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400) < 0.3 < by_rating / 400


@pytest.mark.parametrize(("values", "most"), [(101, 975), (30, 980), (400, 975), (8, 998)])
def test_median_interval_contains_the_true_median_in_at_least_95_percent_of_cases(values: int, most: int) -> None:
    draw = random.Random(7)
    contained = 0
    for _ in range(1000):
        estimate = median([draw.expovariate(1.0) for _ in range(values)])
        assert estimate.low <= estimate.value <= estimate.high
        contained += estimate.low <= 0.6931 <= estimate.high
    assert 930 <= contained <= most


def test_median_interval_of_few_values_spans_all_of_them() -> None:
    assert median([3.0, 1.0, 2.0]) == Estimate(2.0, 1.0, 3.0, 3)
    assert median([4.0]) == Estimate(4.0, 4.0, 4.0, 1)


def test_median_ignores_outliers() -> None:
    assert median([10.0] * 995 + [10_000.0] * 5) == Estimate(10.0, 10.0, 10.0, 1000)


def test_mean_interval_of_few_values_contains_the_true_mean_in_95_percent_of_cases() -> None:
    draw = random.Random(3)
    estimates = [mean([draw.gauss(0.2, 0.5) for _ in range(5)]) for _ in range(1000)]
    assert 930 <= sum(estimate.low <= 0.2 <= estimate.high for estimate in estimates) <= 970
    assert mean([1.0, 3.0]).value == 2.0
    assert mean([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0, 2)


def test_bootstrap_matches_scipy() -> None:
    values = np.random.default_rng(5).exponential(size=40)

    def weighted_mean(counts: np.ndarray) -> float:
        return float(counts @ values / counts.sum())

    estimate = bootstrap(float(values.mean()), 40, weighted_mean, seed=7)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(7))
    assert (estimate.value, estimate.n) == (float(values.mean()), 40)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
    assert bootstrap(float(values.mean()), 40, weighted_mean, seed=7) == estimate


def test_resamples_without_a_value_are_ignored() -> None:
    assert percentile_interval(0.5, np.array([np.nan, np.nan]), 3) == Estimate(0.5, 0.5, 0.5, 3)
    assert percentile_interval(0.5, np.array([np.nan, 0.4, 0.4]), 3) == Estimate(0.5, 0.4, 0.4, 3)
