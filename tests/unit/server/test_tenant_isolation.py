"""Tenant isolation in vLLM's prefix cache: the salt that each request reaches vLLM with."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from vllm_lora_router.protocols.cache_salt import SALTED_PATHS
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.server.tenant_isolation import salt_for

from .conftest import CONFIG, App, ReceivedResponse, body_for, echo, post_json

CHAT = "/v1/chat/completions"
HEADER = b"x-amzn-sagemaker-adapter-identifier"
ISOLATED = CONFIG + "router: {tenant_cache: isolated}\n"
ROUTED_PATHS = sorted(SALTED_PATHS & ROUTES.keys())
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
def app(tmp_path: Path) -> App:
    return echo(tmp_path, ISOLATED)


def tenant(name: str | bytes | None) -> Headers:
    return [] if name is None else [(b"x-tenant", name if isinstance(name, bytes) else name.encode())]


def request_for(path: str, model: str | None, text: str = "My blood is", **more: Any) -> tuple[dict[str, Any], Headers]:
    """Return a body and headers that name the model in the place that the path reads."""
    if path == "/invocations":
        return body_for(path, text, **more), [] if model is None else [(HEADER, model.encode())]
    return body_for(path, text, **({} if model is None else {"model": model}), **more), []


async def salt_of(app: App, name: str | bytes | None, request: dict[str, Any], path: str = CHAT) -> Any:
    """Return the salt of a tenant's request as vLLM receives it; None if it has none."""
    response = await post_json(app.asgi, path, request, tenant(name))
    assert response.status == 200, response.body
    return app.received.json.get("cache_salt")


def chat(model: str | None = "MoM", **more: Any) -> dict[str, Any]:
    return request_for(CHAT, model, **more)[0]


@pytest.mark.parametrize("model", ["MoM", "served-base", "medical-lora", "unknown", None])
@pytest.mark.parametrize("path", ROUTED_PATHS)
async def test_each_tenant_has_own_salt_on_every_path(app: App, path: str, model: str | None) -> None:
    request, headers = request_for(path, model)
    salts: dict[str | None, str] = {}
    for name in ("acme", "evil", None):
        for _ in range(2):
            response = await post_json(app.asgi, path, request, [*headers, *tenant(name)])
            assert response.status == 200
            assert salts.setdefault(name, app.received.json["cache_salt"]) == app.received.json["cache_salt"]
    assert len(set(salts.values())) == 3


@pytest.mark.parametrize("model", ["served-base", "medical-lora", "unknown", None])
@pytest.mark.parametrize("path", ROUTED_PATHS)
async def test_named_request_changes_only_by_salt(app: App, path: str, model: str | None) -> None:
    request, headers = request_for(path, model, seed=1)
    content = json.dumps(request, separators=(",", ":")).encode()
    content = content.replace(b'"seed":1', b'"seed":[ 1.50,1e400,"\\u00e9",{"a" :1} ]')
    response = await post_json(app.asgi, path, content, [*headers, *tenant("acme"), (b"content-length", b"0")])
    salt = f',"cache_salt":"{salt_for("acme", None)}"}}'.encode()
    assert app.received.body == content[:-1] + salt
    assert app.received.headers[-1]["content-length"] == str(len(app.received.body))
    assert not [name for name in response.headers if name.startswith(("x-vsr", "x-lora-router"))]


@pytest.mark.parametrize("path", ROUTED_PATHS)
async def test_isolated_routed_request_differs_only_by_salt(app: App, path: str, tmp_path: Path) -> None:
    request, headers = request_for(path, "MoM", request_id="mine")
    received: list[tuple[dict[str, Any], str]] = []
    for config in (ISOLATED, CONFIG):
        app.configure(config, tmp_path)
        response = await post_json(app.asgi, path, request, [*headers, *tenant("acme")])
        received.append((app.received.json, response.headers["x-vsr-selected-model"]))
    (isolated, model), (shared, same_model) = received
    assert isolated.pop("cache_salt") == salt_for("acme", None)
    assert (isolated, model) == (shared, same_model)


def test_salt_is_stable_across_processes_and_releases() -> None:
    assert salt_for("acme", None) == "4c9217a5cf820fdd29a437baff28b375"
    assert salt_for(None, None) == "58d68ed904216fb3f22d43128a18e314"
    assert salt_for("acme", "mine") == "fdd1a5e01d12c269b02977ac2af7ea48"


def test_tenants_and_client_salts_have_distinct_digests() -> None:
    values = [None, "", "=", "==", "a", "=a", "b", "ab", "a=", "None", "null", "\0", "ä", "\udce4"]
    salts = {salt_for(name, client_salt) for name in values for client_salt in values}
    assert len(salts) == len(values) ** 2
    assert all(len(salt) == 32 and salt.isalnum() for salt in salts)


async def test_client_salt_is_included_in_tenant_salt(app: App) -> None:
    for model in ("MoM", "served-base", "medical-lora"):
        salts = [
            await salt_of(app, name, chat(model, **more))
            for name in ("acme", "evil", None)
            for more in ({}, {"cache_salt": "one"}, {"cache_salt": "two"})
        ]
        assert len(set(salts)) == 9
        assert await salt_of(app, "acme", chat(model, cache_salt="one")) == salts[1]
        assert await salt_of(app, "acme", chat(model, cache_salt=None)) == salts[0]


async def test_client_salt_cannot_produce_other_tenants_salt(app: App) -> None:
    other_salt = await salt_of(app, "acme", chat("served-base"))
    for client_salt in (other_salt, "acme", "=acme"):
        for name in ("evil", None, "acme2"):
            assert await salt_of(app, name, chat("served-base", cache_salt=client_salt)) != other_salt


async def test_no_tenant_name_equals_absent_tenant(app: App) -> None:
    no_tenant = await salt_of(app, None, chat("served-base"))
    assert await salt_of(app, "", chat("served-base")) == no_tenant
    assert await salt_of(app, "  ", chat("served-base")) == no_tenant
    for name in ("None", "null", "=", "\\0"):
        assert await salt_of(app, name, chat("served-base")) != no_tenant


async def test_tenant_names_that_are_not_utf_8_have_own_salts(app: App) -> None:
    names = [None, "Größe".encode("latin-1"), "Gräße".encode("latin-1"), "Größe".encode()]
    assert len({await salt_of(app, name, chat("served-base")) for name in names}) == 4


@pytest.mark.parametrize("client_salt", ["", "x" * 129, "a/b", "\ud800", 5, True, ["x"], {"a": 1}])
@pytest.mark.parametrize("model", ["served-base", "medical-lora", None])
async def test_invalid_client_salt_is_forwarded_unchanged(app: App, model: str | None, client_salt: Any) -> None:
    content = json.dumps(chat(model, cache_salt=client_salt), indent=1).encode()
    await post_json(app.asgi, CHAT, content, tenant("acme"))
    assert app.received.body == content
    await post_json(app.asgi, CHAT, chat("MoM", cache_salt=client_salt), tenant("acme"))
    assert app.received.json["cache_salt"] == client_salt


async def test_retry_keeps_salt(app: App) -> None:
    await post_json(app.asgi, CHAT, chat("MoM", wrong=True), tenant("acme"))
    first, retry = map(json.loads, app.received.bodies)
    assert first["messages"][0]["role"] == "system" and retry["messages"] == chat()["messages"]
    assert first["cache_salt"] == retry["cache_salt"] == salt_for("acme", None)


async def test_version_name_is_written_with_salt(app: App) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    for model in ("medical-lora", "MoM"):
        await post_json(app.asgi, CHAT, chat(model), tenant("acme"))
        assert (app.received.json["model"], app.received.json["cache_salt"]) == (
            "medical-lora@1a2b3c4d",
            salt_for("acme", None),
        )
    request, headers = request_for("/invocations", "medical-lora")
    await post_json(app.asgi, "/invocations", request, [*headers, *tenant("acme")])
    assert app.received.headers[-1][HEADER.decode()] == "medical-lora@1a2b3c4d"
    assert app.received.json == {**request, "cache_salt": salt_for("acme", None)}


@pytest.mark.parametrize("router", ["mode: observe", "mode: off", "route_base_model: true", "share: 0.0"])
async def test_tenants_are_isolated_in_every_router_mode(app: App, router: str, tmp_path: Path) -> None:
    app.configure(f"{CONFIG}router: {{tenant_cache: isolated, {router}}}\n", tmp_path)
    for model in ("MoM", "served-base", "medical-lora", None):
        assert await salt_of(app, "acme", chat(model)) == salt_for("acme", None)


async def test_recorded_request_that_is_not_routed_is_isolated(app: App) -> None:
    app.serving.recorder.records_all_requests = True
    assert await salt_of(app, "acme", chat("served-base")) == salt_for("acme", None)


async def test_server_without_lora_isolates_tenants(app: App) -> None:
    app.serving.adapters = None
    for model in ("MoM", "served-base", "medical-lora"):
        assert await salt_of(app, "acme", chat(model)) == salt_for("acme", None)


async def test_auto_name_on_unrouted_path_is_isolated(app: App) -> None:
    """vLLM may be configured to answer any model name with the base model."""
    assert await salt_of(app, "acme", {"model": "MoM", "input": "x"}, "/v1/embeddings") == salt_for("acme", None)


async def test_large_body_is_isolated(app: App) -> None:
    content = json.dumps(chat("served-base", x="y" * 1_000_000), separators=(",", ":")).encode()
    await post_json(app.asgi, CHAT, content, tenant("acme"))
    assert app.received.body == content[:-1] + f',"cache_salt":"{salt_for("acme", None)}"}}'.encode()


async def test_tenant_is_read_from_configured_header(app: App, tmp_path: Path) -> None:
    app.configure(f'{CONFIG}router: {{tenant_cache: isolated, tenant: "header:X-Org"}}\n', tmp_path)
    await post_json(app.asgi, CHAT, chat("served-base"), [(b"x-org", b"acme"), (b"x-tenant", b"evil")])
    assert app.received.json["cache_salt"] == salt_for("acme", None)


@pytest.mark.parametrize("path", sorted(path for path, route in ROUTES.items() if route.dry_run))
async def test_dry_run_paths_are_not_salted(app: App, path: str) -> None:
    content = json.dumps(request_for(path, "served-base")[0], indent=1).encode()
    assert (await post_json(app.asgi, path, content, tenant("acme"))).status == 200
    assert app.received.body == content
    await post_json(app.asgi, path, request_for(path, "MoM")[0], tenant("acme"))
    assert "cache_salt" not in app.received.json


def assert_refused(app: App, response: ReceivedResponse, *texts: str) -> None:
    error = json.loads(response.body)["error"]
    assert (response.status, error["type"], error["code"]) == (400, "BadRequestError", 400)
    assert all(text in error["message"] for text in (*texts, "`router.tenant_cache: shared`")), error
    assert app.received.bodies == []


@pytest.mark.parametrize(
    "path",
    [
        *("/cohere/v2/chat", "/v2/embed", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/decisions"),
        *("/v1/chat/completions/new", "/v1/unheard/of", "/"),
        # vLLM's routes accept a line break at the end of the path.
        *("/v1/chat/completions\n", "/v1/completions\n", "/v1/chat/completions/"),
    ],
)
@pytest.mark.parametrize("model", ["MoM", "served-base"])
async def test_path_without_salt_returns_400_with_remedy(app: App, path: str, model: str) -> None:
    assert_refused(app, await post_json(app.asgi, path, chat(model), tenant("acme")), repr(path), "another path")


async def post(app: App, path: str, content: bytes, headers: Headers) -> ReceivedResponse:
    """Send a POST with any content type."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app.asgi(scope, receive, send)
    return ReceivedResponse(sent[0]["status"], {}, b"".join(message["body"] for message in sent[1:]))


NOT_JSON: dict[str, Headers] = {
    "a form": [(b"content-type", b"multipart/form-data; boundary=x")],
    "text": [(b"content-type", b"text/plain")],
    "another kind of JSON": [(b"content-type", b"application/ld+json")],
    "no content type": [],
    "another encoding": [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")],
}


@pytest.mark.parametrize("kind", NOT_JSON)
async def test_body_that_is_not_json_returns_400(app: App, kind: str, tmp_path: Path) -> None:
    content = json.dumps(chat("served-base")).encode()
    assert_refused(app, await post(app, CHAT, content, NOT_JSON[kind]), "application/json")
    assert_refused(
        app, await post(app, "/v1/audio/transcriptions", content, NOT_JSON[kind]), "/v1/audio/transcriptions"
    )
    app.configure(CONFIG, tmp_path)
    await post(app, CHAT, content, NOT_JSON[kind])
    assert app.received.body == content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"MoM"', b'{"model":"MoM"', b"\xff\xfe"])
async def test_body_that_is_not_json_object_is_forwarded_unchanged(app: App, content: bytes) -> None:
    await post_json(app.asgi, CHAT, content, tenant("acme"))
    assert app.received.body == content


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32-le"])
async def test_every_json_encoding_is_isolated(app: App, encoding: str) -> None:
    await post_json(app.asgi, CHAT, json.dumps(chat("served-base")).encode(encoding), tenant("acme"))
    assert app.received.json == {**chat("served-base"), "cache_salt": salt_for("acme", None)}


async def test_operational_paths_are_not_refused(app: App) -> None:
    received_paths: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        received_paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    app.asgi.app = inner
    paths = ["/v1/load_lora_adapter", "/sleep", "/ping", "/v1/responses/resp_1/cancel", "/v1/router/classify"]
    for path in paths:
        assert (await post(app, path, b"", [])).status == 200
    assert received_paths == paths


@pytest.mark.parametrize("path", sorted({*ROUTES, "/v1/embeddings"}))
async def test_shared_cache_adds_no_salt_and_refuses_nothing(app: App, path: str, tmp_path: Path) -> None:
    app.configure(CONFIG, tmp_path)
    request, headers = request_for(path, "served-base", cache_salt="mine")
    content = json.dumps(request, indent=1).encode()
    assert (await post_json(app.asgi, path, content, [*headers, *tenant("acme")])).status == 200
    assert app.received.body == content
    await post_json(app.asgi, path, request_for(path, "MoM")[0], tenant("acme"))
    assert "cache_salt" not in app.received.json


async def connect(app: App, extensions: dict[str, Any]) -> list[Message]:
    """Open a WebSocket, and return the messages that the client receives."""
    sent: list[Message] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    app.asgi.app = inner
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": tenant("acme"), "extensions": extensions}
    await app.asgi(scope, receive, send)
    return sent


async def test_websocket_is_refused_if_tenants_are_isolated(app: App, tmp_path: Path) -> None:
    start, end = await connect(app, {"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert "`router.tenant_cache: shared`" in json.loads(end["body"])["error"]["message"]
    assert [message["type"] for message in await connect(app, {})] == ["websocket.close"]
    app.configure(CONFIG, tmp_path)
    assert [message["type"] for message in await connect(app, {})] == ["websocket.accept"]


async def test_running_request_keeps_its_configuration(app: App, tmp_path: Path) -> None:
    app.adapters.slot.clear()
    running = asyncio.create_task(post_json(app.asgi, CHAT, chat("MoM"), tenant("acme")))
    await asyncio.sleep(0.02)
    app.configure(CONFIG, tmp_path)
    app.adapters.slot.set()
    await running
    assert app.received.json["cache_salt"] == salt_for("acme", None)
    assert await salt_of(app, "acme", chat("MoM")) is None
