"""What a tool is told of a request, and what becomes of what it wishes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.classifiers.mcp.classifier import Tool as OpenTool
from vllm_lora_router.types import Classification, Method, Overrides, Query

from .conftest import CONFIG, App, request_to

CHAT = "/v1/chat/completions"
TOOL = """
classifier:
  mcp_category_model: {enabled: true, command: python, forward_headers: [X-Region, x-plan]}
"""


class Tool:
    """Wishes what it is told to."""

    method: Method = "mcp"
    reads = frozenset({"text", "client"})
    fingerprint = ""

    def __init__(self) -> None:
        self.wish = Overrides()
        self.asked: list[Query] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.asked += queries
        return [
            Classification("legal", 0.9, {"legal": 0.9}, "probability", 0.6, True, overrides=self.wish) for _ in queries
        ]


class Nobody(OpenTool):
    """The connection of a tool that is none."""

    def __init__(self) -> None: ...

    def status(self) -> dict[str, Any]:
        return {"tool": "classify_text"}


@pytest.fixture
def tool(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    tool = Tool()

    def build(loaded: Any, before: Any = None, served_name: str | None = None) -> Classifiers:
        return Classifiers(Cascade([tool], 1000), (), tool=Nobody())

    monkeypatch.setattr("vllm_lora_router.routing.router.build", build)
    app.configure(CONFIG + TOOL, tmp_path)
    return tool


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "MoM", "messages": [{"role": "user", "content": text}], **more}


async def test_it_is_told_tenant_user_headers_and_what_the_client_named(tool: Tool, client: httpx.AsyncClient) -> None:
    headers = {"x-tenant": "acme", "X-Region": "eu", "x-other": "no", "authorization": "Bearer secret"}
    await client.post(CHAT, json=chat(user="ann"), headers=headers)
    (query,) = tool.asked
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
async def test_the_user_is_whom_the_request_names_wherever_it_does(
    tool: Tool, client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str], user: str | None
) -> None:
    await client.post(CHAT, json=chat(**body), headers=headers)
    assert tool.asked[0].client.user == user


async def test_what_it_wishes_reaches_vllm(app: App, tool: Tool, client: httpx.AsyncClient) -> None:
    tool.wish = Overrides("second-lora", use_reasoning=False, system_prompt="Be brief.")
    response = await client.post(CHAT, json=chat())
    assert app.reached.json["model"] == response.headers["x-vsr-selected-model"] == "second-lora"
    assert app.reached.json["messages"][0] == {"role": "system", "content": "Be brief."}
    assert app.reached.json["chat_template_kwargs"] == {"enable_thinking": False}
    assert response.headers["x-lora-router-method"] == "mcp"


async def test_an_adapter_that_is_anothers_is_not_allowed_and_the_categorys_own_serves(
    app: App, tool: Tool, client: httpx.AsyncClient
) -> None:
    tool.wish = Overrides("globex-lora")
    app.adapters.anothers.add("globex-lora")
    response = await client.post(CHAT, json=chat(), headers={"x-tenant": "acme"})
    assert app.reached.json["model"] == "legal-lora"
    assert response.headers["x-lora-router-reason"] == "not_allowed"


async def test_an_adapter_that_nobody_knows_is_not_loadable_and_the_categorys_own_serves(
    app: App, tool: Tool, client: httpx.AsyncClient
) -> None:
    tool.wish = Overrides("nobodys-lora")
    response = await client.post(CHAT, json=chat())
    assert app.reached.json["model"] == "legal-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens", "/invocations"])
async def test_dry_and_unguarded_requests_call_no_tool(tool: Tool, client: httpx.AsyncClient, path: str) -> None:
    named = {"x-amzn-sagemaker-adapter-identifier": "MoM"} if path == "/invocations" else {}
    await client.post(path, json=request_to(path, "hello", model="MoM"), headers=named)
    assert [query.may_call_tools for query in tool.asked] == [False]


async def test_our_own_classify_calls_no_tool(tool: Tool, client: httpx.AsyncClient) -> None:
    await client.post("/v1/router/classify", json={"text": "hello"}, headers={"x-tenant": "acme"})
    assert [(query.may_call_tools, query.client.tenant) for query in tool.asked] == [(False, "acme")]


async def test_who_observes_calls_it_for_what_clients_name_too(
    app: App, tool: Tool, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + TOOL + "router: {mode: observe}\n", tmp_path)
    content = json.dumps({**chat(), "model": "medical-lora"}).encode()
    await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.reached.body == content
    assert [(query.model, query.may_call_tools) for query in tool.asked] == [("medical-lora", True)]


async def test_health_says_how_the_tool_does(tool: Tool, client: httpx.AsyncClient) -> None:
    said = (await client.get("/v1/router/health")).json()
    assert said["methods"]["mcp"] == {"failures": {}, "tool": "classify_text"}
