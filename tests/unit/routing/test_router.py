"""The router: plans for one or several prompts, fallbacks, and the requests that it routes."""

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


async def test_an_accepted_category_gives_its_candidates(router: Route) -> None:
    routed = await plan(router(), "What causes fever?")
    assert (routed.category, routed.method, routed.confidence, routed.reason) == ("medical", "keyword", 1.0, "routed")
    assert [candidate.model for candidate in routed.candidates] == ["medical-lora", "legal-lora", "acme/base"]
    assert [step.method for step in routed.steps] == ["keyword"]
    assert routed.config_version == router().version


@pytest.mark.parametrize(("text", "reason"), [("Hello.", "below_threshold"), ("", "no_text"), ("  \n", "no_text")])
async def test_without_an_accepted_category_the_default_model_serves(router: Route, text: str, reason: str) -> None:
    routed = await plan(router(), text)
    assert (routed.category, routed.method, routed.confidence, routed.reason) == (None, None, None, reason)
    assert [candidate.model for candidate in routed.candidates] == ["acme/base"]


FALLBACK = "classifier: {category_model: {fallback_category: medical}}\n"


async def test_without_an_accepted_category_the_fallback_category_is_used_if_configured(router: Route) -> None:
    routed = await plan(router(more=FALLBACK), "Hello.")
    assert (routed.category, routed.method, routed.confidence, routed.reason) == (
        "medical",
        None,
        None,
        "below_threshold",
    )
    assert [candidate.model for candidate in routed.candidates] == ["medical-lora", "legal-lora", "acme/base"]


async def test_prompts_of_the_same_category_are_routed_together(router: Route) -> None:
    routed = await plan(router(), "a fever", "fever!")
    assert (routed.category, routed.reason) == ("medical", "routed")


@pytest.mark.parametrize("texts", [("a fever", "Python"), ("a fever", "Hello."), ("Hello.", "a fever")])
async def test_prompts_of_different_categories_fall_back_to_the_default_model(
    router: Route, texts: Sequence[str]
) -> None:
    routed = await plan(router(), *texts)
    assert (routed.category, routed.method, routed.confidence, routed.reason) == (None, None, None, "mixed")
    assert [candidate.model for candidate in routed.candidates] == ["acme/base"]
    assert len(routed.steps) == len(texts)


async def test_text_that_matches_drop_is_not_classified(router: Route) -> None:
    with_drop = router(more="router: {text: {drop: ['(?s)<context>.*?</context>', 'Python']}}\n")
    text = "<context>\na law against\nfever\n</context> in Python: hello <context>law</context>"
    assert (await plan(router(), text)).category == "technical"
    assert (await plan(with_drop, text)).reason == "below_threshold"
    assert (await plan(with_drop, f"{text} fever")).category == "medical"


async def test_dropped_text_is_replaced_by_a_space(router: Route) -> None:
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


BELOW_THRESHOLD = Classification("legal", 0.4, {"legal": 0.4}, "probability", 0.6, False)
ACCEPTED = Classification("medical", 0.8, {"medical": 0.8}, "probability", 0.6, True)


async def test_a_failure_is_the_reason_if_no_other_method_accepts(router: Route) -> None:
    for fallback, category in (("", None), (FALLBACK, "medical")):
        late = with_classifiers(
            router(more=fallback), Classifier("embedding", BELOW_THRESHOLD), Classifier("domain", None)
        )
        routed = await plan(late, "fever")
        assert (routed.reason, routed.category, routed.confidence) == ("timeout", category, None)


async def test_a_failure_is_not_the_reason_if_another_method_accepts(router: Route) -> None:
    class Broken(Classifier):
        async def classify(self, queries: Sequence[Query]) -> list[Classification]:
            raise RuntimeError

    routed = await plan(with_classifiers(router(), Broken("embedding", None), Classifier("domain", ACCEPTED)), "fever")
    assert (routed.reason, routed.category, routed.method, routed.confidence) == ("routed", "medical", "domain", 0.8)
    assert [step.failure for step in routed.steps] == ["error", None]


def test_the_fallback_plan_uses_the_default_model(router: Route) -> None:
    fallback = router().fallback("error")
    assert (fallback.steps, fallback.reason, fallback.category) == ((), "error", None)
    assert [candidate.model for candidate in fallback.candidates] == ["acme/base"]


SERVED = ["acme/base", "chat"]


def test_auto_names_are_routed_and_model_names_are_not(router: Route) -> None:
    default, custom = router(), router(more="auto_model_name: choose\n")
    assert [default.routes(name, SERVED) for name in ("MoM", "auto")] == [True, True]
    assert [custom.routes(name, SERVED) for name in ("choose", "auto", "MoM")] == [True, True, False]
    for name in ("acme/base", "chat", "base", "medical-lora", "mom", "unknown", "", None):
        assert not default.routes(name, SERVED)


def test_route_base_model_also_routes_requests_for_the_base_model_or_without_a_model(router: Route) -> None:
    base = router(more="router: {route_base_model: true}\n")
    assert [base.routes(name, SERVED) for name in ("MoM", "acme/base", "chat", None)] == [True] * 4
    assert [base.routes(name, SERVED) for name in ("base", "medical-lora", "unknown")] == [False] * 3


class CountingClassifier:
    """A classifier with a given delay that counts its queries."""

    method: Method = "domain"
    reads = frozenset({"text"})
    fingerprint = "x"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.queries = seconds, 0

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.queries += len(queries)
        await asyncio.sleep(self.seconds)
        return [Classification("medical", 1.0, {}, "probability", 0.5, True) for _ in queries]


def with_method(router: Router, method: CountingClassifier, deadline_ms: float) -> Router:
    return Router(router.loaded, router.base, Classifiers(Cascade([method], deadline_ms), ()))


async def test_equal_prompts_are_classified_once(router: Route) -> None:
    method = CountingClassifier()
    routed = await plan(with_method(router(), method, 1000), *["fever"] * 5000, "a cough")
    assert (routed.category, routed.reason, method.queries) == ("medical", "routed", 2)


async def test_all_prompts_share_the_time_limit_of_one(router: Route) -> None:
    method = CountingClassifier(seconds=0.03)
    routed = await plan(with_method(router(), method, 50), *(f"fever {number}" for number in range(5000)))
    assert (routed.category, routed.reason) == (None, "timeout")
    assert method.queries < 200


async def test_classification_stops_after_the_second_category(router: Route) -> None:
    texts = ["fever", "a law", *(f"fever {number}" for number in range(5000))]
    routed = await plan(router(), *texts)
    assert routed.reason == "mixed" and len(routed.steps) < 200


async def test_thousands_of_prompts_do_not_block_the_event_loop(router: Route) -> None:
    without_deadline = router(more="router: {deadline_ms: 60000}\n")
    planning = asyncio.ensure_future(plan(without_deadline, *(f"fever {number}" for number in range(3000))))
    turns = 0
    while not planning.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 50
