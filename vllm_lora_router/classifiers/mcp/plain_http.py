"""Tool servers without sessions: one plain POST for each call, as in vllm-project/semantic-router."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from vllm_lora_router.classifiers.mcp.answers import InvalidAnswerError, excerpt
from vllm_lora_router.classifiers.mcp.bounded_http import BoundedTransport, ResponseRefusedError, http_client
from vllm_lora_router.classifiers.mcp.server import MAX_PAGES, MAX_TOOLS, ToolCallError, ToolDescription, ToolServer


@asynccontextmanager
async def connect(url: str, headers: Mapping[str, str]) -> AsyncIterator[ToolServer]:
    """Yield a server at `POST {url}/tools/list` and `POST {url}/tools/call`, with a connection pool."""
    async with http_client(headers, BoundedTransport()) as http:
        yield _PlainHttpServer(url, http)


class _PlainHttpServer:
    def __init__(self, url: str, http: httpx2.AsyncClient) -> None:
        self._url, self._http = url, http

    async def tools(self) -> Sequence[ToolDescription]:
        descriptions: list[ToolDescription] = []
        params: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            page = await self._post("tools/list", params)
            tools = page.get("tools")
            for tool in tools if isinstance(tools, list) else ():
                if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                    schema = tool.get("inputSchema")
                    descriptions.append(
                        ToolDescription.from_schema(tool["name"], schema if isinstance(schema, dict) else None)
                    )
            if not (cursor := page.get("nextCursor")) or len(descriptions) >= MAX_TOOLS:
                break
            params = {"cursor": cursor}
        return descriptions[:MAX_TOOLS]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str | Mapping[str, Any]:
        result = await self._post("tools/call", {"name": tool, "arguments": arguments})
        content = result.get("content")
        texts = [
            part["text"]
            for part in (content if isinstance(content, list) else ())
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        ]
        if result.get("isError"):
            raise ToolCallError(f"the tool reports an error: {excerpt(' '.join(texts))!r}")
        if not texts:
            raise InvalidAnswerError("it has no text")
        return texts[0]

    async def _post(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        # semantic-router sends the parameters at the top level, its MCP library sends them in `params`.
        try:
            response = await self._http.post(f"{self._url}/{method}", json={**params, "params": params})
        except ResponseRefusedError as refused:
            raise InvalidAnswerError(str(refused)) from None
        if not response.is_success:
            raise ToolCallError(f"{method} returned status {response.status_code}")
        try:
            value = response.json()
        except (ValueError, RecursionError):
            raise InvalidAnswerError(f"{method} did not return JSON") from None
        if isinstance(value, dict) and isinstance(value.get("result"), dict):
            value = value["result"]  # some servers return a JSON-RPC envelope
        if not isinstance(value, dict):
            raise InvalidAnswerError(f"{method} did not return a JSON object")
        return value
