"""The MCP tool: which parts of a request it receives, and how its overrides are applied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.classifiers.mcp.classifier import McpTool
from vllm_lora_router.types import Classification, Method, Overrides, Query

from .conftest import CONFIG, App, body_for

CHAT = "/v1/chat/completions"
TOOL = """
classifier:
  mcp_category_model: {enabled: true, command: python, forward_headers: [X-Region, x-plan]}
"""


class FakeTool:
    """A classifier that returns the given overrides."""

    method: Method = "mcp"
    reads = frozenset({"text", "client"})
    fingerprint = ""

    def __init__(self) -> None:
        self.overrides = Overrides()
        self.queries: list[Query] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.queries += queries
        return [
            Classification("legal", 0.9, {"legal": 0.9}, "probability", 0.6, True, overrides=self.overrides)
            for _ in queries
        ]


class UnconnectedTool(McpTool):
    """An MCP tool without a connection."""

    def __init__(self) -> None: ...

    def status(self) -> dict[str, Any]:
        return {"tool": "classify_text"}


@pytest.fixture
def tool(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTool:
    tool = FakeTool()

    def build(loaded: Any, before: Any = None, served_name: str | None = None) -> Classifiers:
        return Classifiers(Cascade([tool], 1000), (), mcp_tool=UnconnectedTool())

    monkeypatch.setattr("vllm_lora_router.routing.router.build", build)
    app.configure(CONFIG + TOOL, tmp_path)
    return tool


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "MoM", "messages": [{"role": "user", "content": text}], **more}


async def test_tool_receives_tenant_user_headers_and_model(tool: FakeTool, client: httpx.AsyncClient) -> None:
    headers = {"x-tenant": "acme", "X-Region": "eu", "x-other": "no", "authorization": "Bearer secret"}
    await client.post(CHAT, json=chat(user="ann"), headers=headers)
    (query,) = tool.queries
    assert (query.text, query.model, query.may_call_tools) == ("hello", "MoM", True)
    assert (query.client.tenant, query.client.user, query.client.headers) == ("acme", "ann", {"x-region": "eu"})


@pytest.mark.parametrize(
    ("body", "headers", "user"),
    [
        ({"safety_identifier": "a", "user": "b"}, {}, "a"),
        ({"metadata": {"user_id": "c"}}, {}, "c"),
        ({"user": "b"}, {"x-user": "d"}, "b"),
        ({}, {"x-user": "d"}, "d"),
        ({"user": 7}, {}, None),
    ],
)
async def test_user_is_read_from_every_api(
    tool: FakeTool, client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], user: str | None
) -> None:
    await client.post(CHAT, json=chat(**body), headers=headers)
    assert tool.queries[0].client.user == user


async def test_overrides_reach_vllm(app: App, tool: FakeTool, client: httpx.AsyncClient) -> None:
    tool.overrides = Overrides("second-lora", use_reasoning=False, system_prompt="Be brief.")
    response = await client.post(CHAT, json=chat())
    assert app.received.json["model"] == response.headers["x-vsr-selected-model"] == "second-lora"
    assert app.received.json["messages"][0] == {"role": "system", "content": "Be brief."}
    assert app.received.json["chat_template_kwargs"] == {"enable_thinking": False}
    assert response.headers["x-lora-router-method"] == "mcp"


async def test_other_tenants_adapter_falls_back_to_category_with_not_allowed(
    app: App, tool: FakeTool, client: httpx.AsyncClient
) -> None:
    tool.overrides = Overrides("globex-lora")
    app.adapters.other_tenants.add("globex-lora")
    response = await client.post(CHAT, json=chat(), headers={"x-tenant": "acme"})
    assert app.received.json["model"] == "legal-lora"
    assert response.headers["x-lora-router-reason"] == "not_allowed"


async def test_unknown_adapter_falls_back_to_category_with_not_loadable(
    app: App, tool: FakeTool, client: httpx.AsyncClient
) -> None:
    tool.overrides = Overrides("unknown-lora")
    response = await client.post(CHAT, json=chat())
    assert app.received.json["model"] == "legal-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens", "/invocations"])
async def test_dry_run_and_open_paths_call_no_tool(tool: FakeTool, client: httpx.AsyncClient, path: str) -> None:
    headers = {"x-amzn-sagemaker-adapter-identifier": "MoM"} if path == "/invocations" else {}
    await client.post(path, json=body_for(path, "hello", model="MoM"), headers=headers)
    assert [query.may_call_tools for query in tool.queries] == [False]


async def test_classify_route_calls_no_tool(tool: FakeTool, client: httpx.AsyncClient) -> None:
    await client.post("/v1/router/classify", json={"text": "hello"}, headers={"x-tenant": "acme"})
    assert [(query.may_call_tools, query.client.tenant) for query in tool.queries] == [(False, "acme")]


async def test_observe_mode_calls_tool_for_named_requests(
    app: App, tool: FakeTool, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + TOOL + "router: {mode: observe}\n", tmp_path)
    content = json.dumps({**chat(), "model": "medical-lora"}).encode()
    await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.received.body == content
    assert [(query.model, query.may_call_tools) for query in tool.queries] == [("medical-lora", True)]


async def test_health_shows_tool_status_to_admins(tool: FakeTool, admin: httpx.AsyncClient) -> None:
    health = (await admin.get("/v1/router/health")).json()
    assert health["methods"]["mcp"] == {"failures": {}, "tool": "classify_text"}
