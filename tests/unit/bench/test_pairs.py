"""The statistics of the benchmark."""

import random

from vllm_lora_router.bench.pairs import Pairs, median_interval


def test_the_interval_holds_the_true_median_about_95_times_in_100() -> None:
    draw = random.Random(7)
    held = 0
    for _ in range(1000):
        interval = median_interval([draw.expovariate(1.0) for _ in range(101)])
        assert interval.low <= interval.median <= interval.high
        held += interval.low <= 0.6931 <= interval.high
    assert 930 <= held <= 975


def test_the_difference_is_taken_pair_by_pair() -> None:
    named = [float(i % 50) for i in range(1000)]  # drifts far more than routing costs
    difference = Pairs(named, [value + 0.5 for value in named], []).difference
    assert (difference.low, difference.median, difference.high) == (0.5, 0.5, 0.5)
