"""The statistics of the benchmarks."""

import random

import pytest

from vllm_lora_router.tools.bench.estimates import mean, median


@pytest.mark.parametrize(("values", "most"), [(101, 975), (30, 980), (400, 975), (8, 998)])
def test_the_interval_holds_the_true_median_about_95_times_in_100_or_more(values: int, most: int) -> None:
    draw = random.Random(7)
    held = 0
    for _ in range(1000):
        found = median([draw.expovariate(1.0) for _ in range(values)])
        assert found.low <= found.value <= found.high
        held += found.low <= 0.6931 <= found.high
    assert 930 <= held <= most


def test_of_a_few_values_it_is_from_the_least_to_the_greatest() -> None:
    found = median([3.0, 1.0, 2.0])
    assert (found.low, found.value, found.high) == (1.0, 2.0, 3.0)
    assert median([4.0]).low == median([4.0]).high == 4.0


def test_a_few_values_that_are_far_off_do_not_matter() -> None:
    found = median([10.0] * 995 + [10_000.0] * 5)
    assert (found.low, found.value, found.high) == (10.0, 10.0, 10.0)


def test_the_interval_of_a_mean_of_few_values_holds_it_95_times_in_100() -> None:
    pytest.importorskip("scipy")
    draw = random.Random(3)
    found = [mean([draw.gauss(0.2, 0.5) for _ in range(5)]) for _ in range(1000)]
    assert 930 <= sum(one.low <= 0.2 <= one.high for one in found) <= 970
    assert mean([1.0, 3.0]).value == 2.0
