"""`deferred_start`: when the start of a stream is sent, and that the order of messages stays the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_lora_router.server.asgi import deferred_start

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Client:
    """A client that records the messages that it receives, and that can block or disconnect."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.disconnected = asyncio.Event()
        self.reading = asyncio.Event()  # not set: the client reads nothing
        self.reading.set()

    async def receive(self) -> Message:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reading.wait()
        body = message.get("body", b"").decode()
        self.events.append(body or message["type"].removeprefix("http.response."))

    async def call(self, app: ASGIApp) -> list[str]:
        async with asyncio.timeout(60):
            await deferred_start(app, SCOPE, self.receive, self.send)
        return self.events


@pytest.fixture
def client() -> Client:
    return Client()


async def generation(client: Client) -> AsyncIterator[str]:
    """Generate like vLLM: the engine gets the request when the first chunk is requested."""
    client.events.append("engine has request")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    client.events.append("first token")
    yield "one"
    yield "two"


async def test_engine_has_request_before_client_has_response_start(client: Client) -> None:
    response = StreamingResponse(generation(client))
    assert await client.call(response) == ["engine has request", "start", "first token", "one", "two", "body"]


async def test_without_deferred_start_engine_waits(client: Client) -> None:
    await StreamingResponse(generation(client))(SCOPE, client.receive, client.send)
    assert client.events[:2] == ["start", "engine has request"]


async def test_chunks_are_sent_after_response_start(client: Client) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": False})

    assert await client.call(app) == ["start", "one", "two"]


async def test_response_with_content_length_is_sent_immediately(client: Client) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = asyncio.all_tasks()
        await JSONResponse("all")(scope, receive, send)
        assert asyncio.all_tasks() == tasks

    assert await client.call(app) == ["start", '"all"']


async def test_response_start_is_sent_if_stream_fails_immediately(client: Client) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("no engine")

    with pytest.raises(RuntimeError, match="no engine"):
        await client.call(app)
    assert client.events == ["start"]


async def test_error_of_response_start_reaches_application(client: Client) -> None:
    async def send(message: Message) -> None:
        raise OSError("the connection is gone")

    errors: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
        except OSError as error:
            errors.append(str(error))
            raise

    with pytest.raises(OSError, match="the connection is gone"):
        await deferred_start(app, SCOPE, client.receive, send)
    assert errors == ["the connection is gone"]


async def test_disconnect_before_response_start_ends_stream_without_error(client: Client) -> None:
    client.reading.clear()
    responding = asyncio.create_task(client.call(StreamingResponse(generation(client))))
    async with asyncio.timeout(60):
        while "first token" not in client.events:
            await asyncio.sleep(0)
    client.disconnected.set()
    assert await responding == ["engine has request", "first token"]
