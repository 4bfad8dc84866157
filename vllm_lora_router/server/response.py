"""The way back: a routed response gets its headers, and what the engine would not take is asked for again without."""

import json
import re
import time
from collections.abc import Awaitable, Callable

from starlette.types import Message, Send

from vllm_lora_router.observability import response_headers
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.server import asgi
from vllm_lora_router.types import Decision, Outcome

# vLLM's CORS exposes no headers: without this a page in a browser could not read ours.
_EXPOSED = (b"access-control-expose-headers", ", ".join(response_headers.NAMES).encode())


# Before the word that says why a response ended.
_FINISH = {"chat": b'"finish_reason":"', "messages": b'"stop_reason":"', "responses": b'"status":"'}
_WORD = re.compile(rb'([a-z_]{1,32})"')

# The same request with the model alone written into it, and the decision that says so.
Again = Callable[[], tuple[Decision, bytes]]


class Response:
    """Notes how a response goes that passes through."""

    def __init__(self, decision: Decision, send: Send) -> None:
        self.decision = decision
        self._send = send
        self._says = _FINISH.get(decision.request.api, _FINISH["chat"])
        self._since = time.perf_counter()
        self._status: int | None = None
        self._first_byte_ms: float | None = None
        self._finish: str | None = None
        self._complete = False

    def send(self, message: Message) -> Awaitable[None]:
        """Notes a message and hands it on; no coroutine of its own, for a long answer comes in thousands of pieces."""
        if message["type"] == "http.response.body":
            if content := message.get("body"):
                if self._first_byte_ms is None:
                    self._first_byte_ms = self._ms()
                # Within a text of JSON the quotes would stand behind a backslash.
                if (at := content.rfind(self._says)) >= 0 and (found := _WORD.match(content, at + len(self._says))):
                    self._finish = found[1].decode()
            self._complete = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._status = message["status"]
        return self._send(message)

    def outcome(self) -> Outcome:
        aborted = not self._complete
        return Outcome(self.decision, self._status, self._first_byte_ms, self._ms(), aborted, self._finish)

    def _ms(self) -> float:
        return (time.perf_counter() - self._since) * 1000


class RoutedResponse:
    """Adds the decision's headers to the response's start."""

    def __init__(self, decision: Decision, send: Send, again: Again | None, *, browser: bool) -> None:
        """
        Args:
            again: how to ask again when vLLM answers 400, which the client then never sees. It is let go of, and the
                client's body with it, as soon as it is not needed any more.
            browser: a page asks, which reads only the headers that are exposed to it.
        """
        self._response = Response(decision, send)
        self._again = again
        self._refused = False
        self._browser = browser

    @property
    def decision(self) -> Decision:
        return self._response.decision

    def send(self, message: Message) -> Awaitable[None]:
        """Like `Response.send`, with headers at the start; nothing of what vLLM refused is sent."""
        if message["type"] == "http.response.start":
            if message["status"] == 400 and self._again is not None:
                self._refused = True
                return asgi.nothing()
            self._again = None
            added = response_headers.headers(self.decision)
            message = asgi.add_headers(message, [*added, *([_EXPOSED] if self._browser else ())])
        elif self._refused:
            return asgi.nothing()
        return self._response.send(message)

    def ask_again(self) -> bytes | None:
        """The body to ask with when vLLM refused the first one; what comes after that goes to the client."""
        if not self._refused or self._again is None:
            return None
        self._response.decision, content = self._again()
        self._again, self._refused = None, False
        return content

    def outcome(self) -> Outcome:
        return self._response.outcome()


def unrouted(model: str, path: str, send: Send) -> Send:
    """A `send` with our 400 in place of vLLM's 404, for an auto name on a route that is not routed."""
    said = (
        f"model {model!r} asks for an adapter to be chosen, and requests to {path} are not routed; name a model there, "
        f"or ask one of {', '.join(path for path, route in ROUTES.items() if route.header is None)}"
    )
    error = {"message": said, "type": "BadRequestError", "param": "model", "code": 400}
    content = json.dumps({"error": error}).encode()
    replaced = False

    async def sending(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] == 404:
            replaced = True
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": content, "more_body": False})
        elif not replaced:
            await send(message)

    return sending
