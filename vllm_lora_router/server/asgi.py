"""Reading a request from ASGI and handing it on, the same or edited."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope

T = TypeVar("T")


def path_of(scope: Scope) -> str:
    """The path as the application's routes name it, without the prefix that a proxy in front was given."""
    path, root = scope["path"], scope.get("root_path") or ""
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of the first header of this (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None


def text_header(scope: Scope, name: bytes | None) -> str | None:
    """The value of the first header of this (lower-case) name, `as_text`."""
    return as_text(header(scope, name)) if name else None


def as_text(value: bytes | None) -> str | None:
    """A header's value; None when it is absent, empty or no UTF-8."""
    try:
        return value.decode().strip() or None if value else None
    except UnicodeDecodeError:
        return None


def is_json(scope: Scope) -> bool:
    """Whether vLLM would read the body as JSON: it answers anything else with an error of its own."""
    media_type = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    return media_type == b"application/json" and header(scope, b"content-encoding") is None


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the client left before it was complete."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class Ahead:
    """The server's `receive`, asked ahead of the application, so that a client that leaves early is noticed.

    What it says is handed on. It must be the server's own word: a made-up message here would end the response, never
    cancel the generation, or spin the event loop.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._next: asyncio.Future[Message] | None = None

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` gives; None when the client left before that, and then nothing of it goes on.

        It runs in the task that asks, and nobody listens before it waits for something: most work never does, and two
        tasks for each request would cost more than the rest of it.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelled_before, gone = task.cancelling(), False

        def left(message: "asyncio.Future[Message]") -> None:
            nonlocal gone
            if not message.cancelled() and not message.exception() and message.result()["type"] == "http.disconnect":
                gone = True
                task.cancel()

        def listen() -> None:
            self._next = asyncio.ensure_future(self._receive())
            self._next.add_done_callback(left)

        listening = asyncio.get_running_loop().call_soon(listen)
        try:
            found = await work
        except asyncio.CancelledError:
            # Somebody else may have cancelled the task, too.
            if not gone or task.uncancel() > cancelled_before:
                raise
            return None
        else:
            if gone:
                task.uncancel()  # it was too late for that: the application hears of it
            return found
        finally:
            listening.cancel()
            if self._next is not None:
                self._next.remove_done_callback(left)

    @property
    def has_waited(self) -> bool:
        """Whether the work has waited for something."""
        return self._next is not None

    async def receive(self) -> Message:
        if self._next is None:
            return await self._receive()
        # vLLM gives up listening when it starts to stream, and begins again: the message must survive that.
        message = await asyncio.shield(self._next)
        self._next = None
        return message

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()


def replay(content: bytes, after: Receive) -> Receive:
    """A `receive` that gives the body once and then what `after` says."""
    left: bytes | None = content

    async def receive() -> Message:
        nonlocal left
        if left is None:
            return await after()
        given, left = left, None  # from here on it is the application's alone
        return {"type": "http.request", "body": given, "more_body": False}

    return receive


def with_headers(scope: Scope, changed: dict[bytes, bytes]) -> Scope:
    """A scope whose request headers of these names have these values; a body with a length does not come in chunks."""
    dropped = {*changed, *({b"transfer-encoding"} if b"content-length" in changed else ())}
    kept = [(name, value) for name, value in scope["headers"] if name not in dropped]
    return {**scope, "headers": [*kept, *changed.items()]}


def add_headers(message: Message, added: Iterable[tuple[bytes, bytes]]) -> Message:
    """A response's start with more headers."""
    return {**message, "headers": [*message.get("headers", ()), *added]}


async def nothing() -> None:
    """What a `send` gives that sends nothing."""
