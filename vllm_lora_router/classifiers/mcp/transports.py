"""The transports to a tool server: standard streams, streamable HTTP, or a plain POST for each call."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST
from pydantic import ValidationError

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.mcp import plain_http
from vllm_lora_router.classifiers.mcp.answers import MAX_RESPONSE_BYTES, InvalidAnswerError, excerpt
from vllm_lora_router.classifiers.mcp.bounded_http import http_client
from vllm_lora_router.classifiers.mcp.server import (
    MAX_PAGES,
    MAX_TOOLS,
    ToolCallError,
    ToolDescription,
    ToolServer,
    Transport,
)
from vllm_lora_router.classifiers.mcp.stdio import stdio_streams
from vllm_lora_router.classifiers.mcp.streamable_http import StreamableHttpTransport
from vllm_lora_router.config.redact import redact_arguments, redact_urls
from vllm_lora_router.config.schema import McpCategoryModel

# Errors after which the connection may have ended. INVALID_REQUEST is the SDK's code for a session that has ended.
CONNECTION_ERRORS = frozenset({CONNECTION_CLOSED, INVALID_REQUEST})


def build_transport(settings: McpCategoryModel, folder: Path) -> Transport:
    """Return the transport that a configuration names.

    Args:
        folder: The configuration's folder. Files that `command` and `args` name are looked up there first.

    Raises:
        ClassifierError: The command does not exist, or the environment variable of a header is empty.
    """
    if settings.transport_type == "stdio":
        return _stdio(settings, folder)
    assert settings.url is not None, "the schema requires it"
    headers = {name: _header_value(name, variable) for name, variable in settings.headers_env.items()}
    name = redact_urls(settings.url)
    if settings.transport_type == "http":
        return Transport(name, partial(plain_http.connect, settings.url.rstrip("/"), headers))
    return Transport(name, partial(_streamable_http, settings.url, headers))


def _stdio(settings: McpCategoryModel, folder: Path) -> Transport:
    command = settings.command or ""
    executable = sys.executable if command in ("python", "python3") else _locate(command, folder)
    if shutil.which(executable) is None:
        raise ClassifierError(
            f"classifier.mcp_category_model.command: {command!r} does not exist; use its full path, or install it"
        )
    args = [_locate(arg, folder) for arg in settings.args]
    return Transport(
        " ".join([command, *redact_arguments(settings.args)]),
        lambda: _connect(stdio_streams([executable, *args], settings.env)),
    )


@asynccontextmanager
async def _streamable_http(url: str, headers: Mapping[str, str]) -> AsyncIterator[ToolServer]:
    async with (
        http_client(headers, StreamableHttpTransport()) as http,
        _connect(streamable_http_client(url, http_client=http, max_sse_event_size=MAX_RESPONSE_BYTES)) as server,
    ):
        yield server


@asynccontextmanager
async def _connect(transport: Any) -> AsyncIterator[ToolServer]:
    # Without the SDK's cache, because only `AnswerCache` keeps the answers of tenants apart.
    async with Client(transport, cache=None) as client:
        yield _McpServer(client)


class _McpServer:
    """A tool server that the official SDK is connected to."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def tools(self) -> Sequence[ToolDescription]:
        descriptions: list[ToolDescription] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            descriptions += [ToolDescription.from_schema(tool.name, tool.input_schema) for tool in page.tools]
            if (cursor := page.next_cursor) is None or len(descriptions) >= MAX_TOOLS:
                break
        return descriptions[:MAX_TOOLS]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str | Mapping[str, Any]:
        try:
            result = await self._client.call_tool(tool, dict(arguments))
        except MCPError as error:
            if error.code in CONNECTION_ERRORS:
                raise
            raise ToolCallError(f"the tool server refused the call: {excerpt(error.message)!r}") from None
        except (RuntimeError, ValidationError) as error:
            # The SDK validates the result against the tool's own schema.
            raise InvalidAnswerError(f"it does not match the tool's schema: {excerpt(str(error))!r}") from None
        texts = [part.text for part in result.content if part.type == "text"]
        if result.is_error:
            raise ToolCallError(f"the tool reports an error: {excerpt(' '.join(texts))!r}")
        structured = result.structured_content
        if isinstance(structured, dict) and ("class" in structured or "categories" in structured):
            return structured
        if not texts:
            raise InvalidAnswerError("it has no text")
        return texts[0]


def _locate(text: str, folder: Path) -> str:
    """Return the path of a file in the configuration's folder, or the text itself if there is no such file."""
    if text.startswith("-") or Path(text).is_absolute() or not (folder / text).is_file():
        return text
    return str(folder / text)


def _header_value(header: str, variable: str) -> str:
    if not (value := os.environ.get(variable, "")):
        raise ClassifierError(
            f"classifier.mcp_category_model.headers_env: {header}: the environment variable {variable} is not set; set "
            "it to the value of the header"
        )
    return value
