"""Outcomes of plans for labelled prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.outcome import outcome_of
from vllm_lora_router.types import Step

from .conftest import plan, step

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Outcome


def of(label: str | None, *steps: Step, **changes: Any) -> Outcome:
    return outcome_of(Example("a text", label), plan(*steps, **changes))


def test_prompt_is_correct_if_its_category_is_chosen() -> None:
    assert of("legal", step("legal")).correct
    assert not of("legal", step("medical")).correct
    assert not of("legal", step("legal", 0.4, accepted=False)).correct


@pytest.mark.parametrize("fallback", [None, "general"])
def test_out_of_scope_prompt_is_correct_if_no_category_is_accepted(fallback: str | None) -> None:
    assert of(None, step("legal", 0.4, accepted=False), category=fallback).correct
    assert not of(None, step("legal")).correct


def test_prompt_of_the_fallback_category_is_correct_if_no_category_is_accepted() -> None:
    assert of("general", step("legal", 0.4, accepted=False), category="general").correct
    assert not of("legal", step("legal", 0.4, accepted=False), category="general").correct


def test_guess_is_that_of_the_last_method_with_a_best_category() -> None:
    outcome = of(
        "legal",
        step("legal", 0.4, accepted=False, method="embedding", scale="similarity"),
        step(None, 0.0, accepted=False, method="keyword", scale="rule"),
        Step("mcp", 1.0, failure="timeout"),
    )
    assert (outcome.guess, outcome.score, outcome.scale) == ("legal", 0.4, "similarity")
    assert outcome.guess_method == "embedding"
    assert (outcome.guess_correct, outcome.correct, outcome.failure) == (True, False, "timeout")
    accepted = of("legal", step("medical", 0.4, accepted=False), step("legal", 1.0, method="keyword", scale="rule"))
    assert (accepted.guess, accepted.method, accepted.scale) == ("legal", "keyword", "rule")


def test_without_a_best_category_there_is_no_guess() -> None:
    outcome = of(None, step(None, 0.0, accepted=False))
    assert (outcome.guess, outcome.score, outcome.guess_correct) == (None, 0.0, False)
    assert of("legal").guess is None
