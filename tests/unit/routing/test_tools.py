"""What a tool says of a conversation's last turn, and to whom that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import ANONYMOUS, Classification, Client, Method, Overrides, Plan, Query

if TYPE_CHECKING:
    from .conftest import Route


class Tool:
    """Wishes the tenant's adapter for what is not small talk, and remembers what it was asked."""

    method: Method = "mcp"
    reads = frozenset({"text", "client"})
    fingerprint = ""

    def __init__(self) -> None:
        self.asked: list[Query] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.asked += queries
        return [self._one(query) for query in queries]

    def _one(self, query: Query) -> Classification:
        score = 0.1 if query.text in ("thanks", "why?") else 0.9
        wish = Overrides(f"{query.client.tenant}-{query.text.split()[-1]}")
        category = "legal" if "contract" in query.text else "medical"
        return Classification(category, score, {category: score}, "probability", 0.6, score >= 0.6, overrides=wish)


class Asked:
    def __init__(self, router: Router) -> None:
        self.tool = Tool()
        classifiers = Classifiers(Cascade([*router.classifiers.cascade.classifiers, self.tool], 5000), ())
        self.router = Router(router.loaded, router.base, classifiers)

    async def plan(self, *turns: str, caller: Client = ANONYMOUS, previous: str | None = None) -> Plan:
        return await self.router.plan([Query(turns[-1], turns, previous_response_id=previous)], caller)


ACME, GLOBEX = Client(tenant="acme"), Client(tenant="globex")


@pytest.fixture
def asked(router: Route) -> Asked:
    return Asked(router())


async def test_a_tool_is_asked_about_the_last_turn_alone(asked: Asked) -> None:
    await asked.plan("a rash", "a cough", "an itch", caller=ACME)
    assert [(query.text, query.turns) for query in asked.tool.asked] == [("an itch", ("an itch",))]


async def test_a_follow_up_keeps_the_adapter_that_the_tool_asked_for(asked: Asked) -> None:
    assert (await asked.plan("a rash", caller=ACME)).candidates[0].model == "acme-rash"
    plan = await asked.plan("a rash", "why?", caller=ACME)
    assert (plan.reason, plan.category, plan.candidates[0].model) == ("affinity", "medical", "acme-rash")
    plan = await asked.plan("a rash", "why?", "a cough", caller=ACME)
    assert (plan.reason, plan.candidates[0].model) == ("routed", "acme-cough")


async def test_what_it_said_to_one_is_not_known_of_another(asked: Asked) -> None:
    await asked.plan("a rash", caller=ACME)
    for caller in (GLOBEX, ANONYMOUS, Client("acme", user="ann"), Client("acme", headers={"x-region": "eu"})):
        plan = await asked.plan("a rash", "why?", caller=caller)
        assert (plan.reason, [one.model for one in plan.candidates]) == ("below_threshold", ["acme/base"])


async def test_a_response_that_goes_on_from_another_tenants_knows_nothing_of_it(asked: Asked) -> None:
    first = Query("a rash", ("a rash",), "responses")
    asked.router.remember("resp_1", [first], ACME, await asked.router.plan([first], ACME))
    plan = await asked.plan("why?", caller=ACME, previous="resp_1")
    assert (plan.reason, plan.candidates[0].model) == ("affinity", "acme-rash")
    assert (await asked.plan("why?", caller=GLOBEX, previous="resp_1")).reason == "below_threshold"


async def test_a_rule_before_the_tool_is_known_to_all_as_before(asked: Asked) -> None:
    await asked.plan("a fever", caller=ACME)
    assert asked.tool.asked == []
    plan = await asked.plan("a fever", "why?", caller=GLOBEX)
    assert (plan.reason, plan.category, plan.candidates[0].model) == ("affinity", "medical", "medical-lora")


async def test_prompts_for_which_it_asks_for_different_adapters_do_not_go_together(asked: Asked) -> None:
    texts = ("a rash", "a cough")
    plan = await asked.router.plan([Query(text, (text,)) for text in texts], ACME)
    assert (plan.reason, plan.category) == ("mixed", None)
    plan = await asked.router.plan([Query(text, (text,)) for text in ("a rash", "no rash")], ACME)
    assert (plan.reason, plan.candidates[0].model) == ("routed", "acme-rash")


async def test_it_is_told_what_the_client_named_and_whether_it_may_be_called(asked: Asked) -> None:
    await asked.router.plan([Query("a rash", ("a rash",))], ACME, model="MoM", calls=False)
    (query,) = asked.tool.asked
    assert (query.client, query.model, query.may_call_tools) == (ACME, "MoM", False)
