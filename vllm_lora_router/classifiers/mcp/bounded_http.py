"""An HTTP client that limits the size of responses, because a tool's response shares the server's memory."""

from collections.abc import AsyncIterator, Mapping
from email.message import Message

import httpx2

import vllm_lora_router
from vllm_lora_router.classifiers.mcp.answers import MAX_RESPONSE_BYTES

_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
_EVENT_STREAM = "text/event-stream"


class ResponseRefusedError(httpx2.SSEError):
    """The response to one request is not read, but the connection can still be used."""


def http_client(headers: Mapping[str, str], transport: "BoundedTransport") -> httpx2.AsyncClient:
    """Return a client that sends these headers with every request and limits the size of responses."""
    # Compression is not requested, because 400 kB can unpack to more than a gigabyte.
    own_headers = {"user-agent": f"vllm-lora-router/{vllm_lora_router.__version__}", "accept-encoding": "identity"}
    # No read timeout: every call has its own timeout, and an event stream of the server may stay open.
    timeout = httpx2.Timeout(10, read=None)
    return httpx2.AsyncClient(headers={**own_headers, **headers}, timeout=timeout, transport=transport)


class BoundedTransport(httpx2.AsyncHTTPTransport):
    """Raises `ResponseRefusedError` for a response that is encoded or exceeds the limit.

    The limit does not apply to the stream of server messages (GET), whose events the SDK limits one by one.
    """

    def __init__(self) -> None:
        super().__init__(limits=httpx2.Limits())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        response = await super().handle_async_request(request)
        content_type, charset = _content_type(response)
        problem: str | None = None
        if (encoding := response.headers.get("content-encoding", "identity").strip().lower()) != "identity":
            problem = f"the response has the content encoding {encoding[:20]!r}, but only identity is supported"
        elif charset not in _CHARSETS:  # codecs such as zlib decompress
            problem = f"the response has the character set {charset[:20]!r}, but only UTF-8 is supported"
        if problem is not None:
            await response.aclose()
            raise ResponseRefusedError(problem)
        if not (request.method == "GET" and content_type == _EVENT_STREAM):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        remaining = MAX_RESPONSE_BYTES
        async for chunk in self._stream:
            remaining -= len(chunk)
            if remaining < 0:
                raise ResponseRefusedError(f"the response has more than {MAX_RESPONSE_BYTES:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _content_type(response: httpx2.Response) -> tuple[str, str]:
    message = Message()
    message["content-type"] = response.headers.get("content-type", "")
    return message.get_content_type(), str(message.get_content_charset() or "")
