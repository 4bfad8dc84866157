"""The engine has a request before the start of its response is written to the client."""

import asyncio
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_lora_router.server import asgi


async def engine_first(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Calls the application; the start of a stream waits until the application waits for something itself.

    Starlette sends the start of a stream before it asks for the first piece, and vLLM gives the engine the request only
    when it is asked for that: the engine would wait until headers are made and written that nobody misses yet. What
    the client gets is the same, in the same order.
    """
    starts = _Starts(send)
    try:
        await app(scope, receive, starts.send)
    finally:
        await starts.sent()


class _Starts:
    """A `send` that does not wait for the start of a stream; whatever comes after that does."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: asyncio.Task[None] | None = None

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and not _is_whole(message):
            self._start = asyncio.create_task(self._begin(message))
            return asgi.nothing()
        return self._send(message) if self._start is None else self._after_start(message)

    async def sent(self) -> None:
        """Returns when the start was sent, if there was one to send and nobody gave it up."""
        if self._start is not None and not self._start.cancelled():
            await self._start
            self._start = None

    async def _begin(self, message: Message) -> None:
        await self._send(message)  # called only now: it is here that our headers are made

    async def _after_start(self, message: Message) -> None:
        await self.sent()
        await self._send(message)


def _is_whole(message: Message) -> bool:
    """Whether all of the response is there: then nothing is won by waiting."""
    return any(name == b"content-length" for name, _ in message.get("headers", ()))
