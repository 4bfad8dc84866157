"""What serves each category, best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lora_router.routing.ab_assignment import Sticky
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Candidate, Reasoning

if TYPE_CHECKING:
    from .conftest import Route


def of(router: Router, category: str | None) -> tuple[Candidate, ...]:
    found, drawn = Candidates(router.loaded.config, router.base).of(category, no_test)
    assert drawn is None
    return found


def no_test() -> Sticky:
    raise AssertionError("asked without an A/B test")


BASE = Candidate("acme/base", None, source="default_model")


def test_the_highest_score_comes_first_and_the_default_last(router: Route) -> None:
    found = of(router(), "technical")
    assert [one.model for one in found] == ["technical-lora", "acme/base", "legal-lora", "acme/base"]
    assert [one.adapter for one in found] == ["technical-lora", None, "legal-lora", None]
    assert found[-1] == BASE
    assert found[0].source == "category technical, score 0.9"


def test_of_equal_scores_the_first_listed_comes_first(router: Route) -> None:
    assert [one.model for one in of(router(), "medical")] == ["medical-lora", "legal-lora", "acme/base"]


def test_entries_for_other_bases_are_left_out(router: Route) -> None:
    assert of(router(), "legal") == (BASE,)


def test_each_candidate_carries_the_prompt_of_its_category_and_its_own_reasoning(router: Route) -> None:
    technical, base, legal, _ = of(router(), "technical")
    assert {one.system_prompt for one in (technical, base, legal)} == {"You are an engineer."}
    assert technical.reasoning == Reasoning(True, template_kwargs={"enable_thinking": True})
    assert base.reasoning == Reasoning(False, template_kwargs={"enable_thinking": False})
    assert legal.reasoning is None


def test_a_prompt_that_is_not_enabled_is_not_carried(router: Route) -> None:
    assert [one.system_prompt for one in of(router(), "medical")] == [None, None, None]


def test_a_prompt_carries_how_it_is_written(router: Route) -> None:
    served = router(("[{model: other, lora_name: other-lora}]", "[{model: base, lora_name: legal-lora}]"))
    first = of(served, "legal")[0]
    assert (first.system_prompt, first.system_prompt_mode) == ("You are a lawyer.", "replace")


def test_without_a_category_the_default_alone_serves(router: Route) -> None:
    assert of(router(), None) == (BASE,)


def test_the_default_may_be_an_adapter(router: Route) -> None:
    found = of(router(("default_model: base", "default_model: legal-lora")), None)
    assert found == (Candidate("legal-lora", "legal-lora", source="default_model"),)


def test_a_default_that_names_another_servers_base_is_this_servers(router: Route) -> None:
    assert of(router(("default_model: base", "default_model: other")), None) == (BASE,)
