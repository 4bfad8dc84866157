"""A conversation stays with what it is about, and leaves it for what is clearly something else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.affinity_state import SHORT, WAITING, Turns, found
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Classification, Client, Method, Plan, Query, Step

if TYPE_CHECKING:
    from .conftest import Route

SAID: Mapping[str, Mapping[str, float]] = {
    "a fever": {"medical": 0.9, "legal": 0.1},
    "a rash": {"medical": 0.7, "legal": 0.2},
    "a contract": {"medical": 0.1, "legal": 0.8},
    "a sick contract": {"medical": 0.55, "legal": 0.65},
    "nearly": {"medical": 0.5, "legal": 0.64},
    "just": {"medical": 0.5, "legal": 0.65},
}


class Scores:
    """A method that is sure at 0.6, and counts what it is asked."""

    method: Method = "domain"
    reads = frozenset({"text"})
    fingerprint = "x"

    def __init__(self, *, slow: frozenset[str] = frozenset()) -> None:
        self.asked: list[str] = []
        self.slow = slow

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        (query,) = queries
        self.asked.append(query.text)
        if query.text in self.slow:
            await asyncio.sleep(60)
        scores = SAID.get(query.text, {"medical": 0.3, "legal": 0.2})
        best = max(scores, key=lambda name: scores[name])
        return [Classification(best, scores[best], scores, "probability", 0.6, scores[best] >= 0.6)]


class Asked:
    """A router over these scores."""

    def __init__(self, router: Router, *, slow: frozenset[str] = frozenset(), deadline_ms: float = 5000) -> None:
        self.scores = Scores(slow=slow)
        classifiers = Classifiers(Cascade([self.scores], deadline_ms), ())
        self.router = Router(router.loaded, router.base, classifiers)

    async def plan(self, *turns: str, previous: str | None = None) -> Plan:
        return await self.router.plan([Query(turns[-1], turns, previous_response_id=previous)])


@pytest.fixture
def asked(router: Route) -> Asked:
    return Asked(router())


FOLLOW_UPS = ["commit it", "thanks", "why?"]


@pytest.mark.parametrize("follow_up", FOLLOW_UPS)
async def test_a_follow_up_stays_with_what_the_conversation_is_about(asked: Asked, follow_up: str) -> None:
    plan = await asked.plan("a fever", follow_up)
    assert (plan.reason, plan.category, plan.method, plan.confidence) == ("affinity", "medical", "domain", 0.9)
    assert [one.model for one in plan.candidates] == ["medical-lora", "legal-lora", "acme/base"]
    assert plan.affinity is not None
    assert (plan.affinity.kept, plan.affinity.category, plan.affinity.alternative) == (True, "medical", None)
    assert not plan.steps[-1].classification.accepted  # pyright: ignore[reportOptionalMemberAccess]


async def test_a_clear_change_is_followed(asked: Asked) -> None:
    plan = await asked.plan("a fever", "why?", "a contract")
    assert (plan.reason, plan.category, plan.confidence) == ("routed", "legal", 0.8)
    assert plan.affinity is not None
    assert (plan.affinity.kept, plan.affinity.category, plan.affinity.alternative) == (False, "medical", "legal")


async def test_a_change_that_is_sure_but_not_by_the_margin_is_not(asked: Asked) -> None:
    plan = await asked.plan("a fever", "a sick contract")
    assert (plan.reason, plan.category) == ("affinity", "medical")
    assert plan.affinity is not None and (plan.affinity.kept, plan.affinity.alternative) == (True, "legal")
    assert (await asked.plan("a fever", "nearly")).category == "medical"
    assert (await asked.plan("a fever", "just")).category == "legal"  # 0.15 better, which is the margin


async def test_the_turn_after_a_change_stays_with_the_new_one(asked: Asked) -> None:
    plan = await asked.plan("a fever", "a contract", "thanks")
    assert (plan.reason, plan.category, plan.confidence) == ("affinity", "legal", 0.8)
    assert [(turn.turns_ago, turn.category, turn.active_topic_score) for turn in plan.affinity.turns] == [  # pyright: ignore
        (2, "medical", 0.0),
        (1, "legal", 0.1),
    ]


async def test_the_same_again_is_routed_and_not_held(asked: Asked) -> None:
    plan = await asked.plan("a fever", "a rash")
    assert (plan.reason, plan.category, plan.confidence) == ("routed", "medical", 0.7)


async def test_the_first_turn_stands_for_itself(asked: Asked) -> None:
    assert (await asked.plan("why?")).reason == "below_threshold"
    plan = await asked.plan("hello", "a rash")
    assert (plan.reason, plan.category, plan.affinity) == ("routed", "medical", None)


async def test_an_image_alone_stays_with_the_conversation(asked: Asked) -> None:
    assert (await asked.plan("a fever", "")).category == "medical"


async def test_without_affinity_each_turn_stands_for_itself(router: Route) -> None:
    asked = Asked(router(more="router: {affinity: {enabled: false}}\n"))
    plan = await asked.plan("a fever", "why?")
    assert (plan.reason, plan.category, plan.affinity, asked.scores.asked) == ("below_threshold", None, None, ["why?"])


async def test_the_margin_is_the_users(router: Route) -> None:
    asked = Asked(router(more="router: {affinity: {margin: 0.05}}\n"))
    assert (await asked.plan("a fever", "a sick contract")).category == "legal"


async def test_what_was_asked_before_is_not_asked_again(asked: Asked) -> None:
    turns = ["a fever", *(f"and {number}?" for number in range(30))]
    for said in range(1, len(turns) + 1):
        plan = await asked.plan(*turns[:said])
        assert plan.category == "medical"
    assert sorted(asked.scores.asked) == sorted(turns)


async def test_what_a_long_conversation_is_about_is_not_forgotten(asked: Asked) -> None:
    turns = ["hello", "a fever", "a contract", *(f"and {number}?" for number in range(40))]
    for said in range(3, len(turns) + 1):
        plan = await asked.plan(*turns[:said])
        assert plan.category == "legal", said


async def test_of_a_long_conversation_that_is_new_here_the_first_and_the_latest_turns_are_asked(asked: Asked) -> None:
    turns = ["a fever", *(f"and {number}?" for number in range(100))]
    plan = await asked.plan(*turns)
    assert plan.category == "medical"
    assert asked.scores.asked == [turns[-1], turns[0], *turns[-7:-1]]


async def test_of_a_very_long_one_the_record_keeps_the_end(asked: Asked) -> None:
    turns = [f"{('a fever', 'a contract')[number % 2]}" for number in range(40)]
    plan = await asked.plan(*turns, "thanks")
    assert plan.affinity is not None and plan.category == "legal"
    assert len(plan.affinity.turns) == 8
    assert plan.affinity.earlier_topic is not None and plan.affinity.earlier_topic.category == "legal"


async def test_the_last_turn_is_asked_first_and_a_late_earlier_one_is_left_out(router: Route) -> None:
    asked = Asked(router(), slow=frozenset({"a fever"}), deadline_ms=50)
    plan = await asked.plan("a fever", "a contract")
    assert (plan.reason, plan.category, asked.scores.asked) == ("routed", "legal", ["a contract", "a fever"])
    assert plan.affinity is None
    # What failed is not remembered.
    await asked.plan("a fever", "a contract")
    assert asked.scores.asked.count("a fever") == 2


async def test_a_last_turn_that_comes_too_late_stays_with_the_conversation(router: Route) -> None:
    asked = Asked(router(), slow=frozenset({"slow"}), deadline_ms=50)
    plan = await asked.plan("a fever", "slow")
    assert (plan.reason, plan.category, plan.steps[-1].failure) == ("affinity", "medical", "timeout")


async def test_boilerplate_in_earlier_turns_is_dropped_too(router: Route) -> None:
    asked = Asked(router(more="router: {text: {drop: ['<.*?>']}}\n"))
    await asked.plan("a fever<a contract>", "why?")
    assert sorted(asked.scores.asked) == ["a fever ", "why?"]


@pytest.mark.parametrize(("setting", "times"), [("shared", 1), ("isolated", 2)])
async def test_what_one_tenant_asked_is_known_of_anothers_turns_unless_they_are_kept_apart(
    router: Route, setting: str, times: int
) -> None:
    asked = Asked(router(more=f"router: {{tenant_cache: {setting}}}\n"))
    for tenant in ("acme", "globex", "acme", "globex"):
        await asked.router.plan([Query("why?", ("a fever", "why?"))], Client(tenant=tenant))
    assert asked.scores.asked.count("a fever") == times


async def test_a_response_that_goes_on_from_another_is_of_its_conversation(asked: Asked) -> None:
    first = Query("a fever", ("a fever",), "responses")
    plan = await asked.router.plan([first])
    asked.router.remember("resp_1", [first], Client(), plan)
    then = Query("why?", ("why?",), "responses", previous_response_id="resp_1")
    plan = await asked.router.plan([then])
    assert (plan.reason, plan.category) == ("affinity", "medical")
    asked.router.remember("resp_2", [then], Client(), plan)
    changed = await asked.plan("a contract", previous="resp_2")
    assert (changed.reason, changed.category) == ("routed", "legal")
    assert (await asked.plan("why?", previous="resp_1")).category == "medical"
    assert (await asked.plan("why?", previous="resp_9")).reason == "below_threshold"


async def test_conversations_are_remembered_over_a_new_configuration(router: Route, asked: Asked) -> None:
    first = Query("a fever", ("a fever",), "responses")
    asked.router.remember("resp_1", [first], Client(), await asked.router.plan([first]))
    after = Router.build(asked.router.loaded, asked.router.base, asked.router)
    assert (await after.plan([Query("why?", ("why?",), previous_response_id="resp_1")])).category == "medical"


def test_turns_are_known_whether_or_not_they_wait_to_be_kept_and_few_wait() -> None:
    turns = Turns()
    steps = (Step("keyword", 0.1, Classification("medical", 1.0, {"medical": 1.0}, "rule", 1.0, True)),)
    for number in range(3 * WAITING):
        turns.put(f"text {number}", None, steps)
        assert len(turns._new) < WAITING
    turns.put("x" * (SHORT + 1), None, steps)
    assert turns._new == []  # nothing long waits
    turns.put("the last", None, steps)
    assert turns.get("the last", None) == turns.get("text 0", None) == (found(steps),)
    assert turns.get("another", None) is None
