"""Drain: refuse new requests while the server shuts down, and end the requests that do not finish in time."""

import asyncio
import json
import re
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_lora_router.server import asgi
from vllm_lora_router.server.errors import error_body

# Load balancers read these. They are answered by the application until the server shuts down.
PROBES = frozenset({"/health", "/ping"})
# These are answered until the server stops.
ALWAYS_ANSWERED = frozenset({"/metrics", "/v1/router/health"})

RETRY_AFTER_S = 1  # the next connection usually reaches another replica
CANCEL_AFTER_S = 1.0  # an application that does not notice that its request has ended is cancelled after this time

_MESSAGE = "the server is shutting down; send the request again"
_SEQUENCE_NUMBER = re.compile(rb'"sequence_number": ?(\d+)')


class Drain:
    """The requests in flight of one API-server process, and whether it accepts more of them."""

    def __init__(self) -> None:
        self.is_draining = False
        self._in_flight: set[_Request] = set()
        self._may_end = asyncio.Event()  # all requests have finished, or the drain is cut short

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return len(self._in_flight)

    async def run(self, seconds: float) -> int:
        """Refuse new requests, and return when no request is in flight.

        Args:
            seconds: the time that requests in flight have to finish. Those that do not finish are ended with an error
                in the form of their API.

        Returns:
            The number of requests that were ended.
        """
        self.is_draining = True
        if self._in_flight:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._may_end.wait()
        if not (unfinished := list(self._in_flight)):
            return 0
        # A client that does not read its response must not delay the others, nor the end of the server.
        await asyncio.wait([asyncio.ensure_future(request.end()) for request in unfinished], timeout=CANCEL_AFTER_S)
        await asyncio.wait([request.task for request in unfinished], timeout=CANCEL_AFTER_S)
        for request in unfinished:
            request.task.cancel()
        return len(unfinished)

    def cut_short(self) -> None:
        """End the requests in flight now."""
        self._may_end.set()

    def add(self, request: "_Request") -> None:
        """Add a request in flight."""
        self._in_flight.add(request)

    def remove(self, request: "_Request") -> None:
        """Remove a request when the application has returned."""
        self._in_flight.discard(request)
        if self.is_draining and not self._in_flight:
            self._may_end.set()


class DrainMiddleware:
    """Counts requests in flight, and refuses new ones with 503 while the server drains."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = asgi.path_of(scope)
        if path in ALWAYS_ANSWERED or (path in PROBES and not self.drain.is_draining):
            await self.app(scope, receive, send)
        elif self.drain.is_draining:
            await _refuse(scope, path, receive, send)
        else:
            request = _Request(scope, path, receive, send)
            self.drain.add(request)
            try:
                await self.app(scope, request.receive, request.send)
            finally:
                self.drain.remove(request)


class _Request:
    """A request in flight, which can be ended before the application has answered it."""

    def __init__(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self._scope, self._path = scope, path
        self._receive, self._send = receive, send
        self._receiver: asyncio.Task[Any] | None = None  # the task that waits for a message of the client
        self._start: Message | None = None
        self._last_chunk = b""
        self._is_complete = False
        self._is_ended = False

    async def receive(self) -> Message:
        """Receive the client's next message; after `end`, that the client has disconnected."""
        if self._is_ended:
            return self._disconnected
        self._receiver = asyncio.current_task()
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not self._is_ended or self._receiver is None or self._receiver.uncancel():
                raise
            return self._disconnected
        finally:
            self._receiver = None

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message; after `end`, nothing. This is a plain function, because a long answer has many chunks."""
        if self._is_ended:
            return asgi.no_op()
        if message["type"] == "http.response.body":
            if message.get("more_body", False):
                self._last_chunk = message.get("body", b"")
            else:
                self._is_complete = True
        elif message["type"] == "http.response.start":
            self._start = message
        return self._send(message)

    async def end(self) -> None:
        """Send an error in the form of the API, and tell the application that the client has disconnected.

        vLLM then aborts the generation, and releases whatever the request holds, as for a client that has left.
        """
        if self._is_complete:
            return  # the application is doing something after its response
        self._is_ended = True
        try:
            if self._scope["type"] == "websocket":
                await self._send({"type": "websocket.close", "code": 1012, "reason": _MESSAGE})
            elif self._start is None:
                await _refuse(self._scope, self._path, self._receive, self._send)
            elif _is_event_stream(self._start):
                event = _error_event(self._path, self._last_chunk)
                await self._send({"type": "http.response.body", "body": event, "more_body": False})
            # Otherwise the response stays incomplete, and the server closes the connection.
        finally:
            if self._receiver is not None:
                self._receiver.cancel()

    @property
    def _disconnected(self) -> Message:
        if self._scope["type"] == "websocket":
            return {"type": "websocket.disconnect", "code": 1012}
        return {"type": "http.disconnect"}


async def _refuse(scope: Scope, path: str, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1012, "reason": _MESSAGE})
        return
    headers = {"retry-after": str(RETRY_AFTER_S), "connection": "close"}
    await JSONResponse(_error_body(path), 503, headers)(scope, receive, send)


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"]
    )


def _error_body(path: str) -> dict[str, Any]:
    return error_body(path, 503, _MESSAGE, anthropic_type="overloaded_error")


def _error_event(path: str, last_chunk: bytes) -> bytes:
    """Return the last event of a stream. It is no `[DONE]`, which clients read as a complete answer."""
    if path == "/v1/responses":
        numbers = _SEQUENCE_NUMBER.findall(last_chunk)
        number = int(numbers[-1]) + 1 if numbers else 0
        data = {"type": "error", "code": "server_error", "message": _MESSAGE, "param": None, "sequence_number": number}
    else:
        data = _error_body(path)
    name = "event: error\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()
