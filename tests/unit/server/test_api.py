"""The `/v1/router` routes and their OpenAPI document."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from vllm_lora_router.classifiers.labels import LabelMapping
from vllm_lora_router.classifiers.mcp.classifier import McpTool
from vllm_lora_router.classifiers.mcp.session import Session
from vllm_lora_router.config.schema import McpCategoryModel
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.observability.audit_destination import prepare_destination
from vllm_lora_router.server.api import include_routes
from vllm_lora_router.server.reload import ConfigReloader, ReloadRefusedError
from vllm_lora_router.server.schemas.decisions import DecisionsResponse
from vllm_lora_router.server.schemas.plan import PlanResponse, PlanSummary
from vllm_lora_router.server.schemas.status import (
    ConfigResponse,
    ConfigSummary,
    FeedbackResponse,
    HealthResponse,
    HealthSummary,
    MethodStatus,
    ReloadRefusedResponse,
    ReloadResponse,
)
from vllm_lora_router.server.state import Serving

from .conftest import ADMIN_CONFIG, ADMIN_KEY, CONFIG, App

CHAT = {"model": "MoM", "messages": [{"role": "user", "content": "my blood"}]}

JSON = {"content-type": "application/json"}


def documented(model: type[BaseModel], response: httpx.Response) -> dict[str, Any]:
    """Return a response's JSON, which must have the fields of the model and no others."""
    content = response.json()
    assert model.model_validate(content).model_dump(exclude_unset=True) == content
    return content


def error_of(response: httpx.Response, status: int) -> str:
    """Return the message of an OpenAI-shaped error."""
    assert response.status_code == status
    error = response.json()["error"]
    assert (error.keys(), error["code"]) == ({"message", "type", "param", "code"}, status)
    return error["message"]


def invalid_fields(response: httpx.Response) -> list[tuple[str, list[str | int]]]:
    """Return error type and location of each error in FastAPI's standard 422."""
    assert response.status_code == 422
    details = response.json()["detail"]
    assert all({"type", "loc", "msg", "input"} <= detail.keys() for detail in details)
    return [(detail["type"], detail["loc"]) for detail in details]


async def test_classify_returns_plan_for_text(app: App, admin: httpx.AsyncClient) -> None:
    plan = documented(PlanResponse, await admin.post("/v1/router/classify", json={"text": "my blood"}))
    assert (plan["category"], plan["model"], plan["method"], plan["reason"]) == (
        *("medical", "medical-lora", "keyword", "routed"),
    )
    assert [candidate["model"] for candidate in plan["candidates"]] == ["medical-lora", "second-lora", "served-base"]
    assert plan["steps"][0]["classification"]["evidence"]["keywords"] == ["blood"]
    assert app.received.bodies == []
    assert app.serving.recorder.counts.by_reason == {}


async def test_classify_shows_scores_and_candidates_without_admin_key(client: httpx.AsyncClient) -> None:
    plan = documented(PlanSummary, await client.post("/v1/router/classify", json={"text": "my blood"}))
    assert (plan["category"], plan["model"], plan["method"], plan["reason"]) == (
        *("medical", "medical-lora", "keyword", "routed"),
    )
    (step,) = plan["steps"]
    assert step.keys() == {"method", "duration_ms", "classification", "failure"}
    assert step["classification"]["accepted"] and step["classification"]["score"] == 1.0
    assert plan["candidates"][0] == {"model": "medical-lora", "adapter": "medical-lora", "arm": None}
    text = json.dumps(plan)
    for hidden in ("You are a medical expert.", "keywords", "cached", "source", "evidence"):
        assert hidden not in text


async def test_classify_reads_whole_request(client: httpx.AsyncClient) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "blood"}, {"role": "user", "content": "lawsuit"}]}
    plan = documented(PlanSummary, await client.post("/v1/router/classify", json=body))
    assert plan["category"] == "legal"
    assert (await client.post("/v1/router/classify", json={"prompt": "blood"})).json()["category"] == "medical"


@pytest.mark.parametrize("path", ["classify", "feedback"])
@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_content_types_that_any_web_page_can_send_are_refused(
    client: httpx.AsyncClient, path: str, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post(f"/v1/router/{path}", content=b'{"text": "blood"}', headers=headers)
    assert "application/json" in error_of(response, 415)


async def test_content_type_can_have_parameters(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = await client.post("/v1/router/classify", content=b'{"text": "blood"}', headers=headers)
    assert response.json()["category"] == "medical"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ("json_invalid", ["body"])),
        (b"[]", ("json_invalid", ["body"])),
        (b"{}", ("missing", ["body"])),
        (b'{"text": 3}', ("string_type", ["body", "text"])),
        (b'{"text": "\xff"}', ("json_invalid", ["body"])),
    ],
)
async def test_classify_returns_422_for_invalid_body(
    client: httpx.AsyncClient, content: bytes, problem: tuple[str, list[str | int]]
) -> None:
    response = await client.post("/v1/router/classify", content=content, headers=JSON)
    assert invalid_fields(response) == [problem]


async def test_health_shows_configuration_in_effect_and_counts(app: App, admin: httpx.AsyncClient) -> None:
    await admin.post("/v1/chat/completions", json={"model": "MoM", "messages": [{"role": "user", "content": "blood"}]})
    health = documented(HealthResponse, await admin.get("/v1/router/health"))
    assert health["status"] == "ok"
    assert health["methods"] == {"keyword": {"failures": {}}}
    assert health["cache"] == {"entries": 0, "bytes": 0, "hits": 0, "misses": 0}
    assert health["decisions"] == {"routed": 1}
    assert health["in_progress"] == 0 and health["aborted"] == 0
    assert app.serving.router is not None and health["config"]["version"] == app.serving.router.version


async def test_health_shows_state_and_counts_without_admin_key(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    health = documented(HealthSummary, await client.get("/v1/router/health"))
    assert health.keys() == {
        *("status", "version", "config", "methods", "decisions", "in_progress", "aborted", "failed"),
    }
    assert health["decisions"] == {"routed": 1} and health["methods"] == {"keyword": {"failures": {}}}


async def test_config_shows_names_without_admin_key(client: httpx.AsyncClient) -> None:
    shown = documented(ConfigSummary, await client.get("/v1/router/config"))
    assert shown.keys() == {"version", "categories", "methods", "deadline_ms"}
    assert shown["categories"][:2] == ["medical", "legal"] and shown["methods"]["keyword"] is True


async def test_config_is_shown_with_keys_of_file(admin: httpx.AsyncClient) -> None:
    shown = documented(ConfigResponse, await admin.get("/v1/router/config"))
    assert shown["base"] == {"alias": "base", "served_names": ["served-base"]}
    assert shown["config"]["model_config"]["base"]["reasoning_family"] == "qwen3"


async def test_config_shows_categories_of_domain_labels(app: App, admin: httpx.AsyncClient) -> None:
    router = app.serving.router
    assert router is not None
    labels = [LabelMapping("health", "medical", "similarity", 0.5), LabelMapping("other", None, "fallback")]
    router.classifiers = replace(router.classifiers, label_mapping=labels)
    assert documented(ConfigResponse, await admin.get("/v1/router/config"))["labels"] == [
        {"label": "health", "category": "medical", "source": "similarity", "similarity": 0.5},
        {"label": "other", "category": None, "source": "fallback", "similarity": None},
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "classify"), ("GET", "health"), ("GET", "config"), ("POST", "feedback")),
        *(("GET", "decisions"), ("GET", "adapters"), ("POST", "reload")),
    ],
)
async def test_routes_return_503_until_router_has_started(
    app: App, client: httpx.AsyncClient, method: str, path: str
) -> None:
    app.serving.router = None
    assert "has not started" in error_of(await client.request(method, f"/v1/router/{path}"), 503)


async def test_admin_routes_return_403_without_configured_and_sent_key(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_ADMIN_KEY", raising=False)
    for config, cause in ((CONFIG, "router.admin_key_env is not set"), (ADMIN_CONFIG, "TEST_ADMIN_KEY is empty")):
        app.configure(config, tmp_path)
        for method, path in (("GET", "adapters"), ("POST", "reload"), ("GET", "decisions?limit=0")):
            response = await client.request(method, f"/v1/router/{path}", headers=ADMIN_KEY)
            assert cause in error_of(response, 403)
        for path in ("health", "config"):
            assert (await client.get(f"/v1/router/{path}")).status_code == 200
            assert cause in error_of(await client.get(f"/v1/router/{path}", headers=ADMIN_KEY), 403)
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    assert (await client.get("/v1/router/adapters", headers=ADMIN_KEY)).json() == {"adapters": ["all of them"]}
    for wrong_key in (b"", b"bos", "bösş".encode()):
        headers = {b"x-lora-router-admin-key": wrong_key} if wrong_key else {}
        response = await client.get("/v1/router/adapters", headers=headers)
        assert "x-lora-router-admin-key" in error_of(response, 403)


async def test_adapters_of_server_without_lora_are_empty(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN_CONFIG, tmp_path)
    app.serving.adapters = None
    assert (await client.get("/v1/router/adapters", headers=ADMIN_KEY)).json() == {"adapters": []}


async def test_reload_returns_outcome(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN_CONFIG, tmp_path)
    file = tmp_path / "config.yaml"
    committed: list[bytes] = []

    async def prepare(content: bytes) -> bytes:
        if b"wrong" in content:
            raise ReloadRefusedError(["config.yaml:1:1: it is wrong"])
        return content

    async def commit(content: bytes, generation: int) -> None:
        committed.append(content)

    assert "does not watch" in error_of(await client.post("/v1/router/reload", headers=ADMIN_KEY), 503)
    reloader = ConfigReloader(RunDirectory.open("server", tmp_path / "run"), file, prepare, commit, poll_s=0.01)
    app.serving.reloader = reloader
    await reloader.join(file.read_bytes())
    reloader.start()
    try:
        for content, status, outcome, generation in (
            (None, 200, "unchanged", 1),
            (b"right", 200, "applied", 2),
            (b"wrong", 409, "refused", 2),
        ):
            if content is not None:
                file.write_bytes(content)
            response = await client.post("/v1/router/reload", headers=ADMIN_KEY)
            model = ReloadRefusedResponse if status == 409 else ReloadResponse
            result = documented(model, response)
            assert (response.status_code, result["outcome"], result["generation"]) == (status, outcome, generation)
        assert result["problems"] == ["config.yaml:1:1: it is wrong"]
        assert "it is wrong" in error_of(response, 409)
        assert committed == [b"right"]
        health = documented(HealthResponse, await client.get("/v1/router/health", headers=ADMIN_KEY))["config"]
        assert (health["generation"], health["refused"]["problems"]) == (2, ["config.yaml:1:1: it is wrong"])
        summary = documented(HealthSummary, await client.get("/v1/router/health"))["config"]
        assert summary.keys() == {"version", "generation", "agreed_generation", "state", "refused"}
        assert summary["refused"].keys() == {"version", "at"}
    finally:
        await reloader.stop()


async def test_decisions_are_listed_newest_first_for_admins(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.get("/v1/router/decisions")).status_code == 403
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN_CONFIG, tmp_path)
    for _ in range(3):
        await client.post("/v1/chat/completions", json=CHAT, headers={"X-Tenant": "acme"})
    response = await client.get("/v1/router/decisions?limit=2", headers=ADMIN_KEY)
    newest, older = documented(DecisionsResponse, response)["decisions"]
    assert newest["plan"]["category"] == older["plan"]["category"] == "medical"
    assert newest["at"] > older["at"]
    assert (newest["tenant"], newest["served"]["version"]) == ("acme", "medical-lora")
    assert (newest["served"]["content_digest"], newest["outcome"]["status"]) == ("digest of medical-lora", 200)


@pytest.mark.parametrize("limit", ["0", "x", "1e3", "100000", "-1", "", *("9" * n for n in (20, 4300, 5000))])
async def test_decisions_return_422_for_invalid_limit(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    app.configure(ADMIN_CONFIG, tmp_path)
    response = await client.get(f"/v1/router/decisions?limit={limit}", headers=ADMIN_KEY)
    ((_, location),) = invalid_fields(response)
    assert location == ["query", "limit"] and len(response.content) < 600


async def test_feedback_returns_decision_that_it_was_joined_to(app: App, client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    id = f"chatcmpl-{app.received.headers[-1]['x-request-id']}"
    response = await client.post("/v1/router/feedback", json={"id": id, "score": 1, "comment": "just right"})
    assert documented(FeedbackResponse, response) == {
        "id": id,
        "joined": True,
        "category": "medical",
        "arm": None,
    }
    unknown = await client.post("/v1/router/feedback", json={"id": "chatcmpl-x", "score": 0})
    assert "router.audit.path" in error_of(unknown, 404)


@pytest.mark.parametrize(
    ("scale", "accepted", "refused"),
    [
        ("", (0, 0.5, 1), ("-0.001", "1.001", "99", "1e999", "NaN", "true", '"1"')),
        ("router: {feedback: {min: 1, max: 5}}\n", (1, 5), ("0", "6")),
    ],
)
async def test_feedback_outside_the_scale_is_refused(
    app: App, client: httpx.AsyncClient, tmp_path: Path, scale: str, accepted: tuple[float, ...], refused: Sequence[str]
) -> None:
    app.configure(CONFIG + scale, tmp_path)
    await client.post("/v1/chat/completions", json=CHAT)
    id = f"chatcmpl-{app.received.headers[-1]['x-request-id']}"
    for score in accepted:
        assert (await client.post("/v1/router/feedback", json={"id": id, "score": score})).status_code == 200
    headers = {"content-type": "application/json"}
    for score in refused:
        content = f'{{"id": "{id}", "score": {score}}}'
        response = await client.post("/v1/router/feedback", content=content, headers=headers)
        assert [location for _, location in invalid_fields(response)] == [["body", "score"]]
    assert (
        f"between {accepted[0]} and {accepted[-1]} (router.feedback)"
        in (await client.post("/v1/router/feedback", json={"id": id, "score": 99})).text
    )
    (decision,) = app.serving.recorder.recent_decisions(1)
    assert decision["feedback"] == list(accepted)


@pytest.mark.parametrize("audit", [False, True])
async def test_feedback_from_another_api_key_or_tenant_is_answered_like_unknown_id(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit: bool
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    settings = "admin_key_env: TEST_ADMIN_KEY" + (", audit: {path: audit}" if audit else "")
    router = app.configure(CONFIG + f"router: {{{settings}}}\n", tmp_path)
    app.serving.recorder.set_destination(prepare_destination(router.loaded))
    sender = {"authorization": "Bearer mine", "x-tenant": "acme"}
    await client.post("/v1/chat/completions", json=CHAT, headers={**sender, "x-request-id": "7"})
    score = {"id": "chatcmpl-7", "score": 1}
    for other in ({"authorization": "Bearer other"}, {"x-tenant": "globex"}, {"x-tenant": ""}):
        response = await client.post("/v1/router/feedback", json=score, headers={**sender, **other})
        assert "chatcmpl-7" in error_of(response, 404)
    assert [each["feedback"] for each in app.serving.recorder.recent_decisions(1)] == [[]]
    for right in (sender, {"authorization": "Bearer admin", **ADMIN_KEY}):
        response = await client.post("/v1/router/feedback", json=score, headers=right)
        assert response.json()["category"] == "medical"
    assert [each["feedback"] for each in app.serving.recorder.recent_decisions(1)] == [[1.0, 1.0]]
    app.serving.recorder.close()


async def test_requests_with_same_request_id_stay_separate_decisions(app: App, client: httpx.AsyncClient) -> None:
    for key, text in (("mine", "blood"), ("other", "a lawsuit")):
        headers = {"authorization": f"Bearer {key}", "x-request-id": "same"}
        body = {"model": "MoM", "messages": [{"role": "user", "content": text}]}
        await client.post("/v1/chat/completions", json=body, headers=headers)
        assert app.received.headers[-1]["x-request-id"] == "same"
    for key, category in (("mine", "medical"), ("other", "legal")):
        score = {"id": "chatcmpl-same", "score": 1}
        headers = {"authorization": f"Bearer {key}"}
        response = await client.post("/v1/router/feedback", json=score, headers=headers)
        assert response.json()["category"] == category
    newest, older = app.serving.recorder.recent_decisions(2)
    assert (newest["id"], older["id"]) == ("chatcmpl-same", "chatcmpl-same")
    assert newest["key"] != older["key"]
    assert newest["outcome"]["key"] == newest["key"] and older["outcome"]["key"] == older["key"]


@pytest.mark.parametrize(
    ("content", "location"),
    [
        (b"", []),
        (b"[]", []),
        (b"{}", ["id"]),
        (b'{"id": "x"}', ["score"]),
        (b'{"score": 1}', ["id"]),
        (b'{"id": "", "score": 1}', ["id"]),
        (b'{"id": 3, "score": 1}', ["id"]),
        (b'{"id": "x", "score": "1"}', ["score"]),
        (b'{"id": "x", "score": true}', ["score"]),
        (b'{"id": "x", "score": 1e999}', ["score"]),
        (b'{"id": "x", "score": NaN}', ["score"]),
        (b'{"id": "x", "score": 1, "coment": "x"}', ["coment"]),
        (b'{"id": "\xff", "score": 1}', []),
        (b'{"id": "' + b"x" * 257 + b'", "score": 1}', ["id"]),
        (b'{"id": "x", "score": 1, "comment": "' + b"x" * 4097 + b'"}', ["comment"]),
    ],
)
async def test_feedback_returns_422_for_invalid_body(
    client: httpx.AsyncClient, content: bytes, location: list[str]
) -> None:
    response = await client.post("/v1/router/feedback", content=content, headers=JSON)
    _, first_location = invalid_fields(response)[0]
    assert first_location == ["body", *location]


async def test_feedback_on_answer_of_other_process_is_accepted_with_audit_record(
    app: App, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ADMIN_KEY", "boss")
    router = app.configure(CONFIG + "router: {admin_key_env: TEST_ADMIN_KEY, audit: {path: audit}}\n", tmp_path)
    app.serving.recorder.set_destination(prepare_destination(router.loaded))
    response = await client.post("/v1/router/feedback", json={"id": "chatcmpl-x", "score": 0.5})
    assert response.status_code == 202
    assert response.json() == {"id": "chatcmpl-x", "joined": False, "category": None, "arm": None}
    health = documented(HealthResponse, await client.get("/v1/router/health", headers=ADMIN_KEY))
    assert health["audit"]["lost"] == 0
    app.serving.recorder.close()
    (file,) = (tmp_path / "audit").glob("*.jsonl")
    assert json.loads(file.read_text())["score"] == 0.5


async def test_routes_answer_422_whatever_handler_the_app_has(app: App) -> None:
    outer = FastAPI()
    include_routes(outer, app.serving)

    @outer.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> PlainTextResponse:
        return PlainTextResponse("as vLLM answers", 400)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://server") as client:
        response = await client.post("/v1/router/classify", content=b"[]", headers=JSON)
    assert invalid_fields(response) == [("json_invalid", ["body"])]


def test_status_of_mcp_tool_is_documented() -> None:
    session = SimpleNamespace(name="tool.py", info=None, is_connected=False, failure="not started")
    status = McpTool(McpCategoryModel(), cast(Session, session)).status()
    method_status = {"failures": {}, **status}
    assert MethodStatus.model_validate(method_status).model_dump(exclude_unset=True) == method_status


@pytest.fixture
def document() -> dict[str, Any]:
    app = FastAPI()
    include_routes(app, Serving())
    return app.openapi()


def test_openapi_document_is_valid(document: dict[str, Any]) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert operations.keys() == {
        ("post", "/v1/router/classify"),
        ("get", "/v1/router/health"),
        ("get", "/v1/router/config"),
        ("post", "/v1/router/feedback"),
        ("get", "/v1/router/decisions"),
        ("get", "/v1/router/adapters"),
        ("post", "/v1/router/reload"),
    }
    for (method, path), operation in operations.items():
        assert operation["summary"] and operation["description"], path
        responses = operation["responses"]
        for status in ("200", "503"):
            schema = responses[status]["content"]["application/json"]["schema"]
            assert all("$ref" in option for option in schema.get("anyOf", [schema])), (path, status)
        is_admin = path.rpartition("/")[2] in ("decisions", "adapters", "reload")
        assert operation["security"] == [{"LoraRouterAdminKey": []}, *([] if is_admin else [{}])], path
        assert {"403", "429"} <= responses.keys(), path
        assert ("requestBody" in operation) == (path.rpartition("/")[2] in ("classify", "feedback")), (method, path)
        assert ("422" in responses) == (path.rpartition("/")[2] in ("classify", "feedback", "decisions")), path


def test_every_documented_field_has_description(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    router_schemas = {name: schema for name, schema in schemas.items() if "ValidationError" not in name}
    for name, schema in router_schemas.items():
        assert schema.get("description"), name
        for field, content in schema["properties"].items():
            # Pydantic omits a field's description if it equals the description of the field's type.
            assert content.get("description") or content.keys() == {"$ref"}, (name, field)
