"""One long-lived connection to a tool server, made again when it breaks."""

import asyncio
import atexit
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from vllm_lora_router.classifiers import Unavailable
from vllm_lora_router.classifiers.mcp.answers import BadAnswer, Categories, read_categories
from vllm_lora_router.classifiers.mcp.server import Offered, Refused, Server, Transport

logger = logging.getLogger("vllm_lora_router.classifiers")

CONNECT_S = 10.0  # to start a tool server and hear what it offers; importing Python packages takes seconds
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before another try, when a server could not be reached
LIST = "list_categories"
# By these names a tool that classifies is found where none is configured.
USUAL = ("classify_text", "classify", "categorize_text", "categorize")


@dataclass(frozen=True)
class Found:
    """What a tool server was found to be."""

    tool: Offered
    categories: Categories | None  # None: it does not list any

    @property
    def listed(self) -> Sequence[str]:
        """Its categories, in their order."""
        return () if self.categories is None else self.categories.categories


class Session:
    """Calls a tool from any event loop; the connection lives on a thread of its own.

    There a large answer, and everything that the protocol needs, keeps nobody's stream waiting. The thread and the
    tool's process end with the last reference to this, or with the server's process.
    """

    def __init__(self, transport: Transport, tool: str | None) -> None:
        """`tool` is its name; None looks for one that classifies."""
        self.name = transport.name
        self._connection = _Connection(transport, tool)
        running = start_blocking_portal("asyncio", name="lora-router-tool")
        self._portal = running.__enter__()
        self._portal.start_task_soon(self._connection.keep)
        ending = self._ending = weakref.finalize(self, _end, running)
        ending.atexit = False
        _OPEN.add(self)

    @property
    def found(self) -> Found | None:
        """What was found when it was last connected; None when it never was."""
        return self._connection.found

    @property
    def is_connected(self) -> bool:
        return self._connection.server is not None

    @property
    def failure(self) -> str | None:
        """Why it is not connected."""
        return self._connection.failure

    def wait(self, timeout_s: float) -> bool:
        """Until the first try to connect is over; whether it is connected. Blocks."""
        self._connection.tried.wait(timeout_s)
        return self.is_connected

    async def call(self, arguments: Callable[[Found], Mapping[str, Any]]) -> tuple[Found, str | Mapping[str, Any]]:
        """What the tool answers, and what was known of it then.

        Args:
            arguments: makes them from what the tool takes.

        Raises:
            Unavailable: the server cannot be reached, or ended the connection twice.
            Refused, BadAnswer: it answered something else.
        """
        return await asyncio.wrap_future(self._portal.start_task_soon(self._connection.call, arguments))

    def renew(self) -> None:
        """Ends the connection, and a tool's process with it, and makes another: this one does not answer."""
        self._portal.start_task_soon(self._connection.end)

    def close(self) -> None:
        """Ends the connection, the tool's process and the thread. Blocks for as long as the process takes."""
        if (found := self._ending.detach()) is not None:
            _, _, (running,), _ = found
            running.__exit__(GeneratorExit, GeneratorExit(), None)


def _end(running: AbstractContextManager[object]) -> None:
    # Whoever let go of the last reference does not wait: it may be the event loop.
    threading.Thread(target=running.__exit__, args=(GeneratorExit, GeneratorExit(), None), daemon=True).start()


_OPEN: "weakref.WeakSet[Session]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for session in list(_OPEN):
        session.close()


class _Connection:
    """The session's end on its own thread."""

    def __init__(self, transport: Transport, tool: str | None) -> None:
        self._transport, self._tool = transport, tool
        self.server: Server | None = None
        self.found: Found | None = None
        self.failure: str | None = None
        self.tried = threading.Event()
        self._try_again_at = 0.0  # `time.monotonic()`
        self._changed = anyio.Event()  # connected, or failed to
        self._over = anyio.Event()  # of this connection

    async def keep(self) -> None:
        """Connects, and connects again, until this is cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._connected()
                pause_s = FIRST_PAUSE_S
            except Exception as error:
                self._fail(error, pause_s)
                await anyio.sleep(pause_s * random.uniform(0.8, 1.2))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            finally:
                self.server = None

    async def _connected(self) -> None:
        self._over = anyio.Event()
        with anyio.CancelScope(deadline=anyio.current_time() + CONNECT_S) as scope:
            async with self._transport.connect() as server:
                found = await self._look(server)
                scope.deadline = float("inf")
                if self.failure is not None or self.found is None or found.tool != self.found.tool:
                    logger.info("mcp: %s is connected; its tool is %s", self._transport.name, found.tool.name)
                self.server, self.found, self.failure = server, found, None
                self._tell()
                await self._over.wait()
                self.server = None
        if scope.cancelled_caught:
            raise TimeoutError(f"it did not say what it offers within {CONNECT_S:g} s")

    async def _look(self, server: Server) -> Found:
        tools = await server.tools()
        tool = _choose(tools, self._tool)
        if not any(one.name == LIST for one in tools):
            return Found(tool, None)
        return Found(tool, read_categories(await server.call(LIST, {})))

    def _fail(self, error: Exception, pause_s: float) -> None:
        first, self.failure = self.failure is None, _said(error)
        self._try_again_at = time.monotonic() + pause_s
        if first:
            text = "mcp: %s cannot be used: %s; it is tried again and again, and requests take the next candidate"
            logger.warning(text, self._transport.name, self.failure)
        self._tell()

    def _tell(self) -> None:
        self.tried.set()
        self._changed.set()
        self._changed = anyio.Event()

    async def call(self, arguments: Callable[[Found], Mapping[str, Any]]) -> tuple[Found, str | Mapping[str, Any]]:
        for last in (False, True):
            while self.server is None:
                if self.failure is not None:
                    left_s = max(self._try_again_at - time.monotonic(), 0)
                    raise Unavailable(f"it is not connected, the next try is in {left_s:.1f} s: {self.failure}")
                await self._changed.wait()
            server, found = self.server, self.found
            assert found is not None, "set before the server is"
            try:
                return found, await server.call(found.tool.name, arguments(found))
            except (Refused, BadAnswer):
                raise
            except Exception as error:
                if self.server is server:
                    await self.end()
                if last:
                    raise Unavailable(f"the connection broke: {_said(error)}") from None
        raise AssertionError("the second try returns or raises")

    async def end(self) -> None:
        """Ends this connection; another is made. One that is being made is left to it."""
        if self.server is not None:
            self.server = None
            self._over.set()


def _choose(tools: Sequence[Offered], name: str | None) -> Offered:
    by_name = {tool.name: tool for tool in tools}
    offered = ", ".join(by_name) or "none"
    if name is not None:
        if name not in by_name:
            raise Refused(f"it has no tool {name!r}; it offers {offered}")
        return by_name[name]
    if usual := [by_name[one] for one in USUAL if one in by_name]:
        return usual[0]
    takes_text = [tool for tool in tools if "text" in tool.properties]
    if len(takes_text) != 1:
        raise Refused(f"which of its tools classifies is not clear: it offers {offered}; say it by tool_name")
    return takes_text[0]


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{error}" if isinstance(error, Refused | BadAnswer | TimeoutError) else f"{type(error).__name__}: {error}"
