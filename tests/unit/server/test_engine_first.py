"""The engine before the client: when the start of a stream is sent, and that nothing else comes otherwise."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_lora_router.server.engine_first import engine_first

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Wire:
    """A client: what it got, among what else happened, and when it leaves."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.left = asyncio.Event()
        self.reads = asyncio.Event()  # not set: it takes nothing
        self.reads.set()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        body = message.get("body", b"").decode()
        self.happened.append(body or message["type"].removeprefix("http.response."))

    async def calls(self, app: ASGIApp) -> list[str]:
        async with asyncio.timeout(5):
            await engine_first(app, SCOPE, self.receive, self.send)
        return self.happened


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def generation(wire: Wire) -> AsyncIterator[str]:
    """As vLLM does it: the engine has the request when the first piece is asked for."""
    wire.happened.append("the engine has it")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    wire.happened.append("it has a token")
    yield "one"
    yield "two"


async def test_the_engine_has_a_request_before_its_client_has_the_start(wire: Wire) -> None:
    answer = StreamingResponse(generation(wire))
    assert await wire.calls(answer) == ["the engine has it", "start", "it has a token", "one", "two", "body"]


async def test_without_it_the_engine_waits(wire: Wire) -> None:
    await StreamingResponse(generation(wire))(SCOPE, wire.receive, wire.send)
    assert wire.happened[:2] == ["start", "the engine has it"]


async def test_a_piece_that_is_there_at_once_still_comes_after_the_start(wire: Wire) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": False})

    assert await wire.calls(app) == ["start", "one", "two"]


async def test_a_response_that_is_whole_is_sent_at_once(wire: Wire) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = asyncio.all_tasks()
        await JSONResponse("all")(scope, receive, send)
        assert asyncio.all_tasks() == tasks

    assert await wire.calls(app) == ["start", '"all"']


async def test_a_stream_that_fails_at_once_has_begun(wire: Wire) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("no engine")

    with pytest.raises(RuntimeError, match="no engine"):
        await wire.calls(app)
    assert wire.happened == ["start"]


async def test_what_goes_wrong_with_the_start_is_the_applications_to_hear(wire: Wire) -> None:
    async def send(message: Message) -> None:
        raise OSError("the connection is gone")

    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
        except OSError as error:
            heard.append(str(error))
            raise

    with pytest.raises(OSError, match="the connection is gone"):
        await engine_first(app, SCOPE, wire.receive, send)
    assert heard == ["the connection is gone"]


async def test_a_client_that_leaves_before_it_took_the_start_ends_the_stream_and_nothing_fails(wire: Wire) -> None:
    wire.reads.clear()
    answering = asyncio.create_task(wire.calls(StreamingResponse(generation(wire))))
    async with asyncio.timeout(5):
        while "it has a token" not in wire.happened:
            await asyncio.sleep(0)
    wire.left.set()
    assert await answering == ["the engine has it", "it has a token"]
