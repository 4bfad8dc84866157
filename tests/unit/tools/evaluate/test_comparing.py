"""Whether one of two is better, on the same prompts."""

from __future__ import annotations

from math import comb
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("scipy")

from vllm_lora_router.tools.evaluate.compare import compare, mcnemar

from .conftest import answer

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Answer


def pairs(count: int, right: float, right_other: float, seed: int = 1) -> tuple[list[Answer], list[Answer]]:
    chance = Random(seed)
    found: tuple[list[Answer], list[Answer]] = ([], [])
    for number in range(count):
        label = chance.choice(["legal", "medical"])
        wrong = "legal" if label == "medical" else "medical"
        for side, share in enumerate((right, right_other)):
            found[side].append(answer(label, label if chance.random() < share else wrong, text=f"{number}"))
    return found


def test_a_difference_has_the_interval_of_a_paired_bootstrap() -> None:
    one, other = pairs(400, 0.7, 0.8)
    found = compare(one, other)
    hits = np.array([[a.right, b.right] for a, b in zip(one, other, strict=True)], dtype=float)
    assert found.difference.value == pytest.approx(float(np.diff(hits.mean(axis=0))[0]))
    rng = np.random.default_rng(9)
    drawn = [np.diff(hits[rng.integers(400, size=400)].mean(axis=0))[0] for _ in range(1000)]
    assert (found.difference.low, found.difference.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.01)
    assert found.difference.low > 0 and found.p < 0.05
    back = compare(other, one)
    assert back.difference.value == -found.difference.value and back.p == found.p


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 1), (3, 12), (12, 3), (5, 5), (40, 70)])
def test_mcnemars_p_is_the_exact_binomial_tests(lost: int, gained: int) -> None:
    n, fewer = lost + gained, min(lost, gained)
    tail = sum(comb(n, k) for k in range(fewer + 1)) / 2**n
    assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail))


def test_the_same_answers_differ_in_nothing() -> None:
    one, _ = pairs(50, 0.7, 0.7)
    found = compare(one, one)
    assert (found.difference.value, found.difference.low, found.difference.high, found.p) == (0, 0, 0, 1)
    assert (found.categories, found.differing, found.examples) == ([], 0, [])


def test_what_got_better_and_worse_is_named() -> None:
    one = [answer("legal", "legal", text="a"), answer("medical", None, text="b"), answer(None, None, text="c")]
    other = [
        answer("legal", "legal", text="a"),
        answer("medical", "medical", text="b"),
        answer(None, "legal", text="c"),
    ]
    found = compare(one, other)
    assert [(row.name, row.prompts, row.right, row.right_other) for row in found.categories] == [
        ("medical", 1, 0, 1),
        (None, 1, 1, 0),
    ]
    assert [(row.text, row.label, row.chosen, row.chosen_other) for row in found.examples] == [
        ("c", None, None, "legal"),
        ("b", "medical", None, "medical"),
    ]
    assert (found.only_right, found.only_other_right, found.differing) == (1, 1, 2)


def test_of_many_prompts_that_differ_both_ends_are_shown() -> None:
    one, other = pairs(200, 0.5, 0.5)
    found = compare(one, other)
    assert found.differing > 50 and len(found.examples) == 20
    assert {row.chosen == row.label for row in found.examples[:10]} == {True}
    assert {row.chosen_other == row.label for row in found.examples[10:]} == {True}
