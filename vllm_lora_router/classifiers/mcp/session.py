"""A long-lived connection to a tool server, which reconnects when it fails."""

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
from typing import Any, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from vllm_lora_router.classifiers import UnavailableError
from vllm_lora_router.classifiers.mcp.answers import (
    MAX_NAME_CHARACTERS,
    CategoryList,
    InvalidAnswerError,
    excerpt,
    read_categories,
)
from vllm_lora_router.classifiers.mcp.server import (
    InvalidCallError,
    ToolCallError,
    ToolDescription,
    ToolServer,
    Transport,
)
from vllm_lora_router.config.redact import redact_text

logger = logging.getLogger("vllm_lora_router.classifiers")

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10.0  # to start a tool server and list its tools; importing Python packages takes seconds
PROBE_TIMEOUT_S = 2.0  # to list the tools after a call failed, which shows whether the connection has ended
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0  # before the next attempt to connect
LIST_CATEGORIES = "list_categories"
# Names of the tool that classifies, if the configuration names none.
DEFAULT_TOOL_NAMES = ("classify_text", "classify", "categorize_text", "categorize")


@dataclass(frozen=True)
class ToolInfo:
    """The tool that classifies and its categories, as listed when the connection was made."""

    tool: ToolDescription
    categories: CategoryList | None  # None: the server does not list categories

    @property
    def category_names(self) -> Sequence[str]:
        """Return the tool's categories in order."""
        return () if self.categories is None else self.categories.categories


class Session:
    """Calls a tool from any event loop. The connection runs on a thread of its own.

    A large answer or the protocol itself therefore cannot delay streams on the caller's event loop. The thread and the
    tool's process end with the last reference to the session or with the server's process.
    """

    def __init__(self, transport: Transport, tool: str | None) -> None:
        """Start to connect.

        Args:
            tool: Name of the tool; None: a tool that classifies is selected.
        """
        self.name = transport.name
        self._connection = _Connection(transport, tool)
        portal_context = start_blocking_portal("asyncio", name="lora-router-tool")
        self._portal = portal_context.__enter__()
        self._portal.start_task_soon(self._connection.run)
        finalizer = self._finalizer = weakref.finalize(self, _close_in_thread, portal_context)
        finalizer.atexit = False
        _OPEN_SESSIONS.add(self)

    @property
    def info(self) -> ToolInfo | None:
        """Return the tool of the last connection; None if the session was never connected."""
        return self._connection.info

    @property
    def is_connected(self) -> bool:
        return self._connection.server is not None

    @property
    def failure(self) -> str | None:
        """Return why the session is not connected, or None."""
        return self._connection.failure

    def wait(self, timeout_s: float) -> bool:
        """Wait for the first attempt to connect and return whether the session is connected. Blocks."""
        self._connection.attempted.wait(timeout_s)
        return self.is_connected

    async def call(
        self,
        arguments: Callable[[ToolInfo], Mapping[str, Any]],
        read: Callable[[ToolInfo, str | Mapping[str, Any]], T],
    ) -> T:
        """Call the tool and return what `read` makes of its answer.

        Args:
            arguments: Returns the arguments for a tool. Runs on the session's thread.
            read: Reads an answer of a tool. Runs on the session's thread, because an answer can be large.

        Raises:
            UnavailableError: The server is not reachable, or the connection failed twice.
            InvalidCallError: The arguments cannot be sent.
            ToolCallError, InvalidAnswerError: The server did not return an answer, or `read` refused it.
        """
        return await asyncio.wrap_future(self._portal.start_task_soon(self._connection.call, arguments, read))

    def reconnect(self) -> None:
        """End the connection and the tool's process and connect again, because the tool does not answer."""
        self._portal.start_task_soon(self._connection.end)

    def close(self) -> None:
        """End the connection, the tool's process and the thread. Blocks until the process has ended."""
        if (finalizer := self._finalizer.detach()) is not None:
            _, _, (portal_context,), _ = finalizer
            portal_context.__exit__(GeneratorExit, GeneratorExit(), None)


def _close_in_thread(portal_context: AbstractContextManager[object]) -> None:
    # In a thread, because the last reference may be dropped on the event loop, which must not block.
    threading.Thread(target=portal_context.__exit__, args=(GeneratorExit, GeneratorExit(), None), daemon=True).start()


_OPEN_SESSIONS: "weakref.WeakSet[Session]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for session in list(_OPEN_SESSIONS):
        session.close()


class _Connection:
    """The part of a session that runs on the session's thread."""

    def __init__(self, transport: Transport, tool: str | None) -> None:
        self._transport, self._tool_name = transport, tool
        self.server: ToolServer | None = None
        self.info: ToolInfo | None = None
        self.failure: str | None = None
        self.attempted = threading.Event()  # set after the first attempt to connect
        self._next_attempt_at = 0.0  # `time.monotonic()`
        self._alive_at = 0.0  # `time.monotonic()` after the last probe that succeeded
        self._probe_lock = anyio.Lock()
        self._state_changed = anyio.Event()  # set when the connection is made or the attempt fails
        self._ended = anyio.Event()  # set to end this connection

    async def run(self) -> None:
        """Connect, and connect again after each failure, until the task is cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._connect()
                pause_s = FIRST_PAUSE_S
            except Exception as error:
                self._record_failure(error, pause_s)
                await anyio.sleep(pause_s * random.uniform(0.8, 1.2))
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
            finally:
                self.server = None

    async def _connect(self) -> None:
        self._ended = anyio.Event()
        with anyio.CancelScope(deadline=anyio.current_time() + CONNECT_TIMEOUT_S) as scope:
            async with self._transport.connect() as server:
                info = await self._read_info(server)
                scope.deadline = float("inf")
                if self.failure is not None or self.info is None or info.tool != self.info.tool:
                    logger.info("mcp: %s: connected; using the tool %s", self._transport.name, info.tool.name)
                self.server, self.info, self.failure = server, info, None
                self._notify()
                await self._ended.wait()
                self.server = None
        if scope.cancelled_caught:
            raise TimeoutError(f"it did not list its tools within {CONNECT_TIMEOUT_S:g} s")

    async def _read_info(self, server: ToolServer) -> ToolInfo:
        tools = [tool for tool in await server.tools() if _is_usable(tool.name)]
        tool = _select_tool(tools, self._tool_name)
        if not any(offered.name == LIST_CATEGORIES for offered in tools):
            return ToolInfo(tool, None)
        return ToolInfo(tool, read_categories(await server.call(LIST_CATEGORIES, {})))

    def _record_failure(self, error: Exception, pause_s: float) -> None:
        first, self.failure = self.failure is None, _describe(error)
        self._next_attempt_at = time.monotonic() + pause_s
        if first:
            text = "mcp: %s: cannot be used: %s; reconnecting until it succeeds, requests use the next method meanwhile"
            logger.warning(text, self._transport.name, self.failure)
        self._notify()

    def _notify(self) -> None:
        self.attempted.set()
        self._state_changed.set()
        self._state_changed = anyio.Event()

    async def call(
        self,
        arguments: Callable[[ToolInfo], Mapping[str, Any]],
        read: Callable[[ToolInfo, str | Mapping[str, Any]], T],
    ) -> T:
        """Call the tool and read its answer. If the connection failed, the call is repeated once on the next one."""
        for last in (False, True):
            server, info = await self._connected()
            try:
                encoded = arguments(info)
            except Exception as error:
                raise InvalidCallError(f"the call cannot be encoded: {type(error).__name__}: {error}") from None
            try:
                answer = await server.call(info.tool.name, encoded)
            except (ToolCallError, InvalidAnswerError):
                raise
            except Exception as error:
                if not await self._is_alive(server):
                    self._end(server)
                if last:
                    raise UnavailableError(f"the connection failed: {_describe(error)}") from None
            else:
                return read(info, answer)
        raise AssertionError("the second attempt returns or raises")

    async def _connected(self) -> tuple[ToolServer, ToolInfo]:
        """Wait for a connection that is being made. Fail at once while the server is not reachable."""
        while self.server is None:
            if self.failure is not None:
                remaining_s = max(self._next_attempt_at - time.monotonic(), 0)
                raise UnavailableError(
                    f"the tool server is not connected, next attempt in {remaining_s:.1f} s: {self.failure}"
                )
            await self._state_changed.wait()
        assert self.info is not None, "set before the server is"
        return self.server, self.info

    async def _is_alive(self, server: ToolServer) -> bool:
        """Return whether a connection on which a call failed still works. Other calls may be running on it."""
        failed_at = time.monotonic()
        async with self._probe_lock:
            if self.server is not server:
                return False
            if self._alive_at < failed_at:  # otherwise a probe for another call has just succeeded
                try:
                    with anyio.fail_after(PROBE_TIMEOUT_S):
                        await server.tools()
                except Exception:
                    return False
                self._alive_at = time.monotonic()
        return True

    async def end(self) -> None:
        """End this connection, which makes `run` connect again. A connection that is being made is not affected."""
        if self.server is not None:
            self._end(self.server)

    def _end(self, server: ToolServer) -> None:
        if self.server is server:
            self.server = None
            self._ended.set()


def _is_usable(name: str) -> bool:
    """Return whether a tool's name can be called and logged. A server can list any text as a name."""
    return 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable()


def _select_tool(tools: Sequence[ToolDescription], name: str | None) -> ToolDescription:
    by_name = {tool.name: tool for tool in tools}
    offered = excerpt(", ".join(by_name)) or "none"
    if name is not None:
        if name not in by_name:
            raise ToolCallError(f"it has no tool {name!r}; it offers {offered}")
        return by_name[name]
    if defaults := [by_name[default] for default in DEFAULT_TOOL_NAMES if default in by_name]:
        return defaults[0]
    with_text = [tool for tool in tools if "text" in tool.properties]
    if len(with_text) != 1:
        raise ToolCallError(f"the tool that classifies is ambiguous: it offers {offered}; set tool_name")
    return with_text[0]


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    is_message = isinstance(error, ToolCallError | InvalidAnswerError | TimeoutError)
    return f"{error}" if is_message else f"{type(error).__name__}: {excerpt(redact_text(str(error)))}"
