"""The ways to a tool server: its standard streams, streamable HTTP, or a plain POST for each call."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND
from pydantic import ValidationError

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.mcp import plain_http
from vllm_lora_router.classifiers.mcp.answers import BadAnswer
from vllm_lora_router.classifiers.mcp.bounded_http import http_client
from vllm_lora_router.classifiers.mcp.server import MOST_PAGES, Offered, Refused, Server, Transport
from vllm_lora_router.config.schema import McpCategoryModel

# Errors that are about one call: the connection stays.
OF_THE_CALL = frozenset({INVALID_PARAMS, METHOD_NOT_FOUND, INTERNAL_ERROR})


def transport_of(settings: McpCategoryModel, folder: Path) -> Transport:
    """The way that a configuration names.

    Args:
        folder: the configuration's: files that `args` name are looked for there first.

    Raises:
        ClassifierError: the command is not there, or a header's environment variable is empty.
    """
    if settings.transport_type == "stdio":
        return _stdio(settings, folder)
    assert settings.url is not None, "the schema asks for it"
    headers = {name: _variable(name, variable) for name, variable in settings.headers_env.items()}
    name = str(httpx2.URL(settings.url).copy_with(username=None, password=None))
    if settings.transport_type == "http":
        return Transport(name, partial(plain_http.connect, settings.url.rstrip("/"), headers))
    return Transport(name, partial(_streamable_http, settings.url, headers))


def _stdio(settings: McpCategoryModel, folder: Path) -> Transport:
    command = settings.command or ""
    found = sys.executable if command in ("python", "python3") else _located(command, folder)
    if shutil.which(found) is None:
        raise ClassifierError(
            f"classifier.mcp_category_model.command: {command!r} is not found; write the whole path, or install it"
        )
    args = [_located(one, folder) for one in settings.args]
    parameters = StdioServerParameters(command=found, args=args, env=settings.env)
    return Transport(" ".join([command, *settings.args]), lambda: _connected(stdio_client(parameters)))


@asynccontextmanager
async def _streamable_http(url: str, headers: Mapping[str, str]) -> AsyncIterator[Server]:
    async with (
        http_client(headers) as http,
        _connected(streamable_http_client(url, http_client=http)) as server,
    ):
        yield server


@asynccontextmanager
async def _connected(transport: Any) -> AsyncIterator[Server]:
    # Answers are kept by ourselves, who know for whom they are.
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
