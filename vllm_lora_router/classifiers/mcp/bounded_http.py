"""An HTTP client that limits the size of responses, because a tool's response shares the server's memory."""

from collections.abc import AsyncIterator, Mapping

import httpx2

import vllm_lora_router
from vllm_lora_router.classifiers.mcp.answers import MAX_LIST_BYTES

# Includes the headers and the JSON-RPC envelope around the tool's answer.
MAX_RESPONSE_BYTES = MAX_LIST_BYTES * 2


def http_client(headers: Mapping[str, str]) -> httpx2.AsyncClient:
    """Return a client that sends these headers with every request and limits the size of responses."""
    all_headers = {"user-agent": f"vllm-lora-router/{vllm_lora_router.__version__}", **headers}
    # No read timeout: every call has its own timeout, and an event stream of the server may stay open.
    timeout = httpx2.Timeout(10, read=None)
    return httpx2.AsyncClient(headers=all_headers, timeout=timeout, transport=_BoundedTransport(limits=httpx2.Limits()))


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    """Raises `ReadError` when the response to a POST exceeds the limit."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST":
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
                raise httpx2.ReadError(f"the response has more than {MAX_RESPONSE_BYTES:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
