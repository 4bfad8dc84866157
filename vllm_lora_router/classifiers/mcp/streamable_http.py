"""The HTTP transport below the SDK's streamable HTTP client: an error of one request fails only its own call."""

import httpx2
import msgspec
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR

from vllm_lora_router.classifiers.mcp.bounded_http import BoundedTransport, ResponseRefusedError


class StreamableHttpTransport(BoundedTransport):
    """Returns an error of a POST as a JSON-RPC error.

    In the SDK's client, an exception of one request would end the session and all calls that are running.
    """

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        if request.method != "POST":
            return await super().handle_async_request(request)
        try:
            response = await super().handle_async_request(request)
            if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
                return response  # the SDK itself handles an event stream that breaks
            content = await _read(response)
        except ResponseRefusedError as refused:
            return _error(INTERNAL_ERROR, str(refused))
        except httpx2.TransportError as error:
            return _error(CONNECTION_CLOSED, f"{type(error).__name__}: {error}")
        return httpx2.Response(
            response.status_code, headers=response.headers, content=content, extensions=response.extensions
        )


async def _read(response: httpx2.Response) -> bytes:
    try:
        return await response.aread()
    finally:
        await response.aclose()


def _error(code: int, message: str) -> httpx2.Response:
    # The SDK accepts a response without an id as the response to the request of this POST.
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return httpx2.Response(502, headers={"content-type": "application/json"}, content=msgspec.json.encode(error))
