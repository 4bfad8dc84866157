"""Affinity: a conversation keeps its topic until a turn is clearly about another one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.affinity_state import (
    MAX_PENDING,
    AcceptedClassification,
    TurnCache,
    digest,
)
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Classification, Client, Method, Plan, Query

if TYPE_CHECKING:
    from .conftest import Route

SCORES: Mapping[str, Mapping[str, float]] = {
    "a fever": {"medical": 0.9, "legal": 0.1},
    "a rash": {"medical": 0.7, "legal": 0.2},
    "a contract": {"medical": 0.1, "legal": 0.8},
    "a sick contract": {"medical": 0.55, "legal": 0.65},
    "nearly": {"medical": 0.5, "legal": 0.64},
    "just": {"medical": 0.5, "legal": 0.65},
}


class ScoreClassifier:
    """A classifier with the threshold 0.6 that records its texts."""

    method: Method = "domain"
    reads = frozenset({"text"})
    fingerprint = "x"

    def __init__(self, *, slow: frozenset[str] = frozenset()) -> None:
        self.texts: list[str] = []
        self.slow = slow

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        (query,) = queries
        self.texts.append(query.text)
        if query.text in self.slow:
            await asyncio.sleep(60)
        scores = SCORES.get(query.text, {"medical": 0.3, "legal": 0.2})
        best = max(scores, key=lambda name: scores[name])
        return [Classification(best, scores[best], scores, "probability", 0.6, scores[best] >= 0.6)]


class ConversationRouter:
    """A router with these scores."""

    def __init__(self, router: Router, *, slow: frozenset[str] = frozenset(), deadline_ms: float = 5000) -> None:
        self.classifier = ScoreClassifier(slow=slow)
        classifiers = Classifiers(Cascade([self.classifier], deadline_ms), ())
        self.router = Router(router.loaded, router.base, classifiers)

    async def plan(self, *turns: str, previous: str | None = None) -> Plan:
        return await self.router.plan([Query(turns[-1], turns, previous_response_id=previous)])


@pytest.fixture
def chat(router: Route) -> ConversationRouter:
    return ConversationRouter(router())


FOLLOW_UPS = ["commit it", "thanks", "why?"]


@pytest.mark.parametrize("follow_up", FOLLOW_UPS)
async def test_a_follow_up_keeps_the_topic(chat: ConversationRouter, follow_up: str) -> None:
    plan = await chat.plan("a fever", follow_up)
    assert (plan.reason, plan.category, plan.method, plan.confidence) == ("affinity", "medical", "domain", 0.9)
    assert [candidate.model for candidate in plan.candidates] == ["medical-lora", "legal-lora", "acme/base"]
    assert plan.affinity is not None
    assert (plan.affinity.kept, plan.affinity.category, plan.affinity.alternative) == (True, "medical", None)
    assert not plan.steps[-1].classification.accepted  # pyright: ignore[reportOptionalMemberAccess]


async def test_a_clear_change_of_topic_is_followed(chat: ConversationRouter) -> None:
    plan = await chat.plan("a fever", "why?", "a contract")
    assert (plan.reason, plan.category, plan.confidence) == ("routed", "legal", 0.8)
    assert plan.affinity is not None
    assert (plan.affinity.kept, plan.affinity.category, plan.affinity.alternative) == (False, "medical", "legal")


async def test_an_accepted_category_within_the_margin_keeps_the_topic(chat: ConversationRouter) -> None:
    plan = await chat.plan("a fever", "a sick contract")
    assert (plan.reason, plan.category) == ("affinity", "medical")
    assert plan.affinity is not None and (plan.affinity.kept, plan.affinity.alternative) == (True, "legal")
    assert (await chat.plan("a fever", "nearly")).category == "medical"
    assert (await chat.plan("a fever", "just")).category == "legal"  # better by 0.15, which is the margin


async def test_a_follow_up_after_a_change_keeps_the_new_topic(chat: ConversationRouter) -> None:
    plan = await chat.plan("a fever", "a contract", "thanks")
    assert (plan.reason, plan.category, plan.confidence) == ("affinity", "legal", 0.8)
    assert [(turn.turns_ago, turn.category, turn.active_topic_score) for turn in plan.affinity.turns] == [  # pyright: ignore
        (2, "medical", 0.0),
        (1, "legal", 0.1),
    ]


async def test_the_same_category_again_is_routed_without_affinity(chat: ConversationRouter) -> None:
    plan = await chat.plan("a fever", "a rash")
    assert (plan.reason, plan.category, plan.confidence) == ("routed", "medical", 0.7)


async def test_the_first_turn_is_routed_without_affinity(chat: ConversationRouter) -> None:
    assert (await chat.plan("why?")).reason == "below_threshold"
    plan = await chat.plan("hello", "a rash")
    assert (plan.reason, plan.category, plan.affinity) == ("routed", "medical", None)


async def test_a_turn_without_text_keeps_the_topic(chat: ConversationRouter) -> None:
    assert (await chat.plan("a fever", "")).category == "medical"


async def test_with_affinity_disabled_only_the_last_turn_is_classified(router: Route) -> None:
    chat = ConversationRouter(router(more="router: {affinity: {enabled: false}}\n"))
    plan = await chat.plan("a fever", "why?")
    assert (plan.reason, plan.category, plan.affinity, chat.classifier.texts) == (
        "below_threshold",
        None,
        None,
        ["why?"],
    )


async def test_the_margin_is_configurable(router: Route) -> None:
    chat = ConversationRouter(router(more="router: {affinity: {margin: 0.05}}\n"))
    assert (await chat.plan("a fever", "a sick contract")).category == "legal"


async def test_earlier_turns_are_classified_once(chat: ConversationRouter) -> None:
    turns = ["a fever", *(f"and {number}?" for number in range(30))]
    for count in range(1, len(turns) + 1):
        plan = await chat.plan(*turns[:count])
        assert plan.category == "medical"
    assert sorted(chat.classifier.texts) == sorted(turns)


async def test_a_long_conversation_keeps_its_topic(chat: ConversationRouter) -> None:
    turns = ["hello", "a fever", "a contract", *(f"and {number}?" for number in range(40))]
    for count in range(3, len(turns) + 1):
        plan = await chat.plan(*turns[:count])
        assert plan.category == "legal", count


async def test_of_a_new_conversation_the_latest_turns_are_classified_until_one_is_clear(
    chat: ConversationRouter,
) -> None:
    turns = ["a contract", "a fever", *(f"and {number}?" for number in range(20))]
    plan = await chat.plan(*turns)
    assert plan.category == "medical"
    assert chat.classifier.texts == list(reversed(turns))  # three times seven turns before the last one


async def test_of_a_new_very_long_conversation_the_first_and_the_latest_63_turns_are_classified(
    chat: ConversationRouter,
) -> None:
    turns = ["a fever", *(f"and {number}?" for number in range(100))]
    plan = await chat.plan(*turns)
    assert plan.category == "medical"
    assert chat.classifier.texts == [*reversed(turns[-64:]), "a fever"]


async def test_the_record_of_a_very_long_conversation_has_its_latest_turns(
    chat: ConversationRouter,
) -> None:
    turns = [f"{('a fever', 'a contract')[number % 2]}" for number in range(40)]
    plan = await chat.plan(*turns, "thanks")
    assert plan.affinity is not None and plan.category == "legal"
    assert len(plan.affinity.turns) == 8
    assert plan.affinity.earlier_topic is not None and plan.affinity.earlier_topic.category == "legal"


async def test_the_last_turn_is_classified_first_and_an_earlier_one_that_times_out_is_ignored(router: Route) -> None:
    chat = ConversationRouter(router(), slow=frozenset({"a fever"}), deadline_ms=50)
    plan = await chat.plan("a fever", "a contract")
    assert (plan.reason, plan.category, chat.classifier.texts) == (
        "routed",
        "legal",
        ["a contract", "a fever"],
    )
    assert plan.affinity is None
    # Failures are not cached.
    await chat.plan("a fever", "a contract")
    assert chat.classifier.texts.count("a fever") == 2


async def test_a_last_turn_that_times_out_keeps_the_topic(router: Route) -> None:
    chat = ConversationRouter(router(), slow=frozenset({"slow"}), deadline_ms=50)
    plan = await chat.plan("a fever", "slow")
    assert (plan.reason, plan.category, plan.steps[-1].failure) == ("affinity", "medical", "timeout")


async def test_drop_also_applies_to_earlier_turns(router: Route) -> None:
    chat = ConversationRouter(router(more="router: {text: {drop: ['<.*?>']}}\n"))
    await chat.plan("a fever<a contract>", "why?")
    assert sorted(chat.classifier.texts) == ["a fever ", "why?"]


@pytest.mark.parametrize(("setting", "times"), [("shared", 1), ("isolated", 2)])
async def test_cached_turns_are_shared_between_tenants_unless_they_are_isolated(
    router: Route, setting: str, times: int
) -> None:
    chat = ConversationRouter(router(more=f"router: {{tenant_cache: {setting}}}\n"))
    for tenant in ("acme", "globex", "acme", "globex"):
        await chat.router.plan([Query("why?", ("a fever", "why?"))], Client(tenant=tenant))
    assert chat.classifier.texts.count("a fever") == times


async def test_previous_response_id_continues_the_conversation(chat: ConversationRouter) -> None:
    first = Query("a fever", ("a fever",), "responses")
    plan = await chat.router.plan([first])
    chat.router.remember("resp_1", [first], Client(), plan)
    second = Query("why?", ("why?",), "responses", previous_response_id="resp_1")
    plan = await chat.router.plan([second])
    assert (plan.reason, plan.category) == ("affinity", "medical")
    chat.router.remember("resp_2", [second], Client(), plan)
    changed = await chat.plan("a contract", previous="resp_2")
    assert (changed.reason, changed.category) == ("routed", "legal")
    assert (await chat.plan("why?", previous="resp_1")).category == "medical"
    assert (await chat.plan("why?", previous="resp_9")).reason == "below_threshold"


async def test_a_reload_keeps_conversations(router: Route, chat: ConversationRouter) -> None:
    first = Query("a fever", ("a fever",), "responses")
    chat.router.remember("resp_1", [first], Client(), await chat.router.plan([first]))
    reloaded = Router.build(chat.router.loaded, chat.router.base, chat.router)
    assert (await reloaded.plan([Query("why?", ("why?",), previous_response_id="resp_1")])).category == "medical"


def test_turns_are_found_while_their_writes_are_pending_and_few_are_pending() -> None:
    turns = TurnCache()
    result = AcceptedClassification("keyword", Classification("medical", 1.0, {"medical": 1.0}, "rule", 1.0, True))
    for number in range(3 * MAX_PENDING):
        turns.put_later(b"scope", f"text {number}", None, result)
        assert len(turns._pending) < MAX_PENDING
    turns.put_later(b"scope", "the last", None, result)
    for text in ("the last", "text 0"):
        assert turns.get(b"scope", digest(text), None) == (result,)
    assert turns.get(b"scope", digest("another"), None) is None
