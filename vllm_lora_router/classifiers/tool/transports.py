"""The ways to a tool server: its standard streams, streamable HTTP, or a plain POST for each call."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND
from pydantic import ValidationError

import vllm_lora_router
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.tool.answers import MOST_LIST_BYTES, BadAnswer
from vllm_lora_router.config.schema import McpCategoryModel

# Errors that are about one call: the connection stays.
OF_THE_CALL = frozenset({INVALID_PARAMS, METHOD_NOT_FOUND, INTERNAL_ERROR})
MOST_PAGES = 20  # of a server's list of tools
# What a server answers with, headers and JSON-RPC around the tool's own answer included.
MOST_RESPONSE_BYTES = MOST_LIST_BYTES * 2
NAME = "vllm-lora-router"


class Refused(Exception):
    """The tool server answered, and did not do what it was asked to."""


@dataclass(frozen=True)
class Offered:
    """A tool that a server has."""

    name: str
    properties: Mapping[str, Any]  # of its input; empty where its schema says nothing
    required: Sequence[str] = ()

    @classmethod
    def of(cls, name: str, schema: Mapping[str, Any] | None) -> "Offered":
        """By the JSON schema of its input."""
        schema = schema or {}
        properties, required = schema.get("properties"), schema.get("required")
        return cls(
            name,
            properties if isinstance(properties, dict) else {},
            [one for one in required if isinstance(one, str)] if isinstance(required, list) else (),
        )


class Server(Protocol):
    """A tool server that answers. Whatever it raises ends the connection, but for `Refused` and `BadAnswer`."""

    async def tools(self) -> Sequence[Offered]:
        """What it offers."""
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str | Mapping[str, Any]:
        """What the tool answers: a text, or an object where the server says that it is one."""
        ...


class Transport(Protocol):
    """Makes connections."""

    name: str  # for messages

    def connect(self) -> AbstractAsyncContextManager[Server]:
        """A connection; it ends with the context."""
        ...


def transport_of(settings: McpCategoryModel, folder: Path) -> Transport:
    """The way that a configuration names.

    Args:
        folder: the configuration's: files that `args` name are looked for there first.

    Raises:
        ClassifierError: the command is not there, or a header's environment variable is empty.
    """
    if settings.transport_type == "stdio":
        return _Stdio(settings, folder)
    assert settings.url is not None, "the schema asks for it"
    headers = {name: _variable(name, variable) for name, variable in settings.headers_env.items()}
    if settings.transport_type == "http":
        return _PlainHttp(settings.url.rstrip("/"), headers)
    return _StreamableHttp(settings.url, headers)


class _Stdio:
    def __init__(self, settings: McpCategoryModel, folder: Path) -> None:
        command = settings.command or ""
        found = sys.executable if command in ("python", "python3") else _located(command, folder)
        if shutil.which(found) is None:
            raise ClassifierError(
                f"classifier.mcp_category_model.command: {command!r} is not found; write the whole path, or install it"
            )
        self.name = " ".join([command, *settings.args])
        self._parameters = StdioServerParameters(
            command=found, args=[_located(one, folder) for one in settings.args], env=settings.env
        )

    def connect(self) -> AbstractAsyncContextManager[Server]:
        return _connected(stdio_client(self._parameters))


class _StreamableHttp:
    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.name = _without_credentials(url)
        self._url, self._headers = url, headers

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Server]:
        async with (
            _http_client(self._headers) as http,
            _connected(streamable_http_client(self._url, http_client=http)) as server,
        ):
            yield server


@asynccontextmanager
async def _connected(transport: Any) -> AsyncIterator[Server]:
    # The answers to questions of one's own are cached by ourselves, who know for whom they are.
    async with Client(transport, cache=None) as client:
        yield _Session(client)


class _Session:
    """Over the official SDK."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def tools(self) -> Sequence[Offered]:
        found: list[Offered] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            found += [Offered.of(tool.name, tool.input_schema) for tool in page.tools]
            if (cursor := page.next_cursor) is None:
                break
        return found

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str | Mapping[str, Any]:
        try:
            result = await self._client.call_tool(tool, dict(arguments))
        except MCPError as error:
            if error.code not in OF_THE_CALL:
                raise
            raise Refused(f"the tool server refuses the call: {error.message[:200]!r}") from None
        except (RuntimeError, ValidationError) as error:
            # The SDK holds the result against the tool's own schema.
            raise BadAnswer(f"it is not as the tool's schema says: {str(error)[:200]!r}") from None
        texts = [part.text for part in result.content if part.type == "text"]
        if result.is_error:
            raise Refused(f"the tool reports an error: {' '.join(texts)[:200]!r}")
        structured = result.structured_content
        if isinstance(structured, dict) and ("class" in structured or "categories" in structured):
            return structured
        if not texts:
            raise BadAnswer("it has no text")
        return texts[0]


class _PlainHttp:
    """`POST {url}/tools/list` and `POST {url}/tools/call`, as the reference's tool servers know them: no session."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.name = _without_credentials(url)
        self._url, self._headers = url, headers

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Server]:
        async with _http_client(self._headers) as http:
            yield _Posts(self._url, http)


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


def _http_client(headers: Mapping[str, str]) -> httpx2.AsyncClient:
    said = {"user-agent": f"{NAME}/{vllm_lora_router.__version__}", **headers}
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


def _located(text: str, folder: Path) -> str:
    """A relative path in the configuration's folder, where there is such a file."""
    if text.startswith("-") or Path(text).is_absolute() or not (folder / text).is_file():
        return text
    return str(folder / text)


def _variable(header: str, variable: str) -> str:
    if not (value := os.environ.get(variable, "")):
        raise ClassifierError(
            f"classifier.mcp_category_model.headers_env: {header} is to be what the environment variable {variable} "
            "says, and that is empty"
        )
    return value


def _without_credentials(url: str) -> str:
    return str(httpx2.URL(url).copy_with(username=None, password=None))
