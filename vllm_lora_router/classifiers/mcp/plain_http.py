"""Tool servers that know no session: a plain POST for each call, as the reference asks them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from vllm_lora_router.classifiers.mcp.answers import BadAnswer
from vllm_lora_router.classifiers.mcp.bounded_http import http_client
from vllm_lora_router.classifiers.mcp.server import MOST_PAGES, Offered, Refused, Server


@asynccontextmanager
async def connect(url: str, headers: Mapping[str, str]) -> AsyncIterator[Server]:
    """`POST {url}/tools/list` and `POST {url}/tools/call`, over connections that are kept."""
    async with http_client(headers) as http:
        yield _Posts(url, http)


class _Posts:
    def __init__(self, url: str, http: httpx2.AsyncClient) -> None:
        self._url, self._http = url, http

    async def tools(self) -> Sequence[Offered]:
        found: list[Offered] = []
        params: dict[str, Any] = {}
        for _ in range(MOST_PAGES):
            page = await self._post("tools/list", params)
            tools = page.get("tools")
            for tool in tools if isinstance(tools, list) else ():
                if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                    schema = tool.get("inputSchema")
                    found.append(Offered.of(tool["name"], schema if isinstance(schema, dict) else None))
            if not (cursor := page.get("nextCursor")):
                break
            params = {"cursor": cursor}
        return found

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str | Mapping[str, Any]:
        result = await self._post("tools/call", {"name": tool, "arguments": arguments})
        content = result.get("content")
        texts = [
            part["text"]
            for part in (content if isinstance(content, list) else ())
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        ]
        if result.get("isError"):
            raise Refused(f"the tool reports an error: {' '.join(texts)[:200]!r}")
        if not texts:
            raise BadAnswer("it has no text")
        return texts[0]

    async def _post(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        # The reference sends the parameters with nothing around them, inside `params` as its library writes them.
        response = await self._http.post(f"{self._url}/{method}", json={**params, "params": params})
        if not response.is_success:
            raise Refused(f"{method} is answered with status {response.status_code}")
        try:
            said = response.json()
        except ValueError:
            raise BadAnswer(f"{method} is not answered with JSON") from None
        if isinstance(said, dict) and isinstance(said.get("result"), dict):
            said = said["result"]  # JSON-RPC, which some servers write all the same
        if not isinstance(said, dict):
            raise BadAnswer(f"{method} is not answered with a JSON object")
        return said
