"""The standard streams of a tool process as an MCP transport.

Unlike the SDK's `stdio_client`, it limits the length of the lines that the tool writes, and a message that cannot be
encoded fails only its own call.
"""

import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import ByteReceiveStream, ObjectReceiveStream, ObjectSendStream, Process
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, ErrorData, JSONRPCError, JSONRPCRequest, jsonrpc_message_adapter

from vllm_lora_router.classifiers.mcp.answers import MAX_RESPONSE_BYTES

logger = logging.getLogger("vllm_lora_router.classifiers")

# How long a process may take to end after its standard input is closed, and again after SIGTERM.
END_TIMEOUT_S = 2.0
# The beginning of a response to the router's own request. The id in another place would not be certain.
_RESPONSE_ID = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,15})\s*,')
# JSON allows these line separators inside strings, but some tools read lines with functions that split there.
_LINE_SEPARATORS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}

Received = ObjectSendStream[SessionMessage | Exception]
Streams = tuple[ObjectReceiveStream[SessionMessage | Exception], ObjectSendStream[SessionMessage]]


@asynccontextmanager
async def stdio_streams(command: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[Streams]:
    """Start a tool process and yield streams of messages from it and to it. The process ends with the context.

    Args:
        env: Environment variables in addition to a few harmless ones, such as PATH.
    """
    process = await anyio.open_process(
        [*command], env={**get_default_environment(), **env}, stderr=None, start_new_session=True
    )
    received, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_read, process, received)
        tasks.start_soon(_write, process, to_send, received)
        try:
            yield incoming, outgoing
        finally:
            with anyio.CancelScope(shield=True):
                incoming.close()  # from here on, the process's output is discarded
                outgoing.close()
                await _end(process)
            tasks.cancel_scope.cancel()


async def _read(process: Process, received: Received) -> None:
    assert process.stdout is not None
    is_open = True
    async with received:
        async for head, size in lines(process.stdout, MAX_RESPONSE_BYTES):
            # The output of a session that has ended is read to its end, so that the process can write it and exit.
            if is_open and (message := _message(head, size)) is not None:
                is_open = await _send(received, message)


async def _write(process: Process, to_send: ObjectReceiveStream[SessionMessage], received: Received) -> None:
    assert process.stdin is not None
    async with to_send:
        async for message in to_send:
            try:
                data = _encode(message)
            except Exception as error:
                request = message.message
                if isinstance(request, JSONRPCRequest):
                    text = f"the call cannot be encoded: {type(error).__name__}"
                    await _send(received, _error(request.id, INVALID_PARAMS, text))
                continue
            try:
                await process.stdin.send(data)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
                await received.aclose()  # tells the session that the connection has ended; the process may still run
                return


async def lines(stream: ByteReceiveStream, max_bytes: int) -> AsyncIterator[tuple[bytes, int]]:
    """Yield each line as its first `max_bytes` bytes and its size. Longer lines are read but not kept."""
    head, size = bytearray(), 0
    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
        async for chunk in stream:
            first, *others = chunk.split(b"\n")
            head += first[: max(max_bytes - len(head), 0)]
            size += len(first)
            for part in others:
                yield bytes(head), size
                head, size = bytearray(part[:max_bytes]), len(part)


def _message(head: bytes, size: int) -> SessionMessage | None:
    """Return the message in a line; None if it contains none, such as debug output of the tool."""
    if size > MAX_RESPONSE_BYTES:
        if (match := _RESPONSE_ID.match(head)) is None:
            logger.warning("mcp: a tool wrote a line of %d bytes, which is ignored", size)
            return None
        text = f"the response has {size:,} bytes, but at most {MAX_RESPONSE_BYTES:,} are allowed"
        return _error(int(match[1]), INTERNAL_ERROR, text)
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(head, by_name=False))
    except ValueError as error:
        logger.debug("mcp: a tool wrote a line that is not a message: %.200r", str(error))
        return None


def _encode(message: SessionMessage) -> bytes:
    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
    for separator, escaped in _LINE_SEPARATORS.items():
        text = text.replace(separator, escaped)
    return f"{text}\n".encode()


def _error(request_id: str | int, code: int, text: str) -> SessionMessage:
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=text)))


async def _send(received: Received, message: SessionMessage) -> bool:
    """Pass a message to the session and return whether the session is still open."""
    try:
        await received.send(message)
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        return False
    return True


async def _end(process: Process) -> None:
    """Close the standard input, then terminate the process group, then kill it, as the MCP specification says."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdin.aclose()
    for next_signal in (signal.SIGTERM, signal.SIGKILL, None):
        with anyio.move_on_after(END_TIMEOUT_S):
            # Not `process.wait()`, which also waits for children of the process that inherited the pipes.
            while process.returncode is None:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            break
        if next_signal is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, next_signal)
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdout.aclose()
