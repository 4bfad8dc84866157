"""ASGI helpers: read and edit a request, notice a disconnect, and schedule when requests and responses continue."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")


def path_of(scope: Scope) -> str:
    """Return the path as the application's routes name it, without the prefix of a proxy (`root_path`)."""
    path, root = scope["path"], scope.get("root_path") or ""
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of the first header with this lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None


def text_header(scope: Scope, name: bytes | None) -> str | None:
    """Return the value of the first header with this lower-case name as text; see `as_text`."""
    return as_text(header(scope, name)) if name else None


def as_text(value: bytes | None) -> str | None:
    """Decode a header value; return None if it is absent, empty or not UTF-8."""
    try:
        return value.decode().strip() or None if value else None
    except UnicodeDecodeError:
        return None


def bearer_token(scope: Scope) -> bytes | None:
    """Return the API key in the header Authorization, as vLLM reads it; None if there is none."""
    scheme, _, key = (header(scope, b"authorization") or b"").partition(b" ")
    return key if scheme.lower() == b"bearer" else None


def is_json(scope: Scope) -> bool:
    """Return whether vLLM reads the body as JSON. It answers any other body with an error."""
    media_type = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    encoding = (header(scope, b"content-encoding") or b"identity").strip().lower()
    return media_type == b"application/json" and encoding == b"identity"


async def read_body(receive: Receive) -> bytes | None:
    """Read the complete body; return None if the client disconnects first."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def call_after_body(receive: Receive, callback: Callable[[], object]) -> Receive:
    """Return a `receive` that calls `callback` when the body is complete, before the application gets its end."""
    is_complete = False

    async def receive_and_call() -> Message:
        nonlocal is_complete
        message = await receive()
        if not is_complete and message["type"] == "http.request" and not message.get("more_body", False):
            is_complete = True
            callback()
        return message

    return receive_and_call


class DisconnectListener:
    """Listens to the server's `receive` before the application does, so that an early disconnect is noticed.

    The application receives the message that was read ahead. This must be the server's own message: a made-up
    `http.disconnect` would end the response, would not cancel the generation, or would spin the event loop.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._next: asyncio.Future[Message] | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`; cancel it and return None if the client disconnects first.

        The work runs in the current task, and listening starts when the work first suspends. Most work never suspends,
        and two tasks per request would cost more than the rest of it.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelled_before, is_disconnected, is_working = task.cancelling(), False, True

        def on_message(message: "asyncio.Future[Message]") -> None:
            nonlocal is_disconnected
            if not is_working or message.cancelled() or message.exception():
                return
            if message.result()["type"] == "http.disconnect":
                is_disconnected = True
                task.cancel()

        def listen() -> None:
            self._next = asyncio.ensure_future(self._receive())
            self._next.add_done_callback(on_message)

        scheduled = asyncio.get_running_loop().call_soon(listen)
        try:
            result = await work
        except asyncio.CancelledError:
            # The task may also have been cancelled from elsewhere.
            if not is_disconnected or task.uncancel() > cancelled_before:
                raise
            return None
        else:
            if is_disconnected:
                task.uncancel()  # the work has finished already: the application receives the disconnect
            return result
        finally:
            # Removing the callback is not enough: a message that came in this iteration of the event loop has scheduled
            # it already, and it would cancel the application.
            is_working = False
            scheduled.cancel()
            if self._next is not None:
                self._next.remove_done_callback(on_message)

    @property
    def has_waited(self) -> bool:
        """Whether the work has suspended."""
        return self._next is not None

    async def receive(self) -> Message:
        """Receive the message that was read ahead, then the server's next ones."""
        if self._next is None:
            return await self._receive()
        # vLLM cancels its receive when it starts to stream, and calls it again: the message must survive that.
        message = await asyncio.shield(self._next)
        self._next = None
        return message

    def close(self) -> None:
        """Stop listening."""
        if self._next is not None:
            self._next.cancel()


class FairResume:
    """Resumes at most one waiting request per iteration of the event loop, so that streams are not delayed.

    A batch that was classified, a deadline that several requests share, or an adapter that was loaded makes many
    requests ready at the same moment. vLLM's work for a request until the engine has it takes milliseconds: thirty
    requests in one iteration would delay every stream by the sum.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_used = False  # a request has resumed in this iteration

    async def wait(self) -> None:
        """Return when no other request has resumed in this iteration; immediately if none has."""
        loop = asyncio.get_running_loop()
        if not self._is_used:
            self._is_used = True
            loop.call_soon(self._resume_next, loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _resume_next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            if not (turn := self._waiting.popleft()).done():  # a cancelled request no longer waits
                turn.set_result(None)
                loop.call_soon(self._resume_next, loop)
                return
        self._is_used = False


async def deferred_start(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application, and send the start of a stream only when the application itself suspends.

    Starlette sends the start of a stream before it requests the first chunk, and vLLM passes the request to the engine
    only when the first chunk is requested. Without the deferral the engine would wait until the response headers are
    built and written, which the client does not need yet. The client receives the same messages in the same order.
    """
    response = _DeferredStart(send)
    try:
        await app(scope, receive, response.send)
    finally:
        await response.flush()


class _DeferredStart:
    """A `send` that does not wait for the start of a stream; later messages wait for it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: asyncio.Task[None] | None = None

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and not _has_length(message):
            self._start = asyncio.create_task(self._send_start(message))
            return no_op()
        return self._send(message) if self._start is None else self._send_after_start(message)

    async def flush(self) -> None:
        """Wait until a deferred start is sent or cancelled."""
        if self._start is not None and not self._start.cancelled():
            await self._start
            self._start = None

    async def _send_start(self, message: Message) -> None:
        await self._send(message)  # called only in this task: it builds our response headers

    async def _send_after_start(self, message: Message) -> None:
        await self.flush()
        await self._send(message)


def _has_length(message: Message) -> bool:
    """Return whether the response is complete already (it has a content-length): deferring its start gains nothing."""
    for name, _ in message.get("headers", ()):  # noqa: SIM110 - a generator costs twice as much
        if name == b"content-length":
            return True
    return False


def replay_body(content: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body once, and then the messages of `receive`."""
    pending: bytes | None = content

    async def receive_body_first() -> Message:
        nonlocal pending
        if pending is None:
            return await receive()
        body, pending = pending, None  # from now on only the application references the body
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body_first


def with_headers(scope: Scope, changed: dict[bytes, bytes]) -> Scope:
    """Return a scope with these request headers added or replaced.

    A new content-length removes transfer-encoding, because the body is no longer chunked.
    """
    replaced = {*changed, *({b"transfer-encoding"} if b"content-length" in changed else ())}
    unchanged = [(name, value) for name, value in scope["headers"] if name not in replaced]
    return {**scope, "headers": [*unchanged, *changed.items()]}


def without_header(scope: Scope, name: bytes) -> Scope:
    """Return a scope without the request headers of this lower-case name."""
    return {**scope, "headers": [(key, value) for key, value in scope["headers"] if key != name]}


def on_success(send: Send, call: Callable[[], None]) -> Send:
    """Return a `send` that calls `call` when a response with a status below 400 starts."""

    def send_and_notice(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and message["status"] < 400:
            call()
        return send(message)

    return send_and_notice


def add_headers(message: Message, added: Iterable[tuple[bytes, bytes]]) -> Message:
    """Return an `http.response.start` message with additional headers."""
    return {**message, "headers": [*message.get("headers", ()), *added]}


async def no_op() -> None:
    """Return an awaitable that does nothing: the result of a `send` that sends nothing."""
