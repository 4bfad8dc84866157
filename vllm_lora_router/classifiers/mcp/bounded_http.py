"""An HTTP client that holds no more of an answer than any answer may be: the rest of the server shares this memory."""

from collections.abc import AsyncIterator, Mapping

import httpx2

import vllm_lora_router
from vllm_lora_router.classifiers.mcp.answers import MOST_LIST_BYTES

# Headers and JSON-RPC around the tool's own answer included.
MOST_RESPONSE_BYTES = MOST_LIST_BYTES * 2


def http_client(headers: Mapping[str, str]) -> httpx2.AsyncClient:
    """Sends these headers with every request, and reads no answer that is longer than one may be."""
    said = {"user-agent": f"vllm-lora-router/{vllm_lora_router.__version__}", **headers}
    # Every call has a time limit of its own; a stream of the server's may stay open.
    timeout = httpx2.Timeout(10, read=None)
    return httpx2.AsyncClient(headers=said, timeout=timeout, transport=_Bounded(limits=httpx2.Limits()))


class _Bounded(httpx2.AsyncHTTPTransport):
    """Reads no response that is longer than any answer may be: the rest of the server shares this memory."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST":
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Short(response.stream)
        return response


class _Short(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MOST_RESPONSE_BYTES
        async for chunk in self._stream:
            left -= len(chunk)
            if left < 0:
                raise httpx2.ReadError(f"the response is longer than {MOST_RESPONSE_BYTES:,} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
