"""A case for each sentence of the contract with a tool, over each way to it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.classifiers.mcp.classifier import arguments
from vllm_lora_router.types import Client, Query, Reasoning

from .conftest import CONFIG

if TYPE_CHECKING:
    from .conftest import Ask, Asked


def says(category: object, confidence: float = 1.0, **more: Any) -> str:
    return json.dumps({"class": category, "confidence": confidence, **more})


async def told(asked: Asked, **more: Any) -> dict[str, Any]:
    """What the tool was asked."""
    plan = await asked.plan("echo", **more)
    assert plan.candidates[0].system_prompt is not None
    found = json.loads(plan.candidates[0].system_prompt)
    return {name: value for name, value in found.items() if value is not None and name != "with_probabilities"}


async def test_the_tool_is_found_among_those_that_the_server_offers(asked: Asked) -> None:
    found = asked.tool.session.found
    assert found is not None and found.tool.name == "classify_text"


async def test_its_categories_are_listed_once_by_list_categories(asked: Asked) -> None:
    found = asked.tool.session.found
    assert found is not None and found.categories is not None
    assert list(found.categories.categories) == ["medical", "legal", "theirs"]


async def test_class_is_a_place_in_that_list(asked: Asked) -> None:
    plan = await asked.plan(says(1))
    assert (plan.category, plan.method, plan.reason) == ("legal", "mcp", "routed")
    assert [one.model for one in plan.candidates] == ["legal-lora", "acme/base"]


async def test_class_may_be_a_name_of_the_configuration(asked: Asked) -> None:
    plan = await asked.plan(says("silent"))
    assert (plan.category, plan.reason) == ("silent", "routed")


async def test_class_may_be_a_name_of_the_tools_own_list(asked: Asked) -> None:
    plan = await asked.plan(says("theirs"))
    assert (plan.category, plan.reason) == ("theirs", "routed")
    assert [one.model for one in plan.candidates] == ["acme/base", "acme/base"]


async def test_confidence_must_reach_the_threshold(asked: Asked) -> None:
    plan = await asked.plan(says("legal", 0.59, model="medical-lora"))
    assert (plan.category, plan.reason) == (None, "below_threshold")
    assert [one.model for one in plan.candidates] == ["acme/base"]
    plan = await asked.plan(says("legal", 0.6))
    assert (plan.category, plan.confidence) == ("legal", 0.6)


@pytest.mark.parametrize("probabilities", [[0.2, 0.7, 0.1], {"medical": 0.2, "legal": 0.7, "theirs": 0.1}])
async def test_probabilities_are_the_other_categories_scores(asked: Asked, probabilities: object) -> None:
    (step,) = (await asked.plan(says("legal", 0.7, probabilities=probabilities))).steps
    assert step.classification is not None
    assert step.classification.scores == {"legal": 0.7, "medical": 0.2, "theirs": 0.1}


async def test_a_tool_whose_probabilities_contradict_it_is_taken_at_its_word(asked: Asked) -> None:
    (step,) = (await asked.plan(says("legal", 0.65, probabilities=[0.9, 0.1, 0.0]))).steps
    assert step.classification is not None
    assert (step.classification.category, step.classification.scores) == ("legal", {"legal": 0.65})


async def test_model_is_the_adapter_that_serves_and_the_categorys_own_stand_behind_it(asked: Asked) -> None:
    plan = await asked.plan(says("legal", model="acme-lora"))
    assert [(one.model, one.adapter) for one in plan.candidates] == [
        ("acme-lora", "acme-lora"),
        ("legal-lora", "legal-lora"),
        ("acme/base", None),
    ]
    assert plan.candidates[0].system_prompt == "You are a lawyer."


@pytest.mark.parametrize("name", ["base", "acme/base"])
async def test_model_may_be_the_base(asked: Asked, name: str) -> None:
    plan = await asked.plan(says("legal", model=name))
    assert [one.adapter for one in plan.candidates] == [None, "legal-lora", None]


async def test_models_are_tried_by_their_score(asked: Asked) -> None:
    models = [{"model": "one", "score": 0.2}, {"model": "two", "score": 0.9}, {"model": "base", "score": 0.5}]
    plan = await asked.plan(says("theirs", models=models))
    assert [one.model for one in plan.candidates] == ["two", "acme/base", "one", "acme/base"]
    assert plan.assignment is None


async def test_model_stands_before_models(asked: Asked) -> None:
    models = [{"model": "one", "score": 0.2}, {"model": "two", "score": 0.9}]
    plan = await asked.plan(says("theirs", model="one", models=models))
    assert [one.model for one in plan.candidates] == ["one", "two", "acme/base"]


async def test_models_of_a_weighted_category_are_an_ab_test(asked: Asked) -> None:
    models = [{"model": "one", "score": 1}, {"model": "two", "score": 3}]
    drawn: list[str] = []
    for user in range(60):
        plan = await asked.plan(says("tested", models=models), caller=Client(ab_keys={"user": f"{user}"}))
        again = await asked.plan(says("tested", models=models), caller=Client(ab_keys={"user": f"{user}"}))
        assert plan.assignment is not None and plan.assignment.weights == {"one": 1.0, "two": 3.0}
        assert plan.candidates[0].model == plan.assignment.arm == plan.candidates[0].arm == again.candidates[0].model
        # The category's own stand behind them.
        assert sorted(one.model for one in plan.candidates[2:]) == ["acme/base", "acme/base", "medical-lora"]
        drawn.append(plan.assignment.arm)
    assert 5 <= drawn.count("one") <= 25


async def test_use_reasoning_is_obeyed_and_reasoning_effort_with_it(asked: Asked) -> None:
    plan = await asked.plan(says("legal", use_reasoning=True, reasoning_effort="low"))
    assert plan.candidates[0].reasoning == Reasoning(True, effort="low")
    plan = await asked.plan(says("medical", use_reasoning=False))
    assert plan.candidates[0].reasoning is None  # the category itself asks for much
    plan = await asked.plan(says("theirs", reasoning_effort="none"))
    assert plan.candidates[0].reasoning is None
    plan = await asked.plan(says("theirs", reasoning_effort="high"))
    assert plan.candidates[0].reasoning == Reasoning(True, effort="high")


async def test_without_a_wish_about_reasoning_the_category_says(asked: Asked) -> None:
    plan = await asked.plan(says("medical", model="medical-lora"))
    assert plan.candidates[0].reasoning == Reasoning(True, effort="high")


async def test_system_prompt_is_obeyed_before_the_categorys_and_before_the_tools_list(asked: Asked) -> None:
    assert (await asked.plan(says("legal", system_prompt="Be brief."))).candidates[0].system_prompt == "Be brief."
    assert (await asked.plan(says("legal"))).candidates[0].system_prompt == "You are a lawyer."
    assert (await asked.plan(says("medical"))).candidates[0].system_prompt == "The tool's own words."
    assert (await asked.plan(says("theirs"))).candidates[0].system_prompt == "Serve them."


async def test_a_category_whose_prompt_is_switched_off_gets_none_from_a_tool(asked: Asked) -> None:
    assert (await asked.plan(says("silent", system_prompt="Hear this."))).candidates[0].system_prompt is None


async def test_a_category_that_a_tool_may_not_choose_is_not_chosen(asked: Asked) -> None:
    plan = await asked.plan(says("ruled", model="legal-lora"))
    assert (plan.category, plan.reason) == (None, "below_threshold")


async def test_tenant_user_headers_and_the_requested_model_go_along(asked: Asked) -> None:
    caller = Client(tenant="acme", user="ann", headers={"x-region": "eu"}, api_key_fingerprint="of a key")
    assert await told(asked, caller=caller, model="MoM") == {
        "text": "echo",
        "tenant": "acme",
        "user": "ann",
        "headers": {"x-region": "eu"},
        "model": "MoM",
    }
    assert await told(asked) in ({"text": "echo"}, {"text": "echo", "headers": {}})


async def test_a_long_text_is_sent_by_its_beginning_and_its_end(asked: Asked) -> None:
    text = "echo " + "a" * 50_000 + "b" * 50_000
    await asked.plan("echo")
    found = asked.tool.session.found
    assert found is not None
    sent = arguments(Query(text, (text,)), found)["text"]
    assert len(sent) == 65_536 and sent.startswith("echo aaa") and sent.endswith("bbb")
    assert (await asked.plan("hello " + text)).category == "medical"


async def test_half_an_emoji_reaches_the_tool_as_a_question_mark(asked: Asked) -> None:
    assert (await asked.plan("hello \ud83d")).reason == "routed"


async def test_a_request_without_words_is_the_tenants_all_the_same(asked: Asked) -> None:
    plan = await asked.plan("", caller=Client(tenant="acme"))
    assert (plan.method, plan.category) == ("mcp", "medical")


async def test_who_may_not_call_is_answered_without_a_call(asked: Asked) -> None:
    calls = asked.tool.calls
    plan = await asked.plan(says("legal"), calls=False)
    assert (plan.reason, plan.category) == ("below_threshold", None)
    assert asked.tool.calls == calls


async def test_keep_by_tenant_answers_this_tenant_without_a_call(asked: Asked) -> None:
    text = f"tenant {json.dumps({'keep': {'by': 'tenant', 'seconds': 60}})}"
    first = await asked.plan(text, caller=Client(tenant="kept"))
    calls = asked.tool.calls
    again = await asked.plan("something else", caller=Client(tenant="kept"))
    assert [one.candidates[0].model for one in (first, again)] == ["kept-lora", "kept-lora"]
    assert again.steps[-1].classification is not None and again.steps[-1].classification.cached
    assert asked.tool.calls == calls
    assert (await asked.plan("something else", caller=Client(tenant="other"))).candidates[0].model == "medical-lora"
    assert asked.tool.calls == calls + 1


async def test_keep_by_text_answers_this_text_of_this_tenant_without_a_call(asked: Asked) -> None:
    text = f"tenant {json.dumps({'keep': {'by': 'text', 'seconds': 60}})}"
    await asked.plan(text, caller=Client(tenant="one"))
    calls = asked.tool.calls
    assert (await asked.plan(text, caller=Client(tenant="one"))).candidates[0].model == "one-lora"
    assert asked.tool.calls == calls
    assert (await asked.plan(text, caller=Client(tenant="two"))).candidates[0].model == "two-lora"
    assert (await asked.plan("hello", caller=Client(tenant="one"))).candidates[0].model == "medical-lora"


async def test_a_kept_answer_serves_who_may_not_call(asked: Asked) -> None:
    text = f"tenant {json.dumps({'keep': {'by': 'tenant', 'seconds': 60}})}"
    await asked.plan(text, caller=Client(tenant="dry"))
    assert (await asked.plan("hello", caller=Client(tenant="dry"), calls=False)).candidates[0].model == "dry-lora"


@pytest.mark.parametrize("keep", [None, {"by": "nothing", "seconds": 60}, {"by": "tenant", "seconds": 0}])
async def test_without_leave_nothing_is_kept(asked: Asked, keep: object) -> None:
    text = says("legal", keep=keep)
    calls = asked.tool.calls
    for _ in range(2):
        await asked.plan(text, caller=Client(tenant="fleeting"))
    assert asked.tool.calls == calls + 2


async def test_what_the_tool_says_beside_the_contract_is_its_own(asked: Asked) -> None:
    assert (await asked.plan(says("legal", entropy=0.3, explanation="x"))).category == "legal"


async def test_many_calls_run_at_once(asked: Asked) -> None:
    began = time.perf_counter()
    await asked.plan("slow 0.5")
    alone_s = time.perf_counter() - began
    began = time.perf_counter()
    plans = await asyncio.gather(*(asked.plan("slow 0.5") for _ in range(8)))
    assert {plan.category for plan in plans} == {"medical"}
    assert time.perf_counter() - began < alone_s + 2.5  # one after the other they take 4 s


async def test_a_configuration_that_leaves_the_tool_alone_keeps_its_connection(
    ask: Ask, asked: Asked, way: dict[str, Any]
) -> None:
    assert ask(way, before=asked).tool.session is asked.tool.session
    changed = ask(way, before=asked, threshold=0.9)
    assert changed.tool.session is not asked.tool.session
    assert (await changed.plan(says("legal", 0.8))).reason == "below_threshold"


async def test_what_was_kept_under_one_configuration_is_asked_again_under_the_next(
    ask: Ask, asked: Asked, way: dict[str, Any]
) -> None:
    text, acme = f"tenant {json.dumps({'class': 'legal', 'keep': {'by': 'tenant', 'seconds': 60}})}", Client("reloaded")
    assert (await asked.plan(text, caller=acme)).candidates[0].system_prompt == "You are a lawyer."
    lawless = {**CONFIG, "categories": [{**one, "system_prompt": "Be kind."} for one in CONFIG["categories"]]}
    after = ask(way, before=asked, config=lawless)
    assert (await after.plan(text, caller=acme)).candidates[0].system_prompt == "Be kind."
    assert (await after.plan("hello", caller=acme)).category == "legal"


async def test_the_name_of_a_tool_may_be_given(ask: Ask, way: dict[str, Any]) -> None:
    assert (await ask(way, tool_name="classify_text").plan("hello")).category == "medical"
