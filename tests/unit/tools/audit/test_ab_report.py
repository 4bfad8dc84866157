"""Reports on A/B tests: results for each arm, and comparisons of arms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.routing.ab_assignment import digest, rank_arms
from vllm_lora_router.tools.audit.ab_report import Experiment, ab_experiments
from vllm_lora_router.tools.audit.join import JoinedDecision
from vllm_lora_router.tools.statistics import Sample, welch

from .conftest import decision, feedback, outcome

EQUAL_WEIGHTS = {"old": 1.0, "new": 1.0}


def assigned(
    key: str,
    weights: dict[str, float],
    *scores: float,
    at_s: float = 0.0,
    ended: AuditLine | None = None,
    **served: Any,
) -> JoinedDecision:
    """Return a request of one user that the key's arm served."""
    line = decision(at_s=at_s)
    arm = rank_arms(key, "medical", weights)[0]
    line["plan"]["assignment"] = {
        "category": "medical",
        "key": key,
        "key_source": "user",
        "arm": arm,
        "weights": weights,
    }
    line["served"] |= {"model": arm, "adapter": arm, "arm": arm, **served}
    return JoinedDecision(line, outcome() if ended is None else ended, [feedback(score) for score in scores])


def user_keys(count: int, salt: str = "") -> list[str]:
    return [digest(salt, str(number)) for number in range(count)]


def experiment_of(decisions: list[JoinedDecision], **options: Any) -> Experiment:
    (experiment,) = ab_experiments(decisions, **options)
    return experiment


def test_users_count_for_their_arm_whatever_served_them() -> None:
    users = user_keys(200)
    decisions = [assigned(key, EQUAL_WEIGHTS) for key in users * 2]
    # The arm of these users could not be loaded, and the other arm served them.
    others = [assigned(key, EQUAL_WEIGHTS, arm=rank_arms(key, "medical", EQUAL_WEIGHTS)[1]) for key in users[:50]]
    experiment = experiment_of([*decisions, *others])
    assert [arm.name for arm in experiment.arms] == ["old", "new"]
    assert sum(arm.keys for arm in experiment.arms) == 200 and sum(arm.requests for arm in experiment.arms) == 450
    for arm in experiment.arms:
        in_arm = [rank_arms(key, "medical", EQUAL_WEIGHTS)[0] == arm.name for key in users]
        assert (arm.keys, arm.requests, arm.served_by_other) == (
            *(sum(in_arm), 2 * sum(in_arm) + sum(in_arm[:50]), sum(in_arm[:50])),
        )


def test_outcomes_are_counted_by_arm() -> None:
    (key,) = user_keys(1)
    outcomes = [
        outcome(),
        outcome(finish_reason="length", first_byte_ms=40.0),
        outcome(status=500, finish_reason=None, first_byte_ms=None),
        outcome(status=None, finish_reason=None, first_byte_ms=None, aborted=True),
    ]
    decisions = [assigned(key, EQUAL_WEIGHTS, ended=ended) for ended in outcomes]
    decisions.append(JoinedDecision(decisions[0].decision))
    (arm,) = [arm for arm in experiment_of(decisions).arms if arm.requests]
    assert arm.finish_reasons == {"-": 2, "stop": 1, "length": 1}
    assert (arm.requests, arm.aborted, arm.errors, arm.without_outcome) == (5, 1, 1, 1)
    assert (arm.first_byte_ms.p50, arm.first_byte_ms.p95) == (30.0, 39.0)


def test_last_rating_of_a_response_counts() -> None:
    (key,) = user_keys(1)
    experiment = experiment_of([assigned(key, EQUAL_WEIGHTS, 0.0, 1.0), assigned(key, EQUAL_WEIGHTS, 0.5)])
    (arm,) = [arm for arm in experiment.arms if arm.requests]
    assert arm.sample is not None and (arm.ratings, arm.sample.keys, arm.sample.mean) == (2, 1, 0.75)
    assert arm.mean is None


def test_observed_and_unassigned_decisions_are_ignored() -> None:
    observed = assigned(user_keys(1)[0], EQUAL_WEIGHTS)
    observed.decision["reason"] = "observe"
    assert ab_experiments([observed, JoinedDecision(decision())]) == []


def test_arms_are_compared_with_the_arm_of_the_largest_weight() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 1.0, "none": 0.0}
    rng = Random(1)
    positive = {"a": 0.5, "b": 0.5, "c": 0.9}
    decisions = [
        assigned(key, weights, float(rng.random() < positive[rank_arms(key, "medical", weights)[0]]), at_s=n)
        for n, key in enumerate(user_keys(800))
    ]
    experiment = experiment_of(decisions)
    assert [(comparison.arm, comparison.baseline) for comparison in experiment.comparisons] == [("a", "b"), ("c", "b")]
    a, c = experiment.comparisons
    assert c.is_significant and not a.is_significant and c.difference == pytest.approx(0.4, abs=0.1)
    assert c.interval is not None and c.interval.value == pytest.approx(c.difference)
    assert c.p is not None and c.p_holm == 2 * c.p and a.p_holm == a.p
    assert experiment.is_trusted and experiment.sample_ratio_p is not None
    assert (a.target_difference, a.baseline_keys_needed) == (0.05, pytest.approx(2 * (a.keys_needed or 0), abs=2))
    # Arm a has about 200 keys in 800 seconds.
    assert a.days == pytest.approx(800 / 86400 * (a.keys_needed or 0) / 200, rel=0.1)
    larger_target = experiment_of(decisions, target_difference=0.1).comparisons[0]
    assert larger_target.keys_needed == pytest.approx((a.keys_needed or 0) / 4, abs=1)


def test_default_target_is_a_fifth_of_the_standard_deviation() -> None:
    rng = Random(1)
    experiment = experiment_of([assigned(key, EQUAL_WEIGHTS, rng.gauss(50, 10)) for key in user_keys(500)])
    (comparison,) = experiment.comparisons
    assert comparison.target_difference == pytest.approx(2, rel=0.1)
    assert comparison.keys_needed == pytest.approx(392, abs=5)  # of each arm, for 0.2 standard deviations


def test_arms_without_ratings_are_not_compared() -> None:
    experiment = experiment_of([assigned(key, EQUAL_WEIGHTS) for key in user_keys(20)])
    assert experiment.comparisons == [] and all(arm.sample is None for arm in experiment.arms)


def test_equal_ratings_have_no_p_value() -> None:
    (comparison,) = experiment_of([assigned(key, EQUAL_WEIGHTS, 1.0) for key in user_keys(20)]).comparisons
    assert (comparison.difference, comparison.interval, comparison.p) == (0.0, None, None)
    assert (comparison.keys_needed, comparison.is_significant) == (None, False)


def test_changed_weights_are_another_experiment() -> None:
    changed = {"old": 1.0, "new": 3.0}
    decisions = [assigned(key, EQUAL_WEIGHTS, at_s=0) for key in user_keys(10)]
    decisions += [assigned(key, changed, at_s=60) for key in user_keys(10)]
    decisions[5].decision["config"] = "another"
    first, second = ab_experiments(decisions)
    assert (first.weights, first.configs, second.weights) == (EQUAL_WEIGHTS, ["0a1b2c3d", "another"], changed)
    assert first.last < second.first and sum(arm.requests for arm in second.arms) == 10


def test_sample_ratio_mismatch_is_not_trusted() -> None:
    keys = user_keys(2000)
    # Every third line of one arm is missing.
    present = [key for n, key in enumerate(keys) if n % 3 or rank_arms(key, "medical", EQUAL_WEIGHTS)[0] == "old"]
    experiment = experiment_of([assigned(key, EQUAL_WEIGHTS) for key in present])
    assert not experiment.is_trusted and (experiment.sample_ratio_p or 0) < 1e-6
    assert experiment_of([assigned(key, EQUAL_WEIGHTS) for key in keys]).is_trusted


def test_versions_of_an_arm_are_counted() -> None:
    decisions = [
        assigned(key, EQUAL_WEIGHTS, content_digest=version) for key in user_keys(10) for version in ("one", "two")
    ]
    assert [arm.content_versions for arm in experiment_of(decisions).arms] == [2, 2]


# The probability of a positive rating in each arm of the simulation.
OLD, NEW = 0.70, 0.75


def simulated_assignments(count: int, weights: dict[str, float]) -> Iterator[np.ndarray]:
    """Yield, for each experiment, which of its users are assigned to "new". Experiments share no users."""
    number = 0
    while True:
        users = (digest("", str(user)) for user in range(number, number + count))
        yield np.array([rank_arms(key, "medical", weights)[0] == "new" for key in users])
        number += count


def binary_sample(successes: int, n: int) -> Sample:
    p = successes / n
    return Sample(n, p, p * (1 - p) * n / (n - 1), successes)


def p_value(first: Sample, second: Sample) -> float:
    result = welch(first, second)
    return 1.0 if result is None else result[1]


@pytest.mark.parametrize("weights", [EQUAL_WEIGHTS, {"old": 3.0, "new": 1.0}])
def test_keys_needed_give_the_requested_power(weights: dict[str, float]) -> None:
    rng, pilot_rng = np.random.default_rng(3), Random(3)
    pilot = [
        assigned(
            key, weights, float(pilot_rng.random() < (NEW if rank_arms(key, "medical", weights)[0] == "new" else OLD))
        )
        for key in user_keys(1000, "pilot")
    ]
    (comparison,) = experiment_of(pilot, target_difference=NEW - OLD, power=0.8).comparisons
    assert comparison.keys_needed is not None and comparison.baseline_keys_needed is not None
    count = comparison.keys_needed + comparison.baseline_keys_needed
    # The formula with the true proportions gives the same number, apart from the random error of the pilot.
    ratio = weights[comparison.baseline] / weights[comparison.arm]
    variances = {"old": OLD * (1 - OLD), "new": NEW * (1 - NEW)}
    exact = 7.849 * (variances[comparison.arm] + variances[comparison.baseline] / ratio) / (NEW - OLD) ** 2
    assert comparison.keys_needed == pytest.approx(exact, rel=0.1)

    sizes = [int(is_new.sum()) for is_new, _ in zip(simulated_assignments(count, weights), range(60), strict=False)]
    experiments, true_positives, false_positives = 4000, 0, 0
    for experiment in range(experiments):
        new = sizes[experiment % len(sizes)]
        old = count - new
        baseline = binary_sample(int(rng.binomial(old, OLD)), old)
        better, equal = (binary_sample(int(rng.binomial(new, p)), new) for p in (NEW, OLD))
        true_positives += p_value(better, baseline) < 0.05
        false_positives += p_value(equal, baseline) < 0.05
    power, false_rate = true_positives / experiments, false_positives / experiments
    users = f"{comparison.keys_needed} and {comparison.baseline_keys_needed} users"
    print(f"{users}: power {power:.3f}, false positives {false_rate:.4f}")
    # Three standard errors of the simulation, plus the pilot's error in the variance, which is 3 % of the sample.
    assert power == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / experiments) + 0.02)
    assert false_rate < 0.05 + 3 * math.sqrt(0.05 * 0.95 / experiments)
