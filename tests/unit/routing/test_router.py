"""From what a user says to the plan, and from the plan to what can be served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Classification, Method, Plan, Query

if TYPE_CHECKING:
    from .conftest import Route


async def plan(router: Router, *texts: str) -> Plan:
    return await router.plan([Query(text, (text,)) for text in texts])


async def test_a_sure_method_gives_its_category_and_the_categorys_candidates(router: Route) -> None:
    routed = await plan(router(), "What causes fever?")
    assert (routed.category, routed.method, routed.confidence, routed.reason) == ("medical", "keyword", 1.0, "routed")
    assert [one.model for one in routed.candidates] == ["medical-lora", "legal-lora", "acme/base"]
    assert [step.method for step in routed.steps] == ["keyword"]
    assert routed.config_version == router().version


@pytest.mark.parametrize(("text", "reason"), [("Hello.", "below_threshold"), ("", "no_text"), ("  \n", "no_text")])
async def test_what_no_method_is_sure_of_takes_the_default(router: Route, text: str, reason: str) -> None:
    routed = await plan(router(), text)
    assert (routed.category, routed.method, routed.confidence, routed.reason) == (None, None, None, reason)
    assert [one.model for one in routed.candidates] == ["acme/base"]


FALLBACK = "classifier: {category_model: {fallback_category: medical}}\n"


async def test_what_no_method_is_sure_of_takes_the_fallback_category_where_there_is_one(router: Route) -> None:
    routed = await plan(router(more=FALLBACK), "Hello.")
    assert (routed.category, routed.method, routed.confidence, routed.reason) == (
        "medical",
        None,
        None,
        "below_threshold",
    )
    assert [one.model for one in routed.candidates] == ["medical-lora", "legal-lora", "acme/base"]


async def test_prompts_of_one_category_go_together(router: Route) -> None:
    routed = await plan(router(), "a fever", "fever!")
    assert (routed.category, routed.reason) == ("medical", "routed")


@pytest.mark.parametrize("texts", [("a fever", "Python"), ("a fever", "Hello."), ("Hello.", "a fever")])
async def test_prompts_of_different_categories_take_the_default_together(router: Route, texts: Sequence[str]) -> None:
    routed = await plan(router(), *texts)
    assert (routed.category, routed.method, routed.confidence, routed.reason) == (None, None, None, "mixed")
    assert [one.model for one in routed.candidates] == ["acme/base"]
    assert len(routed.steps) == len(texts)


async def test_boilerplate_that_is_to_be_dropped_is_not_the_users_question(router: Route) -> None:
    dropping = router(more="router: {text: {drop: ['(?s)<context>.*?</context>', 'Python']}}\n")
    said = "<context>\na law against\nfever\n</context> in Python: hello <context>law</context>"
    assert (await plan(router(), said)).category == "technical"
    assert (await plan(dropping, said)).reason == "below_threshold"
    assert (await plan(dropping, f"{said} fever")).category == "medical"


async def test_what_is_dropped_leaves_the_words_around_it_apart(router: Route) -> None:
    assert (await plan(router(more="router: {text: {drop: ['-+']}}\n"), "fever---law")).category == "medical"


class Classifier:
    reads = frozenset({"text"})
    fingerprint = ""

    def __init__(self, method: Method, answer: Classification | None) -> None:
        self.method: Method = method
        self.answer = answer

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        if self.answer is None:
            await asyncio.sleep(10)
        return [self.answer for _ in queries if self.answer]


def with_classifiers(router: Router, *classifiers: Classifier) -> Router:
    return Router(router.loaded, router.base, Classifiers(Cascade(classifiers, 20), ()))


UNSURE = Classification("legal", 0.4, {"legal": 0.4}, "probability", 0.6, False)
SURE = Classification("medical", 0.8, {"medical": 0.8}, "probability", 0.6, True)


async def test_a_failure_is_the_reason_when_nobody_else_was_sure(router: Route) -> None:
    for fallback, category in (("", None), (FALLBACK, "medical")):
        late = with_classifiers(router(more=fallback), Classifier("embedding", UNSURE), Classifier("domain", None))
        routed = await plan(late, "fever")
        assert (routed.reason, routed.category, routed.confidence) == ("timeout", category, None)


async def test_a_failure_does_not_matter_when_another_was_sure(router: Route) -> None:
    class Broken(Classifier):
        async def classify(self, queries: Sequence[Query]) -> list[Classification]:
            raise RuntimeError

    routed = await plan(with_classifiers(router(), Broken("embedding", None), Classifier("domain", SURE)), "fever")
    assert (routed.reason, routed.category, routed.method, routed.confidence) == ("routed", "medical", "domain", 0.8)
    assert [step.failure for step in routed.steps] == ["error", None]


def test_a_request_that_could_not_be_classified_at_all_takes_the_default(router: Route) -> None:
    fallback = router().fallback("error")
    assert (fallback.steps, fallback.reason, fallback.category) == ((), "error", None)
    assert [one.model for one in fallback.candidates] == ["acme/base"]


SERVED = ["acme/base", "chat"]


def test_auto_names_are_routed_and_names_of_models_are_not(router: Route) -> None:
    usual, own = router(), router(more="auto_model_name: choose\n")
    assert [usual.takes(name, SERVED) for name in ("MoM", "auto")] == [True, True]
    assert [own.takes(name, SERVED) for name in ("choose", "auto", "MoM")] == [True, True, False]
    for name in ("acme/base", "chat", "base", "medical-lora", "mom", "nobody", "", None):
        assert not usual.takes(name, SERVED)


def test_route_base_model_also_takes_requests_for_the_base_or_for_nothing(router: Route) -> None:
    base = router(more="router: {route_base_model: true}\n")
    assert [base.takes(name, SERVED) for name in ("MoM", "acme/base", "chat", None)] == [True] * 4
    assert [base.takes(name, SERVED) for name in ("base", "medical-lora", "nobody")] == [False] * 3


class Counting:
    """A method that answers as slowly as it is told, and counts what it is asked."""

    method: Method = "domain"
    reads = frozenset({"text"})
    fingerprint = "x"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.asked = seconds, 0

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.asked += len(queries)
        await asyncio.sleep(self.seconds)
        return [Classification("medical", 1.0, {}, "probability", 0.5, True) for _ in queries]


def asking(router: Router, method: Counting, deadline_ms: float) -> Router:
    return Router(router.loaded, router.base, Classifiers(Cascade([method], deadline_ms), ()))


async def test_of_many_prompts_equal_ones_are_classified_once(router: Route) -> None:
    method = Counting()
    routed = await plan(asking(router(), method, 1000), *["fever"] * 5000, "a cough")
    assert (routed.category, routed.reason, method.asked) == ("medical", "routed", 2)


async def test_many_prompts_have_the_time_of_one_together(router: Route) -> None:
    method = Counting(seconds=0.03)
    routed = await plan(asking(router(), method, 50), *(f"fever {number}" for number in range(5000)))
    assert (routed.category, routed.reason) == (None, "timeout")
    assert method.asked < 200


async def test_nothing_is_classified_any_more_once_two_categories_are_seen(router: Route) -> None:
    texts = ["fever", "a law", *(f"fever {number}" for number in range(5000))]
    routed = await plan(router(), *texts)
    assert routed.reason == "mixed" and len(routed.steps) < 200


async def test_thousands_of_prompts_hold_nobody_up(router: Route) -> None:
    planning = asyncio.ensure_future(plan(router(), *(f"fever {number}" for number in range(3000))))
    turns = 0
    while not planning.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 50
