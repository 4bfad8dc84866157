"""Track the outcome of responses, add the decision's headers, and prepare the retry after vLLM rejects our edit."""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import JSONResponse
from starlette.types import Message, Send

from vllm_lora_router.observability import response_headers
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.server import asgi
from vllm_lora_router.server.errors import error_body
from vllm_lora_router.types import Decision, Outcome

# vLLM's CORS middleware exposes no headers. Without this header a web page could not read ours.
_EXPOSED = (b"access-control-expose-headers", ", ".join(response_headers.HEADER_NAMES).encode())

# For each API: the JSON before the reason why a response ended.
_FINISH_MEMBER = {"chat": b'"finish_reason":"', "messages": b'"stop_reason":"', "responses": b'"status":"'}
_FINISH_REASON = re.compile(rb'([a-z_]{1,32})"')

# Returns the decision without our edit, and the body in which only the model is changed.
Retry = Callable[[], tuple[Decision, bytes]]


class Response:
    """Tracks the outcome of a response, and sends it unchanged."""

    def __init__(self, decision: Decision, send: Send) -> None:
        self.decision = decision
        self._send = send
        self._finish_member = _FINISH_MEMBER.get(decision.request.api, _FINISH_MEMBER["chat"])
        self._started_s = time.perf_counter()
        self._status: int | None = None
        self._first_byte_ms: float | None = None
        self._finish_reason: str | None = None
        self._is_complete = False

    def send(self, message: Message) -> Awaitable[None]:
        """Track a message and send it. This is a plain function, because a long answer has thousands of chunks."""
        if message["type"] == "http.response.body":
            if content := message.get("body"):
                if self._first_byte_ms is None:
                    self._first_byte_ms = self._elapsed_ms()
                # Text that the model generates cannot match: its quotes are escaped.
                member = self._finish_member
                if (at := content.rfind(member)) >= 0 and (match := _FINISH_REASON.match(content, at + len(member))):
                    self._finish_reason = match[1].decode()
            self._is_complete = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._status = message["status"]
        return self._send(message)

    def outcome(self) -> Outcome:
        """Return the outcome so far."""
        aborted = not self._is_complete
        return Outcome(
            self.decision, self._status, self._first_byte_ms, self._elapsed_ms(), aborted, self._finish_reason
        )

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started_s) * 1000


class RoutedResponse:
    """Adds the decision's headers to a response, and withholds a 400 that our edit may have caused."""

    def __init__(self, decision: Decision, send: Send, retry: Retry | None, *, is_browser: bool) -> None:
        """
        Args:
            retry: builds the second attempt if vLLM answers 400; the client then never sees that answer. It references
                the client's body and is dropped as soon as it is no longer needed.
            is_browser: whether a web page sent the request; a page can read only exposed headers.
        """
        self._response = Response(decision, send)
        self._retry = retry
        self._is_browser = is_browser
        self.is_rejected = False  # vLLM answered 400, which is withheld: the request must be sent again

    @property
    def decision(self) -> Decision:
        """The decision, without our edit after a rejection."""
        return self._response.decision

    def send(self, message: Message) -> Awaitable[None]:
        """Track a message and send it with the decision's headers, unless it belongs to a withheld 400."""
        if message["type"] == "http.response.start":
            if message["status"] == 400 and self._retry is not None:
                self.is_rejected = True
                return asgi.no_op()
            self._retry = None
            added = response_headers.decision_headers(self.decision)
            message = asgi.add_headers(message, [*added, *([_EXPOSED] if self._is_browser else ())])
        elif self.is_rejected:
            return asgi.no_op()
        return self._response.send(message)

    def retry_body(self) -> bytes:
        """Return the body of the second attempt after a rejection. The client receives the second answer."""
        assert self._retry is not None
        self._response.decision, content = self._retry()
        self._retry, self.is_rejected = None, False
        return content

    def outcome(self) -> Outcome:
        """Return the outcome so far."""
        return self._response.outcome()


def unavailable_response(path: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return a 503 in the form of the API that `path` belongs to."""
    return JSONResponse(error_body(path, 503, message, "model"), 503, headers)


def unrouted_error(model: str | None, path: str, send: Send) -> Send:
    """Return a `send` that replaces vLLM's 404 by our 400, for an auto name on a path that is not routed."""
    paths = ", ".join(path for path, route in ROUTES.items() if route.adapter_header is None)
    message = (
        f"model {model!r} is an auto name, and requests to {path} are not routed; set `model` to the name of a model "
        f"or adapter, or send the request to one of {paths}"
    )
    content = json.dumps(error_body(path, 400, message, "model")).encode()
    is_replaced = False

    async def send_or_replace(message: Message) -> None:
        nonlocal is_replaced
        if message["type"] == "http.response.start" and message["status"] == 404:
            is_replaced = True
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": content, "more_body": False})
        elif not is_replaced:
            await send(message)

    return send_or_replace
