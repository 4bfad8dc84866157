"""Responses: the retry after vLLM rejects our edit, and our 400 for auto names on paths that are not routed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from vllm_lora_router.protocols.routes import ROUTES

from .conftest import CONFIG, App, body_for, post_json

CHAT = "/v1/chat/completions"
SAGEMAKER = b"x-amzn-sagemaker-adapter-identifier"
EDITED = [path for path, route in ROUTES.items() if route.protocols[0].write_system]
# These APIs have no place for a system prompt or reasoning.
MODEL_ONLY = ["/v1/completions", "/generative_scoring", "/inference/v1/generate", "/detokenize"]


class RejectingApp:
    """An application that answers with the given statuses, one after the other."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.bodies.append(json.loads(await request.body()))
        self.headers.append(dict(request.headers))
        status = self.statuses.pop(0)
        headers = {"x-try": str(len(self.bodies))}
        response: Response = JSONResponse({"try": len(self.bodies)}, status, headers=headers)
        if status == 200 and self.bodies[-1].get("stream"):
            response = StreamingResponse(iter([b"data: 1\n\n", b"data: 2\n\n"]), headers=headers)
        await response(scope, receive, send)


def rejecting(app: App, *statuses: int) -> RejectingApp:
    app.asgi.app = inner = RejectingApp(*statuses)
    return inner


@pytest.mark.parametrize("path", EDITED)
async def test_rejected_edit_is_retried_with_model_only(app: App, path: str) -> None:
    inner = rejecting(app, 400, 200)
    request = body_for(path, "blood", model="MoM", x=[0.5])
    response = await post_json(app.asgi, path, request, [(SAGEMAKER, b"MoM")] if path == "/invocations" else ())
    first, second = inner.bodies
    assert "You are a medical expert." in json.dumps(first) and "You are a medical expert." not in json.dumps(second)
    added = {"request_id": second["request_id"]} if path.startswith("/v1/responses") else {}
    assert second == {**request, "model": "medical-lora", **added}
    assert (response.status, json.loads(response.body), response.headers["x-try"]) == (200, {"try": 2}, "2")
    assert response.headers["x-vsr-injected-system-prompt"] == "false"
    assert response.headers["x-vsr-selected-reasoning"] == "off"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-vsr-selected-category"] == "medical"
    assert response.headers["x-lora-router-reason"] == "routed"


async def test_retry_has_own_content_length_and_same_id(app: App) -> None:
    inner = rejecting(app, 400, 200)
    await post_json(app.asgi, "/v1/responses", {"model": "MoM", "input": "blood"})
    first, second = inner.headers
    assert first["x-request-id"] == second["x-request-id"]
    assert inner.bodies[0]["request_id"] == inner.bodies[1]["request_id"] == "resp_" + first["x-request-id"]
    assert int(first["content-length"]) > int(second["content-length"])


async def test_retry_can_stream(app: App) -> None:
    rejecting(app, 400, 200)
    response = await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model="MoM", stream=True))
    assert response.body == b"data: 1\n\ndata: 2\n\n" and response.headers["x-vsr-injected-system-prompt"] == "false"


async def test_invalid_request_is_retried_only_once(app: App) -> None:
    inner = rejecting(app, 400, 400, 200)
    response = await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model="MoM"))
    assert (response.status, json.loads(response.body), len(inner.bodies)) == (400, {"try": 2}, 2)
    assert app.serving.recorder.counts.by_reason == {"routed": 1} and app.serving.recorder.counts.aborted == 0


@pytest.mark.parametrize("status", [200, 401, 404, 422, 500, 503])
async def test_other_statuses_are_not_retried(app: App, status: int) -> None:
    inner = rejecting(app, status)
    response = await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model="MoM"))
    assert (response.status, len(inner.bodies)) == (status, 1)
    assert response.headers["x-vsr-injected-system-prompt"] == "true"


@pytest.mark.parametrize(
    ("path", "text", "body"),
    [
        *((path, "blood", {}) for path in MODEL_ONLY),
        ("/tokenize", "", {"prompt": "blood"}),
        # The category of the first text has only an adapter; the second text has no category.
        (CHAT, "lawsuit", {}),
        (CHAT, "hello", {}),
        ("/v1/responses", "lawsuit", {}),
    ],
)
async def test_400_is_returned_if_only_the_model_was_written(
    app: App, path: str, text: str, body: dict[str, Any]
) -> None:
    inner = rejecting(app, 400)
    request = body or body_for(path, text)
    response = await post_json(app.asgi, path, {**request, "model": "MoM"})
    assert (response.status, json.loads(response.body), len(inner.bodies)) == (400, {"try": 1}, 1)


async def test_retry_omits_reasoning_without_system_prompt(app: App, tmp_path: Path) -> None:
    app.configure(CONFIG.replace("    system_prompt: You are a medical expert.\n", ""), tmp_path)
    inner = rejecting(app, 400, 200)
    response = await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model="MoM"))
    assert [body.get("chat_template_kwargs") for body in inner.bodies] == [{"enable_thinking": True}, None]
    assert (response.status, response.headers["x-vsr-selected-reasoning"]) == (200, "off")


async def test_requests_that_are_not_routed_are_not_retried(app: App) -> None:
    for model in ("medical-lora", "served-base", "unknown"):
        inner = rejecting(app, 400)
        response = await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model=model))
        assert (response.status, len(inner.bodies)) == (400, 1)


async def test_retry_is_logged(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    rejecting(app, 400, 200)
    await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model="MoM"), [(b"x-request-id", b"mine")])
    app.serving.recorder.flush()
    first, second = caplog.messages
    assert first.startswith("medical -> medical-lora keyword 1.00") and first.endswith("chatcmpl-mine")
    assert second.startswith("chatcmpl-mine: vLLM answered 400") and "medical" in second


async def test_lease_is_held_during_retry(app: App) -> None:
    leased: list[list[str]] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        leased.append(app.adapters.leased.copy())
        await Response(status_code=400)(scope, receive, send)

    app.asgi.app = inner
    await post_json(app.asgi, CHAT, body_for(CHAT, "blood", model="MoM"))
    assert leased == [["medical-lora"], ["medical-lora"]] and app.adapters.leased == []


class Connection:
    """A client of the raw ASGI application that can disconnect."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": json.dumps(request).encode(), "more_body": False})
        self.sent: list[Message] = []

    async def run(self, app: App, path: str) -> None:
        async def send(message: Message) -> None:
            self.sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": headers}
        await app.asgi(scope, self.inbox.get, send)


async def test_disconnect_during_retry_reaches_application(app: App) -> None:
    messages: list[str] = []
    retried = asyncio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        messages.append((await receive())["type"])
        # vLLM calls receive while it works, and cancels it when it answers.
        listening = asyncio.ensure_future(receive())
        if not retried.is_set():
            await asyncio.sleep(0.01)
            retried.set()
            listening.cancel()
            await Response(status_code=400)(scope, receive, send)
        else:
            messages.append((await listening)["type"])

    app.asgi.app = inner
    connection = Connection(body_for(CHAT, "blood", model="MoM"))
    running = asyncio.ensure_future(connection.run(app, CHAT))
    await asyncio.wait_for(retried.wait(), 60)
    await asyncio.sleep(0.02)
    assert messages == ["http.request", "http.request"] and not running.done()
    connection.inbox.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(running, 60)
    assert messages[2:] == ["http.disconnect"] and connection.sent == []
    assert app.serving.recorder.counts.aborted == 1 and app.adapters.leased == []


async def test_auto_name_on_unrouted_path_returns_400_with_routed_paths(app: App, client: httpx.AsyncClient) -> None:
    for path in ("/v1/score", "/classify", "/v1/nowhere"):
        for model in ("MoM", "auto"):
            response = await client.post(path, json={"model": model, "input": "blood"})
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (400, 400, "model")
            assert error["type"] == "BadRequestError"
            assert model in error["message"] and path in error["message"]
            assert all(routed in error["message"] for routed in ROUTES if routed != "/invocations")
            assert response.headers["content-length"] == str(len(response.content))


async def test_404_for_other_names_is_returned_unchanged(client: httpx.AsyncClient) -> None:
    for model in ("medical-lora", "served-base", "unknown", None):
        response = await client.post("/v1/nowhere", json={"model": model})
        assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_unknown_route_can_accept_auto_name(app: App, status: int) -> None:
    inner = rejecting(app, status)
    response = await post_json(app.asgi, "/v1/somebody/elses", {"model": "MoM", "x": 0.5})
    assert (response.status, json.loads(response.body), response.headers["x-try"]) == (status, {"try": 1}, "1")
    assert inner.bodies == [{"model": "MoM", "x": 0.5}]
    assert not [name for name in response.headers if name.startswith(("x-vsr", "x-lora-router"))]
