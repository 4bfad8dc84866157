"""Drain: requests in flight finish or end with an error, and new ones are refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from vllm_lora_router.server.drain import Drain, DrainMiddleware

from .conftest import App, body_for

HANG_GUARD_S = 30


class Client:
    """One request to an ASGI application, whose client never disconnects."""

    def __init__(self, app: DrainMiddleware, path: str, *, method: str = "POST", body: bytes = b"{}") -> None:
        self.sent: list[Message] = []
        self.changed = asyncio.Event()
        self._body: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": method,
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await asyncio.Event().wait()
        raise AssertionError("the client does not disconnect")

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.changed.set()

    async def started(self, messages: int = 1) -> None:
        """Wait until this number of messages has been sent."""
        async with asyncio.timeout(HANG_GUARD_S):
            while len(self.sent) < messages:
                self.changed.clear()
                await self.changed.wait()

    async def finished(self) -> None:
        async with asyncio.timeout(HANG_GUARD_S):
            await self.task

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


class Model:
    """An application that generates until it may finish or until the client disconnects."""

    def __init__(self) -> None:
        self.drain = Drain()
        self.may_finish = asyncio.Event()
        self.is_running = asyncio.Event()
        self.aborted = 0
        routes = [
            *(
                Route(path, self.stream, methods=["POST"])
                for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages")
            ),
            Route("/v1/embeddings", self.answer, methods=["POST"]),
            Route("/deaf", self.deaf, methods=["POST"]),
            Route("/file", self.file, methods=["POST"]),
            *(Route(path, self.ok) for path in ("/health", "/ping", "/metrics", "/v1/router/health")),
            WebSocketRoute("/v1/realtime", self.converse),
        ]
        self.app = DrainMiddleware(Starlette(routes=routes), self.drain)

    async def stream(self, request: Request) -> Response:
        await request.body()
        return StreamingResponse(self._chunks(), media_type="text/event-stream")

    async def _chunks(self) -> AsyncIterator[str]:
        try:
            yield 'event: response.created\ndata: {"type": "response.created", "sequence_number": 6}\n\n'
            await self.may_finish.wait()
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    async def answer(self, request: Request) -> Response:
        """Answer like vLLM's routes: work until the client disconnects."""
        await request.body()
        self.is_running.set()
        work = asyncio.ensure_future(self.may_finish.wait())
        left = asyncio.ensure_future(request.receive())
        await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
        self.aborted += left.done()
        left.cancel()
        work.cancel()
        return JSONResponse(None)

    async def deaf(self, request: Request) -> Response:
        self.is_running.set()
        await self.may_finish.wait()
        return JSONResponse(None)

    async def file(self, request: Request) -> Response:
        return StreamingResponse(self._chunks(), media_type="audio/mpeg")

    async def ok(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def converse(self, socket: WebSocket) -> None:
        await socket.accept()
        self.is_running.set()
        with suppress(WebSocketDisconnect):
            await socket.receive_text()


@pytest.fixture
async def model() -> Model:
    return Model()


async def begin(drain: Drain, seconds: float) -> "asyncio.Task[int]":
    """Begin to drain."""
    task = asyncio.create_task(drain.run(seconds))
    await asyncio.sleep(0)
    return task


async def test_drain_without_requests_ends_at_once(model: Model) -> None:
    assert await model.drain.run(HANG_GUARD_S * 10) == 0


async def test_requests_in_flight_finish_while_the_server_drains(model: Model) -> None:
    clients = [Client(model.app, "/v1/chat/completions") for _ in range(3)]
    for client in clients:
        await client.started(2)
    draining = await begin(model.drain, HANG_GUARD_S)
    assert model.drain.in_flight == 3 and not draining.done()
    model.may_finish.set()
    assert await draining == 0
    for client in clients:
        await client.finished()
        assert client.body.endswith(b"data: [DONE]\n\n") and b"error" not in client.body


async def test_new_requests_are_refused_while_the_server_drains(model: Model) -> None:
    running = Client(model.app, "/v1/embeddings")
    await model.is_running.wait()
    draining = await begin(model.drain, HANG_GUARD_S)
    refused = Client(model.app, "/v1/chat/completions")
    await refused.finished()
    assert refused.status == 503
    assert refused.headers[b"retry-after"] == b"1" and refused.headers[b"connection"] == b"close"
    error = json.loads(refused.body)["error"]
    assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)
    model.may_finish.set()
    assert await draining == 0
    await running.finished()
    assert running.status == 200


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 503), ("/ping", 503), ("/metrics", 200), ("/v1/router/health", 200)]
)
async def test_probes_fail_while_the_server_drains_and_metrics_are_answered(
    model: Model, path: str, status: int
) -> None:
    before = Client(model.app, path, method="GET")
    await before.finished()
    assert before.status == 200
    Client(model.app, "/v1/embeddings")
    await model.is_running.wait()
    draining = await begin(model.drain, HANG_GUARD_S)
    during = Client(model.app, path, method="GET")
    await during.finished()
    assert during.status == status
    model.drain.cut_short()
    await draining


ERRORS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"error": {"type": "ServiceUnavailableError", "param": None, "code": 503}},
    "/v1/responses": {"type": "error", "code": "server_error", "param": None, "sequence_number": 7},
    "/v1/messages": {"type": "error", "error": {"type": "overloaded_error"}},
}


@pytest.mark.parametrize("path", ERRORS)
async def test_stream_that_does_not_finish_in_time_ends_with_an_error_event(model: Model, path: str) -> None:
    client = Client(model.app, path)
    await client.started(2)
    assert await model.drain.run(0) == 1
    await client.finished()
    *_, event, rest = client.body.decode().split("\n\n")
    name, _, data = event.rpartition("data: ")
    assert not rest and client.status == 200
    assert name == ("" if path == "/v1/chat/completions" else "event: error\n")
    error = json.loads(data)
    message = error.pop("message", None) or error["error"].pop("message")
    assert error == ERRORS[path] and "shutting down" in message
    assert client.sent[-1]["more_body"] is False
    assert model.aborted == 1


async def test_request_without_a_response_gets_503_when_the_time_is_up(model: Model) -> None:
    client = Client(model.app, "/v1/embeddings")
    await model.is_running.wait()
    assert await model.drain.run(0) == 1
    await client.finished()
    assert client.status == 503 and model.aborted == 1
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]


async def test_response_that_cannot_carry_an_error_stays_incomplete(model: Model) -> None:
    client = Client(model.app, "/file")
    await client.started(2)
    assert await model.drain.run(0) == 1
    await client.finished()
    assert client.sent[-1]["more_body"] is True and model.aborted == 1


async def test_application_that_ignores_the_disconnect_is_cancelled(model: Model, monkeypatch: Any) -> None:
    monkeypatch.setattr("vllm_lora_router.server.drain.CANCEL_AFTER_S", 0.01)
    client = Client(model.app, "/deaf")
    await model.is_running.wait()
    assert await model.drain.run(0) == 1
    with pytest.raises(asyncio.CancelledError):
        await client.finished()
    assert client.status == 503 and model.drain.in_flight == 0


async def test_client_that_does_not_read_does_not_delay_the_end(model: Model, monkeypatch: Any) -> None:
    monkeypatch.setattr("vllm_lora_router.server.drain.CANCEL_AFTER_S", 0.01)
    slow, other = Client(model.app, "/v1/chat/completions"), Client(model.app, "/v1/chat/completions")
    await slow.started(2)
    await other.started(2)

    async def never(message: Message) -> None:
        await asyncio.Event().wait()

    for request in model.drain._in_flight:
        if request.task is slow.task:
            request._send = never
    assert await model.drain.run(0) == 2
    await other.finished()
    assert b"shutting down" in other.body
    await asyncio.wait([slow.task], timeout=HANG_GUARD_S)
    assert slow.task.done()


async def test_drain_can_be_cut_short(model: Model) -> None:
    client = Client(model.app, "/v1/chat/completions")
    await client.started(2)
    draining = await begin(model.drain, HANG_GUARD_S * 10)
    assert not draining.done()
    model.drain.cut_short()
    async with asyncio.timeout(HANG_GUARD_S):
        assert await draining == 1
    assert b"shutting down" in client.body


async def test_request_that_waits_for_its_body_is_ended(app: App) -> None:
    drain = app.serving.drain
    client = Client(DrainMiddleware(app.asgi, drain), "/v1/chat/completions")
    client._body.clear()
    await asyncio.sleep(0)
    assert await drain.run(0) == 1
    await client.finished()
    assert client.status == 503


async def test_websocket_is_closed_as_restarting(model: Model) -> None:
    sent: list[Message] = []
    messages: list[Message] = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "root_path": "", "headers": [], "query_string": b""}
    task = asyncio.ensure_future(model.app(scope, receive, send))
    await model.is_running.wait()
    assert await model.drain.run(0) == 1
    async with asyncio.timeout(HANG_GUARD_S):
        await task
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[-1]["code"] == 1012
    sent.clear()
    await model.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_cancellation_from_elsewhere_is_not_taken_for_the_end(model: Model) -> None:
    client = Client(model.app, "/v1/embeddings")
    await model.is_running.wait()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert model.drain.in_flight == 0 and client.sent == []


async def test_routed_request_that_is_ended_releases_its_adapter_and_is_recorded(app: App) -> None:
    """The request waits for its adapter when the time is up."""
    drain, recorder = app.serving.drain, app.serving.recorder
    middleware = DrainMiddleware(app.asgi, drain)
    app.adapters.slot.clear()
    body = json.dumps(body_for("/v1/chat/completions", "blood", model="auto")).encode()
    client = Client(middleware, "/v1/chat/completions", body=body)
    for _ in range(10):
        await asyncio.sleep(0)
    assert app.adapters.leased == ["medical-lora"]
    assert await drain.run(0) == 1
    await client.finished()
    assert client.status == 503 and app.adapters.leased == [] and recorder.counts.in_progress == 0
