"""Every transport lists tools and categories, passes arguments and answers, and reports failures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vllm_lora_router.types import Client

if TYPE_CHECKING:
    from .conftest import ToolRouter


async def test_tools_and_categories_are_listed(each_router: ToolRouter) -> None:
    info = each_router.tool.session.info
    assert info is not None and info.categories is not None
    assert info.tool.name == "classify_text"
    assert list(info.categories.categories) == ["medical", "legal", "tool_category"]


async def test_a_call_passes_arguments_and_returns_the_answer(each_router: ToolRouter) -> None:
    client = Client(tenant="acme", user="ann", headers={"x-region": "eu"})
    plan = await each_router.plan("echo \ud83d", client=client, model="MoM")
    assert (plan.category, plan.method, plan.reason) == ("medical", "mcp", "routed")
    received = json.loads(plan.candidates[0].system_prompt or "")
    assert {name: value for name, value in received.items() if name != "with_probabilities"} == {
        "text": "echo ?",
        "tenant": "acme",
        "user": "ann",
        "headers": {"x-region": "eu"},
        "model": "MoM",
    }


async def test_a_call_that_raises_is_reported_and_the_next_call_succeeds(each_router: ToolRouter) -> None:
    plan = await each_router.plan("raise")
    assert (plan.reason, [candidate.model for candidate in plan.candidates]) == ("error", ["acme/base"])
    assert "the tool reports an error" in (plan.steps[-1].error or "")
    assert (await each_router.plan("hello")).reason == "routed"
