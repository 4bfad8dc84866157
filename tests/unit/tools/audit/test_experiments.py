"""A/B tests by the record: users with the arm that they drew, and what can be said of the difference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.routing.ab_assignment import digest, order
from vllm_lora_router.tools.audit.ab_report import Experiment, experiments
from vllm_lora_router.tools.audit.join import Recorded
from vllm_lora_router.tools.statistics import Sample, welch

from .conftest import decision, feedback, outcome

Line = dict[str, Any]
EQUAL = {"old": 1.0, "new": 1.0}


def drawn(
    key: str, weights: dict[str, float], *scores: float, at_s: float = 0.0, went: Line | None = None, **changes: Any
) -> Recorded:
    """A request of one user, served by the arm that the key draws."""
    line = decision(at_s=at_s)
    arm = order(key, "medical", weights)[0]
    line["plan"]["draw"] = {"category": "medical", "key": key, "by": "user", "arm": arm, "weights": weights}
    line["served"] |= {"model": arm, "adapter": arm, "arm": arm, **changes}
    return Recorded(line, outcome() if went is None else went, [feedback(score) for score in scores])


def keys(count: int, salt: str = "") -> list[str]:
    return [digest(salt, str(number)) for number in range(count)]


def one(recorded: list[Recorded], **more: Any) -> Experiment:
    (found,) = experiments(recorded, **more)
    return found


def test_users_are_counted_with_the_arm_they_drew_whatever_served_them() -> None:
    users = keys(200)
    recorded = [drawn(key, EQUAL) for key in users * 2]
    # Their own arm could not be loaded, so that the other served.
    fallen = [drawn(key, EQUAL, arm=order(key, "medical", EQUAL)[1]) for key in users[:50]]
    found = one([*recorded, *fallen])
    assert [arm.name for arm in found.arms] == ["old", "new"]
    assert sum(arm.keys for arm in found.arms) == 200 and sum(arm.requests for arm in found.arms) == 450
    for arm in found.arms:
        drew = [order(key, "medical", EQUAL)[0] == arm.name for key in users]
        assert (arm.keys, arm.requests, arm.otherwise) == (sum(drew), 2 * sum(drew) + sum(drew[:50]), sum(drew[:50]))


def test_how_responses_went_is_counted_by_arm() -> None:
    (key,) = keys(1)
    went = [
        outcome(),
        outcome(finish="length", first_byte_ms=40.0),
        outcome(status=500, finish=None, first_byte_ms=None),
        outcome(status=None, finish=None, first_byte_ms=None, aborted=True),
    ]
    recorded = [drawn(key, EQUAL, went=one) for one in went]
    recorded.append(Recorded(recorded[0].decision))
    (arm,) = [arm for arm in one(recorded).arms if arm.requests]
    assert arm.finish == {"-": 2, "stop": 1, "length": 1}
    assert (arm.requests, arm.aborted, arm.errors, arm.without_outcome) == (5, 1, 1, 1)
    assert (arm.first_byte_ms.p50, arm.first_byte_ms.p95) == (30.0, 39.0)


def test_of_several_ratings_of_an_answer_the_last_counts() -> None:
    (key,) = keys(1)
    (arm,) = [arm for arm in one([drawn(key, EQUAL, 0.0, 1.0), drawn(key, EQUAL, 0.5)]).arms if arm.requests]
    assert arm.sample is not None and (arm.ratings, arm.sample.keys, arm.sample.mean) == (2, 1, 0.75)


def test_what_was_only_observed_and_what_drew_nothing_is_left_out() -> None:
    observed = drawn(keys(1)[0], EQUAL)
    observed.decision["reason"] = "observe"
    assert experiments([observed, Recorded(decision())]) == []


def test_arms_are_compared_with_the_one_of_the_largest_weight() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 1.0, "none": 0.0}
    chance = Random(1)
    better = {"a": 0.5, "b": 0.5, "c": 0.9}
    recorded = [
        drawn(key, weights, float(chance.random() < better[order(key, "medical", weights)[0]]), at_s=n)
        for n, key in enumerate(keys(800))
    ]
    found = one(recorded)
    assert [(compared.arm, compared.against) for compared in found.comparisons] == [("a", "b"), ("c", "b")]
    a, c = found.comparisons
    assert c.is_found and not a.is_found and c.difference == pytest.approx(0.4, abs=0.1)
    assert c.p is not None and c.p_holm == 2 * c.p and a.p_holm == a.p
    assert found.is_trusted and found.sample_ratio_p is not None
    assert (a.sought, a.needed_against) == (0.05, pytest.approx(2 * (a.needed or 0), abs=2))
    # 800 seconds brought about 200 keys to arm a.
    assert a.days == pytest.approx(800 / 86400 * (a.needed or 0) / 200, rel=0.1)
    assert one(recorded, difference=0.1).comparisons[0].needed == pytest.approx((a.needed or 0) / 4, abs=1)


def test_scores_that_are_no_yes_or_no_are_looked_at_for_a_fifth_of_their_deviation() -> None:
    chance = Random(1)
    found = one([drawn(key, EQUAL, chance.gauss(50, 10)) for key in keys(500)])
    (compared,) = found.comparisons
    assert compared.sought == pytest.approx(2, rel=0.1)
    assert compared.needed == pytest.approx(392, abs=5)  # of each arm, for 0.2 standard deviations


def test_where_nobody_rates_nothing_is_compared() -> None:
    found = one([drawn(key, EQUAL) for key in keys(20)])
    assert found.comparisons == [] and all(arm.sample is None for arm in found.arms)
    same = one([drawn(key, EQUAL, 1.0) for key in keys(20)])
    assert [(compared.p, compared.needed, compared.is_found) for compared in same.comparisons] == [(None, None, False)]


def test_other_weights_are_another_experiment() -> None:
    more = {"old": 1.0, "new": 3.0}
    recorded = [drawn(key, EQUAL, at_s=0) for key in keys(10)] + [drawn(key, more, at_s=60) for key in keys(10)]
    recorded[5].decision["config"] = "another"
    first, second = experiments(recorded)
    assert (first.weights, first.configs, second.weights) == (EQUAL, ["0a1b2c3d", "another"], more)
    assert first.last < second.first and sum(arm.requests for arm in second.arms) == 10


def test_keys_that_do_not_fall_by_the_weights_are_not_to_be_trusted() -> None:
    # Every third line of one arm is missing.
    kept = [key for n, key in enumerate(keys(2000)) if n % 3 or order(key, "medical", EQUAL)[0] == "old"]
    found = one([drawn(key, EQUAL) for key in kept])
    assert not found.is_trusted and (found.sample_ratio_p or 0) < 1e-6
    assert one([drawn(key, EQUAL) for key in keys(2000)]).is_trusted


def test_contents_of_an_arm_that_changed_are_counted() -> None:
    recorded = [drawn(key, EQUAL, digest=digest) for key in keys(10) for digest in ("one", "two")]
    assert [arm.contents for arm in one(recorded).arms] == [2, 2]


# A planted difference: yes from 70 % of the users of one arm, from 75 % of those of the other.
OLD, NEW = 0.70, 0.75


def arms_of(count: int, weights: dict[str, float]) -> Iterator[np.ndarray]:
    """For each experiment which of its users drew "new"; the users of each are others."""
    number = 0
    while True:
        users = (digest("", str(user)) for user in range(number, number + count))
        yield np.array([order(key, "medical", weights)[0] == "new" for key in users])
        number += count


def sample(yes: int, n: int) -> Sample:
    p = yes / n
    return Sample(n, p, p * (1 - p) * n / (n - 1), yes)


@pytest.mark.parametrize("weights", [EQUAL, {"old": 3.0, "new": 1.0}])
def test_a_better_arm_is_found_as_often_as_was_asked_for_by_as_many_users_as_were_said_to_be_needed(
    weights: dict[str, float],
) -> None:
    rng, chance = np.random.default_rng(3), Random(3)
    pilot = [
        drawn(key, weights, float(chance.random() < (NEW if order(key, "medical", weights)[0] == "new" else OLD)))
        for key in keys(1000, "pilot")
    ]
    (compared,) = one(pilot, difference=NEW - OLD, power=0.8).comparisons
    assert compared.needed is not None and compared.needed_against is not None
    count = compared.needed + compared.needed_against
    # What is known of the two proportions gives the same, but for the pilot's own chance.
    ratio = weights[compared.against] / weights[compared.arm]
    p = {"old": OLD * (1 - OLD), "new": NEW * (1 - NEW)}
    known = 7.849 * (p[compared.arm] + p[compared.against] / ratio) / (NEW - OLD) ** 2
    assert compared.needed == pytest.approx(known, rel=0.1)

    drew = [int(new.sum()) for new, _ in zip(arms_of(count, weights), range(60), strict=False)]
    tried, found, false = 4000, 0, 0
    for experiment in range(tried):
        new = drew[experiment % len(drew)]
        old = count - new
        yes = sample(int(rng.binomial(old, OLD)), old)
        better, same = (sample(int(rng.binomial(new, p)), new) for p in (NEW, OLD))
        found += (welch(better, yes).p or 1) < 0.05
        false += (welch(same, yes).p or 1) < 0.05
    power, wrong = found / tried, false / tried
    print(f"{compared.needed} and {compared.needed_against} users: power {power:.3f}, false positives {wrong:.4f}")
    # Three standard errors of the simulation; and of the pilot's variance, 3 % of the sample.
    assert power == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / tried) + 0.02)
    assert wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / tried)
