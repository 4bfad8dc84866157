"""A bad response fails its own call: it takes no memory, no connection and no other call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.classifiers.mcp.answers import MAX_RESPONSE_BYTES
from vllm_lora_router.classifiers.mcp.server import ToolDescription, Transport
from vllm_lora_router.classifiers.mcp.session import Session
from vllm_lora_router.classifiers.mcp.stdio import lines

from .conftest import transport_settings

if TYPE_CHECKING:
    from .conftest import BuildRouter, ToolRouter


class ListedTools:
    """A tool server that lists these names, or fails with a text."""

    def __init__(self, names: Sequence[str], failure: str | None = None) -> None:
        self.names, self.failure = names, failure

    async def tools(self) -> Sequence[ToolDescription]:
        if self.failure is not None:
            raise OSError(self.failure)
        return [ToolDescription(name, {"text": {}}) for name in self.names]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        return '{"class": 0, "confidence": 1}'

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ListedTools]:
        yield self


@pytest.fixture
def open_session() -> Iterator[Callable[[ListedTools], Session]]:
    sessions: list[Session] = []

    def open_session(server: ListedTools) -> Session:
        sessions.append(Session(Transport("test", server.connect), None))
        sessions[-1].wait(60)
        return sessions[-1]

    yield open_session
    for session in sessions:
        session.close()


BAD_NAMES = ["two\nlines", "half \ud83d", "\x1b[2J", "x" * 257, ""]


def test_tools_with_unusable_names_are_ignored(open_session: Callable[[ListedTools], Session]) -> None:
    session = open_session(ListedTools([*BAD_NAMES, "my_tool"]))
    assert session.info is not None and session.info.tool.name == "my_tool"


@pytest.mark.parametrize(
    "server",
    [
        ListedTools(BAD_NAMES),
        ListedTools([f"{number:0200}" for number in range(1_000)]),
        ListedTools([], "first line\nsecond \x1b[2J line\n" * 100_000),
    ],
)
def test_a_tools_texts_reach_the_log_on_one_short_line(
    open_session: Callable[[ListedTools], Session], server: ListedTools, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session(server)
    assert session.failure is not None and session.failure.isprintable()
    messages = [record.getMessage() for record in caplog.records]
    assert messages and all(message.isprintable() and len(message) < 600 for message in messages)


@pytest.fixture(scope="module", params=["streamable-http", "http"])
def http_router(request: pytest.FixtureRequest, build_router: BuildRouter) -> Any:
    for settings in transport_settings(request.param):
        yield build_router(settings)


@pytest.fixture(scope="module")
def stdio_router(build_router: BuildRouter) -> Any:
    for settings in transport_settings("stdio"):
        yield build_router(settings)


async def fails_alone(router: ToolRouter, text: str) -> str:
    """Return the error for a text. Assert that the connection and a call that is running are not affected."""
    info = router.tool.session.info
    running = asyncio.ensure_future(router.plan("slow 0.5"))
    await asyncio.sleep(0.1)
    plan = await router.plan(text)
    assert plan.reason == "error"
    assert (await running).reason == "routed"
    assert (await router.plan("hello")).reason == "routed"
    assert router.tool.session.info is info and router.tool.breaker.times_opened == 0
    return plan.steps[-1].error or ""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("bad gzip", "the response has the content encoding 'deflate', but only identity is supported"),
        ("bad charset", "the response has the character set 'zlib', but only UTF-8 is supported"),
        ("bad size", "the response has more than 4,194,304 bytes"),
        ("bad event", "more than 4,194,304 bytes"),
        ("bad page", ""),
        ("bad status", ""),
        ("bad nesting", ""),
        ("bad length", ""),
    ],
)
async def test_a_bad_response_over_http_fails_alone(http_router: ToolRouter, text: str, error: str) -> None:
    assert error in await fails_alone(http_router, text)


async def test_an_answer_that_is_too_long_fails_alone(each_router: ToolRouter) -> None:
    assert "bytes" in await fails_alone(each_router, "long")


async def test_debug_output_of_a_stdio_tool_is_ignored(stdio_router: ToolRouter) -> None:
    assert (await stdio_router.plan("print 10")).reason == "routed"
    assert (await stdio_router.plan(f"print {MAX_RESPONSE_BYTES * 2}")).reason == "routed"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"class": "x" * 60_000, "confidence": 1}),
        json.dumps({"class": 0, "confidence": 1, "probabilities": [0] * 20_000}),
        "scores 20000",
        "scores 1000000",
        '{"class": 0, "confidence": 1, "probabilities": [NaN, NaN, NaN]}',
        '{"class": 0, "confidence": 1, "probabilities": {"a\\nb": 0.1}}',
        json.dumps({"class": 0, "confidence": 1, "probabilities": {f"a\nb{'x' * 5_000}": 7}}),
        '{"class": 0, "confidence": 1e999}',
        '{"class": [], "confidence": {}}',
        '{"class": null, "confidence": null}',
        '{"class": 0, "confidence": 1, "model": ' + "[" * 30_000,
        '{"class": 0, "confidence": 1, "model": ' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}",
        '{"class": -1, "confidence": 1}',
        '{"class": 99999999999999999999999, "confidence": 1}',
        '{"class": 0, "class": 2, "confidence": "1"}',
    ],
)
async def test_an_absurd_answer_fails_alone_with_a_short_reason_on_one_line(
    each_router: ToolRouter, content: str
) -> None:
    error = await fails_alone(each_router, content)
    assert len(error) < 1_500 and error.isprintable()


async def test_lines_of_any_length_take_bounded_memory() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a\nbc"
        yield b"d\n\n"
        for _ in range(100):
            yield b"x" * 10
        yield b"\nlast\nnot ended"

    received = [line async for line in lines(chunks(), 5)]  # pyright: ignore[reportArgumentType]
    assert received == [(b"a", 1), (b"bcd", 3), (b"", 0), (b"xxxxx", 1_000), (b"last", 4)]
