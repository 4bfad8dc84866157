"""Overrides of an MCP tool in conversations, and the clients that they apply to."""

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


class FakeTool:
    """Requests an adapter of the tenant for every text except small talk, and records its queries."""

    method: Method = "mcp"
    reads = frozenset({"text", "client"})
    fingerprint = ""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.queries += queries
        return [self._classify(query) for query in queries]

    def _classify(self, query: Query) -> Classification:
        score = 0.1 if query.text in ("thanks", "why?") else 0.9
        overrides = Overrides(f"{query.client.tenant}-{query.text.split()[-1]}")
        category = "legal" if "contract" in query.text else "medical"
        return Classification(category, score, {category: score}, "probability", 0.6, score >= 0.6, overrides=overrides)


class ToolRouter:
    """A router with this tool."""

    def __init__(self, router: Router) -> None:
        self.tool = FakeTool()
        classifiers = Classifiers(Cascade([*router.classifiers.cascade.classifiers, self.tool], 5000), ())
        self.router = Router(router.loaded, router.base, classifiers)

    async def plan(self, *turns: str, client: Client = ANONYMOUS, previous: str | None = None) -> Plan:
        return await self.router.plan([Query(turns[-1], turns, previous_response_id=previous)], client)


ACME, GLOBEX = Client(tenant="acme"), Client(tenant="globex")


@pytest.fixture
def tool_router(router: Route) -> ToolRouter:
    return ToolRouter(router())


async def test_a_tool_is_called_only_for_the_last_turn(tool_router: ToolRouter) -> None:
    await tool_router.plan("a rash", "a cough", "an itch", client=ACME)
    assert [(query.text, query.turns) for query in tool_router.tool.queries] == [("an itch", ("an itch",))]


async def test_a_follow_up_keeps_the_adapter_that_the_tool_requested(tool_router: ToolRouter) -> None:
    assert (await tool_router.plan("a rash", client=ACME)).candidates[0].model == "acme-rash"
    plan = await tool_router.plan("a rash", "why?", client=ACME)
    assert (plan.reason, plan.category, plan.candidates[0].model) == ("affinity", "medical", "acme-rash")
    plan = await tool_router.plan("a rash", "why?", "a cough", client=ACME)
    assert (plan.reason, plan.candidates[0].model) == ("routed", "acme-cough")


async def test_overrides_for_one_client_are_not_used_for_another(tool_router: ToolRouter) -> None:
    await tool_router.plan("a rash", client=ACME)
    for client in (GLOBEX, ANONYMOUS, Client("acme", user="ann"), Client("acme", headers={"x-region": "eu"})):
        plan = await tool_router.plan("a rash", "why?", client=client)
        assert (plan.reason, [candidate.model for candidate in plan.candidates]) == ("below_threshold", ["acme/base"])


async def test_a_response_of_another_tenant_cannot_be_continued(tool_router: ToolRouter) -> None:
    first = Query("a rash", ("a rash",), "responses")
    tool_router.router.remember("resp_1", [first], ACME, await tool_router.router.plan([first], ACME))
    plan = await tool_router.plan("why?", client=ACME, previous="resp_1")
    assert (plan.reason, plan.candidates[0].model) == ("affinity", "acme-rash")
    assert (await tool_router.plan("why?", client=GLOBEX, previous="resp_1")).reason == "below_threshold"


async def test_classifications_of_a_rule_before_the_tool_are_shared_by_all_clients(tool_router: ToolRouter) -> None:
    await tool_router.plan("a fever", client=ACME)
    assert tool_router.tool.queries == []
    plan = await tool_router.plan("a fever", "why?", client=GLOBEX)
    assert (plan.reason, plan.category, plan.candidates[0].model) == ("affinity", "medical", "medical-lora")


async def test_prompts_with_different_requested_adapters_are_not_routed_together(tool_router: ToolRouter) -> None:
    texts = ("a rash", "a cough")
    plan = await tool_router.router.plan([Query(text, (text,)) for text in texts], ACME)
    assert (plan.reason, plan.category) == ("mixed", None)
    plan = await tool_router.router.plan([Query(text, (text,)) for text in ("a rash", "no rash")], ACME)
    assert (plan.reason, plan.candidates[0].model) == ("routed", "acme-rash")


async def test_the_query_has_the_requested_model_and_the_permission_to_call_tools(tool_router: ToolRouter) -> None:
    await tool_router.router.plan([Query("a rash", ("a rash",))], ACME, model="MoM", may_call_tools=False)
    (query,) = tool_router.tool.queries
    assert (query.client, query.model, query.may_call_tools) == (ACME, "MoM", False)
