"""Comparison of two evaluations of the same prompts."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("scipy")

from vllm_lora_router.tools.evaluate.compare import compare

from .conftest import outcome

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Outcome


def pairs(
    count: int, first_accuracy: float, second_accuracy: float, seed: int = 1
) -> tuple[list[Outcome], list[Outcome]]:
    random = Random(seed)
    outcomes: tuple[list[Outcome], list[Outcome]] = ([], [])
    for number in range(count):
        label = random.choice(["legal", "medical"])
        wrong = "legal" if label == "medical" else "medical"
        for side, accuracy in enumerate((first_accuracy, second_accuracy)):
            outcomes[side].append(outcome(label, label if random.random() < accuracy else wrong, text=f"{number}"))
    return outcomes


def test_difference_has_a_paired_bootstrap_interval() -> None:
    first, second = pairs(400, 0.7, 0.8)
    comparison = compare(first, second)
    hits = np.array([[a.correct, b.correct] for a, b in zip(first, second, strict=True)], dtype=float)
    difference = comparison.difference
    assert difference.value == pytest.approx(float(np.diff(hits.mean(axis=0))[0]))
    rng = np.random.default_rng(9)
    resampled = [np.diff(hits[rng.integers(400, size=400)].mean(axis=0))[0] for _ in range(1000)]
    assert (difference.low, difference.high) == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=0.01)
    assert difference.low > 0 and comparison.p < 0.05
    reverse = compare(second, first)
    assert reverse.difference.value == -difference.value and reverse.p == comparison.p


def test_equal_outcomes_have_no_difference() -> None:
    first, _ = pairs(50, 0.7, 0.7)
    comparison = compare(first, first)
    difference = comparison.difference
    assert (difference.value, difference.low, difference.high, comparison.p) == (0, 0, 0, 1)
    assert (comparison.categories, comparison.differing, comparison.examples) == ([], 0, [])


def test_changed_categories_and_prompts_are_listed() -> None:
    first = [outcome("legal", "legal", text="a"), outcome("medical", None, text="b"), outcome(None, None, text="c")]
    second = [
        outcome("legal", "legal", text="a"),
        outcome("medical", "medical", text="b"),
        outcome(None, "legal", text="c"),
    ]
    comparison = compare(first, second)
    assert [(row.name, row.prompts, row.first_correct, row.second_correct) for row in comparison.categories] == [
        ("medical", 1, 0, 1),
        (None, 1, 1, 0),
    ]
    assert [(row.text, row.label, row.first_chosen, row.second_chosen) for row in comparison.examples] == [
        ("c", None, None, "legal"),
        ("b", "medical", None, "medical"),
    ]
    assert (comparison.only_first_correct, comparison.only_second_correct, comparison.differing) == (1, 1, 2)


def test_examples_of_many_differences_include_losses_and_gains() -> None:
    first, second = pairs(200, 0.5, 0.5)
    comparison = compare(first, second)
    assert comparison.differing > 50 and len(comparison.examples) == 20
    assert {row.first_chosen == row.label for row in comparison.examples[:10]} == {True}
    assert {row.second_chosen == row.label for row in comparison.examples[10:]} == {True}
