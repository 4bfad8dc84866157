"""What a plan means for a prompt whose label is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.evaluate.outcome import answer
from vllm_lora_router.types import Step

from .conftest import plan, step

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Answer


def of(label: str | None, *steps: Step, **changes: Any) -> Answer:
    return answer(Example("a text", label), plan(*steps, **changes))


def test_a_prompt_is_right_when_its_category_is_chosen() -> None:
    assert of("legal", step("legal")).right
    assert not of("legal", step("medical")).right
    assert not of("legal", step("legal", 0.4, sure=False)).right


@pytest.mark.parametrize("fallback", [None, "general"])
def test_what_is_out_of_scope_is_right_when_no_method_is_sure_whatever_takes_it_then(fallback: str | None) -> None:
    assert of(None, step("legal", 0.4, sure=False), category=fallback).right
    assert not of(None, step("legal")).right


def test_a_prompt_of_the_fallback_category_is_right_when_nothing_is_sure() -> None:
    assert of("general", step("legal", 0.4, sure=False), category="general").right
    assert not of("legal", step("legal", 0.4, sure=False), category="general").right


def test_the_guess_is_that_of_the_last_method_that_names_a_category() -> None:
    found = of(
        "legal",
        step("legal", 0.4, sure=False, method="embedding", scale="similarity"),
        step(None, 0.0, sure=False, method="keyword", scale="rule"),
        Step("mcp", 1.0, failure="timeout"),
    )
    assert (found.guess, found.score, found.scale, found.guessed_by) == ("legal", 0.4, "similarity", "embedding")
    assert (found.guessed_right, found.right, found.failure) == (True, False, "timeout")
    sure = of("legal", step("medical", 0.4, sure=False), step("legal", 1.0, method="keyword", scale="rule"))
    assert (sure.guess, sure.method, sure.scale) == ("legal", "keyword", "rule")


def test_without_a_step_that_names_one_there_is_no_guess() -> None:
    found = of(None, step(None, 0.0, sure=False))
    assert (found.guess, found.score, found.guessed_right) == (None, 0.0, False)
    assert of("legal").guess is None
