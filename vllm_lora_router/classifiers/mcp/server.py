"""The interface of a tool server, independent of its transport."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

MAX_PAGES = 20  # of a server's list of tools
MAX_TOOLS = 1_000  # of a server; others are ignored


class ToolCallError(Exception):
    """The tool server answered that it did not execute the call."""


class InvalidCallError(Exception):
    """A call cannot be sent because of its own content. It says nothing about the tool or the connection."""


@dataclass(frozen=True)
class ToolDescription:
    """A tool that a server offers."""

    name: str
    properties: Mapping[str, Any]  # properties of its input; empty if the schema does not name any
    required: Sequence[str] = ()

    @classmethod
    def from_schema(cls, name: str, schema: Mapping[str, Any] | None) -> "ToolDescription":
        """Return the description of a tool with this JSON schema for its input."""
        schema = schema or {}
        properties, required = schema.get("properties"), schema.get("required")
        return cls(
            name,
            properties if isinstance(properties, dict) else {},
            [name for name in required if isinstance(name, str)] if isinstance(required, list) else (),
        )


class ToolServer(Protocol):
    """A connected tool server.

    Exceptions other than `ToolCallError` and `InvalidAnswerError` mean that the connection has failed.
    """

    async def tools(self) -> Sequence[ToolDescription]:
        """Return the tools that the server offers."""
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str | Mapping[str, Any]:
        """Return the answer of a tool: a text, or an object if the server declares structured content."""
        ...


@dataclass(frozen=True)
class Transport:
    """A way to connect to a server."""

    name: str  # for messages
    connect: Callable[[], AbstractAsyncContextManager[ToolServer]]  # the connection ends with the context
