"""Robustness against small changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.tools.evaluate.outcome import outcome_of
from vllm_lora_router.tools.evaluate.robustness import (
    PerturbedOutcome,
    perturbed_texts,
    plan_perturbed,
    robustness,
    sample,
)
from vllm_lora_router.tools.evaluate.targets import plan_all

from .conftest import EXAMPLES, outcome

if TYPE_CHECKING:
    from .conftest import Configure

pytest.importorskip("scipy")


async def test_keyword_rules_are_robust_except_against_typos(configure: Configure) -> None:
    target = configure()
    plans = await plan_all(target, [example.text for example in EXAMPLES])
    outcomes = [outcome_of(example, plan) for example, plan in zip(EXAMPLES, plans, strict=True)]
    result = robustness(await plan_perturbed(target, outcomes))
    assert result is not None
    kinds = {stability.kind: stability for stability in result.kinds}
    assert {kind: stability.chosen.value for kind, stability in kinds.items() if kind != "typos"} == {
        "lower case": 1.0,
        "upper case": 1.0,
        "politeness": 1.0,
        "a prefix": 1.0,
        "no punctuation": 1.0,
    }
    assert kinds["typos"].chosen.n == 6 and kinds["no punctuation"].chosen.n == 2
    assert result.chosen.n == 6


def test_guess_and_chosen_category_are_counted_separately() -> None:
    accepted, other = outcome("legal", "legal"), outcome("legal", "medical", text="other")
    not_accepted = outcome("legal", None, guess="legal")
    result = robustness(
        [
            PerturbedOutcome(accepted, "typos", not_accepted),
            PerturbedOutcome(other, "typos", other),
            PerturbedOutcome(other, "case", accepted),
        ]
    )
    assert result is not None
    assert {stability.kind: (stability.guess.value, stability.chosen.value) for stability in result.kinds} == {
        "typos": (1.0, 0.5),
        "case": (0.0, 0.0),
    }
    assert (result.guess.value, result.guess.n) == (pytest.approx(2 / 3), 2)
    assert result.chosen.value == pytest.approx(1 / 3)
    assert robustness([]) is None and result.in_scope is None  # all prompts are in scope


def test_in_scope_prompts_are_also_counted_separately() -> None:
    # The best category of an out-of-scope prompt means little.
    legal, outside = outcome("legal", "legal"), outcome(None, "legal", text="other")
    result = robustness(
        [
            PerturbedOutcome(legal, "typos", legal),
            PerturbedOutcome(outside, "typos", outcome(None, "medical", text="other")),
        ]
    )
    assert result is not None and result.in_scope is not None
    assert (result.guess.value, result.in_scope.guess.value, result.in_scope.guess.n) == (0.5, 1.0, 1)


def test_sample_depends_on_the_seed_and_unchanged_texts_are_left_out() -> None:
    outcomes = [outcome("legal", "legal", text=f"text number {n}") for n in range(50)]
    assert sample(outcomes, 10, 1) == sample(outcomes, 10, 1) != sample(outcomes, 10, 2)
    assert sample(outcomes, 100) == outcomes
    kinds = [kind for _, kind, _ in perturbed_texts(outcomes[:1])]
    assert kinds == ["upper case", "typos", "politeness", "a prefix"]
