"""What a tool server is to those who ask it, whatever the way to it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

MOST_PAGES = 20  # of a server's list of tools


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


@dataclass(frozen=True)
class Transport:
    """A way to a server."""

    name: str  # for messages
    connect: Callable[[], AbstractAsyncContextManager[Server]]  # a connection, which ends with the context
