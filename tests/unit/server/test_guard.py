"""Paths that vLLM leaves open: with an API key on the server, they need it, or they reveal nothing of tenants."""

import asyncio
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Scope

from vllm_lora_router.protocols.routes import OPEN_PATHS, ROUTES
from vllm_lora_router.server import asgi
from vllm_lora_router.types import Client

from .conftest import CONFIG, SERVED_NAMES, App, ReceivedResponse, body_for, post_json

KEY = b"secret"
SAGEMAKER = b"x-amzn-sagemaker-adapter-identifier"
OPEN_ROUTES = sorted(OPEN_PATHS & ROUTES.keys())
UNGUARDED = CONFIG + "router: {guard_open_paths: false}\n"
Headers = list[tuple[bytes, bytes]]


class OneKey:
    """The API keys of a server with one key."""

    digests: Collection[bytes] = [hashlib.sha256(KEY).digest()]

    def accept(self, scope: Scope) -> bool:
        return asgi.bearer_token(scope) == KEY


@pytest.fixture
def app(app: App) -> App:
    app.serving.api_keys = OneKey()
    return app


def authorization(key: bytes = KEY) -> Headers:
    return [(b"authorization", b"Bearer " + key)]


async def post(app: App, path: str, model: str, *headers: tuple[bytes, bytes], text: str = "My blood") -> Any:
    """Send a request that names the model in the place that the path reads."""
    body = body_for(path, text) if path == "/invocations" else body_for(path, text, model=model)
    return await post_json(app.asgi, path, body, [(SAGEMAKER, model.encode()), *headers])


def is_unauthorized(response: ReceivedResponse) -> bool:
    if response.status == 401:
        assert response.body == b'{"error":"Unauthorized"}'  # as vLLM answers; see tests/server/test_vllm_seam.py
    return response.status == 401


@pytest.mark.parametrize("model", ["MoM", "medical-lora", SERVED_NAMES[0]])
@pytest.mark.parametrize("path", OPEN_ROUTES)
async def test_open_path_needs_the_api_key(app: App, path: str, model: str) -> None:
    for headers in ([], authorization(b"wrong"), [(b"authorization", KEY)], [(b"x-api-key", KEY)]):
        assert is_unauthorized(await post(app, path, model, *headers))
    assert app.received.bodies == [] and app.adapters.lease_calls == []
    assert (await post(app, path, model, *authorization())).status == 200


async def test_path_is_guarded_before_its_body_is_read(app: App) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for path in OPEN_PATHS:
        for media_type in (b"application/json", b"multipart/form-data"):
            headers = [(b"content-type", media_type), (b"transfer-encoding", b"chunked")]
            await app.asgi({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
            assert sent[-2]["status"] == 401


async def test_unknown_open_path_needs_the_api_key_if_the_request_names_an_adapter(app: App) -> None:
    async def inner(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app.asgi.app = inner
    for path in ("/of/a/plugin", "/tokenize/"):
        assert is_unauthorized(await post_json(app.asgi, path, {"model": "medical-lora"}))
        for request in ({"model": "medical-lora"}, {}):
            assert (await post_json(app.asgi, path, request, authorization())).status == 200
        for request in ({}, {"model": SERVED_NAMES[0]}):
            assert (await post_json(app.asgi, path, request)).status == 200


async def test_request_with_the_key_is_served_on_an_open_path_as_behind_the_key(app: App) -> None:
    app.adapters.loaded.discard("medical-lora")
    app.adapters.loading["medical-lora"] = loaded = asyncio.Event()
    loaded.set()
    response = await post(app, "/invocations", "MoM", *authorization())
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert "You are a medical expert." in app.received.body.decode()


@pytest.mark.parametrize("path", OPEN_ROUTES)
async def test_without_guard_a_request_without_the_key_gets_no_prompt_and_no_headers(
    app: App, path: str, tmp_path: Path
) -> None:
    app.configure(UNGUARDED, tmp_path)
    for headers, has_key in (([], False), (authorization(b"wrong"), False), (authorization(), True)):
        response = await post(app, path, "MoM", *headers)
        has_prompt = has_key and path in ("/tokenize", "/invocations")
        assert response.status == 200
        assert ("You are a medical expert." in app.received.body.decode()) == has_prompt
        assert ("enable_thinking" in app.received.body.decode()) == has_prompt
        assert any(name.startswith(("x-vsr", "x-lora-router")) for name in response.headers) == has_key
        if path == "/invocations":
            assert app.received.headers[-1][SAGEMAKER.decode()] == "medical-lora"


@pytest.mark.parametrize("mode", ["reject", "observe"])
async def test_without_guard_no_other_answer_shows_a_decision(app: App, tmp_path: Path, mode: str) -> None:
    setting = "on_error: reject" if mode == "reject" else "mode: observe"
    router = app.configure(CONFIG + f"router: {{guard_open_paths: false, {setting}}}\n", tmp_path)
    if mode == "reject":

        async def fail(*arguments: Any, **options: Any) -> Any:
            return router.fallback("error")

        router.plan = fail
    response = await post(app, "/invocations", "MoM")
    assert response.status == (503 if mode == "reject" else 200)
    assert not any(name.startswith(("x-vsr", "x-lora-router")) for name in response.headers)


async def test_without_guard_a_request_without_the_key_has_no_tenant_and_loads_nothing(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = app.configure(UNGUARDED, tmp_path)
    clients: list[tuple[Client, bool]] = []
    plan = router.plan

    async def record(queries: Any, client: Client, **options: Any) -> Any:
        clients.append((client, options["may_call_tools"]))
        return await plan(queries, client, **options)

    monkeypatch.setattr(router, "plan", record)
    app.adapters.loaded.clear()
    tenant = (b"x-tenant", b"acme")
    for headers in ([tenant], [tenant, (b"x-tenant", b"evil")], [tenant, *authorization()]):
        await post(app, "/generative_scoring", "MoM", *headers)
    assert [(client.tenant, may_call) for client, may_call in clients] == [
        (None, False),
        (None, False),
        ("acme", True),
    ]
    assert app.adapters.lease_calls == ["medical-lora", "second-lora"]  # of the last request


@pytest.mark.parametrize("path", OPEN_ROUTES)
async def test_server_without_an_api_key_serves_open_paths_as_before(app: App, path: str) -> None:
    app.serving.api_keys = None
    response = await post(app, path, "MoM", (b"x-tenant", b"acme"))
    assert response.status == 200 and response.headers["x-vsr-selected-model"]
    assert app.serving.recorder.recent_decisions(1) == [] or path in ("/generative_scoring", "/invocations")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_paths_behind_the_key_are_not_checked_twice(app: App, path: str) -> None:
    assert (await post_json(app.asgi, path, {"model": SERVED_NAMES[0]})).status == 200
