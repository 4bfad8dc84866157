"""The contract with a tool: the effect of each field of its answers, and the arguments of its calls.

These tests use the transport streamable-http. test_transports.py covers what differs between transports.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.classifiers.mcp.arguments import arguments
from vllm_lora_router.classifiers.mcp.classifier import MAX_DESCRIPTION_CHARACTERS
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.types import Client, Query, Reasoning

from .conftest import CONFIG

if TYPE_CHECKING:
    from .conftest import BuildRouter, ToolRouter


def answer(category: object, confidence: float = 1.0, **fields: Any) -> str:
    """Return a text to which the tool server answers with these fields."""
    return json.dumps({"class": category, "confidence": confidence, **fields})


async def received_arguments(router: ToolRouter, **options: Any) -> dict[str, Any]:
    """Return the arguments that the tool received, without `with_probabilities`."""
    plan = await router.plan("echo", **options)
    assert plan.candidates[0].system_prompt is not None
    received = json.loads(plan.candidates[0].system_prompt)
    return {name: value for name, value in received.items() if value is not None and name != "with_probabilities"}


async def test_class_is_an_index_into_the_tools_categories(router: ToolRouter) -> None:
    plan = await router.plan(answer(1))
    assert (plan.category, plan.method, plan.reason) == ("legal", "mcp", "routed")
    assert [candidate.model for candidate in plan.candidates] == ["legal-lora", "acme/base"]


async def test_class_can_be_a_category_of_the_configuration(router: ToolRouter) -> None:
    plan = await router.plan(answer("without_prompt"))
    assert (plan.category, plan.reason) == ("without_prompt", "routed")


async def test_class_can_be_a_category_of_the_tool(router: ToolRouter) -> None:
    plan = await router.plan(answer("tool_category"))
    assert (plan.category, plan.reason) == ("tool_category", "routed")
    assert [candidate.model for candidate in plan.candidates] == ["acme/base", "acme/base"]


async def test_confidence_has_to_reach_the_threshold(router: ToolRouter) -> None:
    plan = await router.plan(answer("legal", 0.59, model="medical-lora"))
    assert (plan.category, plan.reason) == (None, "below_threshold")
    assert [candidate.model for candidate in plan.candidates] == ["acme/base"]
    plan = await router.plan(answer("legal", 0.6))
    assert (plan.category, plan.confidence) == ("legal", 0.6)


@pytest.mark.parametrize("probabilities", [[0.2, 0.7, 0.1], {"medical": 0.2, "legal": 0.7, "tool_category": 0.1}])
async def test_probabilities_are_the_scores_of_the_other_categories(router: ToolRouter, probabilities: object) -> None:
    (step,) = (await router.plan(answer("legal", 0.7, probabilities=probabilities))).steps
    assert step.classification is not None
    assert step.classification.scores == {"legal": 0.7, "medical": 0.2, "tool_category": 0.1}


async def test_probabilities_that_contradict_class_are_ignored(router: ToolRouter) -> None:
    (step,) = (await router.plan(answer("legal", 0.65, probabilities=[0.9, 0.1, 0.0]))).steps
    assert step.classification is not None
    assert (step.classification.category, step.classification.scores) == ("legal", {"legal": 0.65})


async def test_category_descriptions_of_the_tool_are_part_of_the_evidence(router: ToolRouter) -> None:
    (step,) = (await router.plan(answer("medical"))).steps
    assert step.classification is not None
    assert step.classification.evidence["description"] == "Health"
    (step,) = (await router.plan(answer("tool_category"))).steps
    assert step.classification is not None
    assert step.classification.evidence["description"] == "x" * MAX_DESCRIPTION_CHARACTERS
    (step,) = (await router.plan(answer("legal"))).steps
    assert step.classification is not None and "description" not in step.classification.evidence


async def test_model_is_the_first_candidate_and_the_categorys_own_follow(router: ToolRouter) -> None:
    plan = await router.plan(answer("legal", model="acme-lora"))
    assert [(candidate.model, candidate.adapter) for candidate in plan.candidates] == [
        ("acme-lora", "acme-lora"),
        ("legal-lora", "legal-lora"),
        ("acme/base", None),
    ]
    assert plan.candidates[0].system_prompt == "You are a lawyer."


@pytest.mark.parametrize("name", ["base", "acme/base"])
async def test_model_can_be_the_base_model(router: ToolRouter, name: str) -> None:
    plan = await router.plan(answer("legal", model=name))
    assert [candidate.adapter for candidate in plan.candidates] == [None, "legal-lora", None]


async def test_models_are_tried_by_score(router: ToolRouter) -> None:
    models = [{"model": "low", "score": 0.2}, {"model": "high", "score": 0.9}, {"model": "base", "score": 0.5}]
    plan = await router.plan(answer("tool_category", models=models))
    assert [candidate.model for candidate in plan.candidates] == ["high", "acme/base", "low", "acme/base"]
    assert plan.assignment is None


async def test_model_is_tried_before_models(router: ToolRouter) -> None:
    models = [{"model": "low", "score": 0.2}, {"model": "high", "score": 0.9}]
    plan = await router.plan(answer("tool_category", model="low", models=models))
    assert [candidate.model for candidate in plan.candidates] == ["low", "high", "acme/base"]


async def test_models_of_a_weighted_category_are_an_ab_test(router: ToolRouter) -> None:
    models = [{"model": "one", "score": 1}, {"model": "two", "score": 3}]
    assigned: list[str] = []
    for user in range(60):
        client = Client(ab_keys={"user": digest("", f"{user}")})
        plan = await router.plan(answer("weighted", models=models), client=client)
        repeated = await router.plan(answer("weighted", models=models), client=client)
        assert plan.assignment is not None and plan.assignment.weights == {"one": 1.0, "two": 3.0}
        first = plan.candidates[0]
        assert first.model == plan.assignment.arm == first.arm == repeated.candidates[0].model
        # The category's own candidates follow.
        assert sorted(candidate.model for candidate in plan.candidates[2:]) == [
            "acme/base",
            "acme/base",
            "medical-lora",
        ]
        assigned.append(plan.assignment.arm)
    assert 5 <= assigned.count("one") <= 25


async def test_use_reasoning_and_reasoning_effort_override_the_category(router: ToolRouter) -> None:
    plan = await router.plan(answer("legal", use_reasoning=True, reasoning_effort="low"))
    assert plan.candidates[0].reasoning == Reasoning(True, effort="low")
    plan = await router.plan(answer("medical", use_reasoning=False))
    assert plan.candidates[0].reasoning is None  # the category itself sets a high effort
    plan = await router.plan(answer("tool_category", reasoning_effort="none"))
    assert plan.candidates[0].reasoning is None
    plan = await router.plan(answer("tool_category", reasoning_effort="high"))
    assert plan.candidates[0].reasoning == Reasoning(True, effort="high")


async def test_without_reasoning_fields_the_category_decides(router: ToolRouter) -> None:
    plan = await router.plan(answer("medical", model="medical-lora"))
    assert plan.candidates[0].reasoning == Reasoning(True, effort="high")


@pytest.mark.parametrize(
    ("text", "system_prompt"),
    [
        (answer("legal", system_prompt="Be brief."), "Be brief."),
        (answer("legal"), "You are a lawyer."),
        (answer("medical"), "The tool's own prompt."),
        (answer("tool_category"), "The prompt of the tool's category."),
    ],
)
async def test_system_prompt_comes_from_the_answer_then_the_category_then_the_tools_list(
    router: ToolRouter, text: str, system_prompt: str
) -> None:
    assert (await router.plan(text)).candidates[0].system_prompt == system_prompt


async def test_a_category_with_a_disabled_prompt_gets_no_prompt_from_the_tool(router: ToolRouter) -> None:
    plan = await router.plan(answer("without_prompt", system_prompt="Be brief."))
    assert plan.candidates[0].system_prompt is None


async def test_a_category_whose_methods_exclude_mcp_is_not_chosen(router: ToolRouter) -> None:
    plan = await router.plan(answer("excluded", model="legal-lora"))
    assert (plan.category, plan.reason) == (None, "below_threshold")
    assert plan.steps[-1].classification is not None
    assert plan.steps[-1].classification.evidence["excluded"] == "the methods of 'excluded' do not include mcp"


async def test_tenant_user_headers_and_requested_model_are_sent(router: ToolRouter) -> None:
    client = Client(tenant="acme", user="ann", headers={"x-region": "eu"}, api_key_fingerprint="fingerprint")
    assert await received_arguments(router, client=client, model="MoM") == {
        "text": "echo",
        "tenant": "acme",
        "user": "ann",
        "headers": {"x-region": "eu"},
        "model": "MoM",
    }
    assert await received_arguments(router) in ({"text": "echo"}, {"text": "echo", "headers": {}})


async def test_a_long_text_is_shortened_to_its_beginning_and_end(router: ToolRouter) -> None:
    text = "echo " + "a" * 50_000 + "b" * 50_000
    await router.plan("echo")
    info = router.tool.session.info
    assert info is not None
    sent = arguments(Query(text, (text,)), info.tool)["text"]
    assert len(sent) == 65_536 and sent.startswith("echo aaa") and sent.endswith("bbb")
    assert (await router.plan("hello " + text)).category == "medical"


async def test_a_lone_surrogate_is_sent_as_a_question_mark(router: ToolRouter) -> None:
    assert (await router.plan("hello \ud83d")).reason == "routed"


async def test_a_request_without_text_is_classified_if_the_tool_takes_the_tenant(router: ToolRouter) -> None:
    plan = await router.plan("", client=Client(tenant="acme"))
    assert (plan.method, plan.category) == ("mcp", "medical")


async def test_without_permission_the_tool_is_not_called(router: ToolRouter) -> None:
    calls = router.tool.calls
    plan = await router.plan(answer("legal"), may_call_tools=False)
    assert (plan.reason, plan.category) == ("below_threshold", None)
    assert router.tool.calls == calls


async def test_keep_by_tenant_answers_the_same_tenant_without_a_call(router: ToolRouter) -> None:
    text = f"tenant {json.dumps({'keep': {'by': 'tenant', 'seconds': 60}})}"
    first = await router.plan(text, client=Client(tenant="kept"))
    calls = router.tool.calls
    second = await router.plan("something else", client=Client(tenant="kept"))
    assert [plan.candidates[0].model for plan in (first, second)] == ["kept-lora", "kept-lora"]
    assert second.steps[-1].classification is not None and second.steps[-1].classification.cached
    assert router.tool.calls == calls
    other = await router.plan("something else", client=Client(tenant="other"))
    assert other.candidates[0].model == "medical-lora"
    assert router.tool.calls == calls + 1


async def test_keep_by_text_answers_the_same_text_and_tenant_without_a_call(router: ToolRouter) -> None:
    text = f"tenant {json.dumps({'keep': {'by': 'text', 'seconds': 60}})}"
    await router.plan(text, client=Client(tenant="one"))
    calls = router.tool.calls
    assert (await router.plan(text, client=Client(tenant="one"))).candidates[0].model == "one-lora"
    assert router.tool.calls == calls
    assert (await router.plan(text, client=Client(tenant="two"))).candidates[0].model == "two-lora"
    assert (await router.plan("hello", client=Client(tenant="one"))).candidates[0].model == "medical-lora"


async def test_a_cached_answer_is_used_without_permission_to_call_the_tool(router: ToolRouter) -> None:
    text = f"tenant {json.dumps({'keep': {'by': 'tenant', 'seconds': 60}})}"
    client = Client(tenant="dry")
    await router.plan(text, client=client)
    assert (await router.plan("hello", client=client, may_call_tools=False)).candidates[0].model == "dry-lora"


@pytest.mark.parametrize("keep", [None, {"by": "nothing", "seconds": 60}, {"by": "tenant", "seconds": 0}])
async def test_without_keep_no_answer_is_cached(router: ToolRouter, keep: object) -> None:
    text = answer("legal", keep=keep)
    calls = router.tool.calls
    for _ in range(2):
        await router.plan(text, client=Client(tenant="uncached"))
    assert router.tool.calls == calls + 2


async def test_fields_outside_the_contract_are_ignored(router: ToolRouter) -> None:
    assert (await router.plan(answer("legal", entropy=0.3, explanation="x"))).category == "legal"


async def test_calls_run_concurrently(router: ToolRouter) -> None:
    began = time.perf_counter()
    await router.plan("slow 0.5")
    single_s = time.perf_counter() - began
    began = time.perf_counter()
    plans = await asyncio.gather(*(router.plan("slow 0.5") for _ in range(8)))
    assert {plan.category for plan in plans} == {"medical"}
    assert time.perf_counter() - began < 6 * single_s  # one after the other, the calls take eight times as long


async def test_a_reload_without_a_change_to_the_tool_keeps_its_connection(
    build_router: BuildRouter, router: ToolRouter, settings: dict[str, Any]
) -> None:
    assert build_router(settings, before=router).tool.session is router.tool.session
    changed = build_router(settings, before=router, threshold=0.9)
    assert changed.tool.session is not router.tool.session
    assert (await changed.plan(answer("legal", 0.8))).reason == "below_threshold"


async def test_a_reload_discards_cached_answers(
    build_router: BuildRouter, router: ToolRouter, settings: dict[str, Any]
) -> None:
    text = f"tenant {json.dumps({'class': 'legal', 'keep': {'by': 'tenant', 'seconds': 60}})}"
    client = Client("reloaded")
    assert (await router.plan(text, client=client)).candidates[0].system_prompt == "You are a lawyer."
    categories = [{**category, "system_prompt": "Be kind."} for category in CONFIG["categories"]]
    reloaded = build_router(settings, before=router, config={**CONFIG, "categories": categories})
    assert (await reloaded.plan(text, client=client)).candidates[0].system_prompt == "Be kind."
    assert (await reloaded.plan("hello", client=client)).category == "legal"


async def test_tool_name_selects_the_tool(build_router: BuildRouter, settings: dict[str, Any]) -> None:
    assert (await build_router(settings, tool_name="classify_text").plan("hello")).category == "medical"
