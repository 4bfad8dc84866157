"""The candidates of each category, best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lora_router.routing.ab_assignment import AssignmentKey
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Candidate, Reasoning

if TYPE_CHECKING:
    from .conftest import Route


def candidates_for(router: Router, category: str | None) -> tuple[Candidate, ...]:
    candidates, assignment = Candidates(router.loaded.config, router.base).for_category(category, no_key)
    assert assignment is None
    return candidates


def no_key() -> AssignmentKey:
    raise AssertionError("the key was requested without an A/B test")


BASE = Candidate("acme/base", None, source="default_model")


def test_candidates_are_ordered_by_score_with_the_default_model_last(router: Route) -> None:
    candidates = candidates_for(router(), "technical")
    assert [candidate.model for candidate in candidates] == ["technical-lora", "acme/base", "legal-lora", "acme/base"]
    assert [candidate.adapter for candidate in candidates] == ["technical-lora", None, "legal-lora", None]
    assert candidates[-1] == BASE
    assert candidates[0].source == "category technical, score 0.9"


def test_of_equal_scores_the_first_listed_is_tried_first(router: Route) -> None:
    assert [candidate.model for candidate in candidates_for(router(), "medical")] == [
        "medical-lora",
        "legal-lora",
        "acme/base",
    ]


def test_entries_of_other_base_models_are_omitted(router: Route) -> None:
    assert candidates_for(router(), "legal") == (BASE,)


def test_each_candidate_has_the_prompt_of_its_category_and_its_own_reasoning(router: Route) -> None:
    technical, base, legal, _ = candidates_for(router(), "technical")
    assert {candidate.system_prompt for candidate in (technical, base, legal)} == {"You are an engineer."}
    assert technical.reasoning == Reasoning(True, template_kwargs={"enable_thinking": True})
    assert base.reasoning == Reasoning(False, template_kwargs={"enable_thinking": False})
    assert legal.reasoning is None


def test_a_disabled_prompt_is_omitted(router: Route) -> None:
    assert [candidate.system_prompt for candidate in candidates_for(router(), "medical")] == [None, None, None]


def test_a_candidate_has_the_mode_of_its_prompt(router: Route) -> None:
    served = router(("[{model: other, lora_name: other-lora}]", "[{model: base, lora_name: legal-lora}]"))
    first = candidates_for(served, "legal")[0]
    assert (first.system_prompt, first.system_prompt_mode) == ("You are a lawyer.", "replace")


def test_without_a_category_only_the_default_model_is_a_candidate(router: Route) -> None:
    assert candidates_for(router(), None) == (BASE,)


def test_the_default_model_can_be_an_adapter(router: Route) -> None:
    candidates = candidates_for(router(("default_model: base", "default_model: legal-lora")), None)
    assert candidates == (Candidate("legal-lora", "legal-lora", source="default_model"),)


def test_a_default_model_of_another_server_is_this_servers_base_model(router: Route) -> None:
    assert candidates_for(router(("default_model: base", "default_model: other")), None) == (BASE,)


def test_every_entry_of_an_ab_test_is_an_arm_of_its_own(router: Route) -> None:
    names = ["a", "a", "a#2", "a#2", "a#2#2", None, None]
    served = router(
        ("qwen3, loras: [", "qwen3, loras: [{name: a}, {name: a#2}, {name: a#2#2}, "),
        (
            "    system_prompt_mode: replace\n    model_scores: [{model: other, lora_name: other-lora}]",
            "    selection: weighted\n    model_scores:\n"
            + "".join(
                f"      - {{model: base, {f'lora_name: {name!r}, ' if name else ''}score: {number}}}\n"
                for number, name in enumerate(names, 1)
            ),
        ),
    )
    arms = Candidates(served.loaded.config, served.base).arms["legal"]
    assert sum(arms.weights.values()) == sum(range(1, 8))
    assert [candidate.adapter for candidate in arms.candidates.values()] == names
    assert list(arms.weights)[:2] == ["a", "a#2"]  # names that earlier records contain do not change
