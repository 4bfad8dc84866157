"""A tool that is away, hangs, is slow or talks nonsense: requests take the next candidate, and routing recovers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from vllm_lora_router.classifiers import ClassifierError

from .conftest import SERVER, start

pytestmark = pytest.mark.alone

if TYPE_CHECKING:
    from .conftest import Ask, Asked

TIMEOUT_S = 1.0


class Server:
    """A tool server that can be killed, stopped and begun again."""

    def __init__(self, way: str) -> None:
        self.way = way
        # The processes of other tests' tools may end and begin meanwhile.
        self.mark = uuid.uuid4().hex
        self.started = start("http" if way == "streamable-http" else "plain") if way != "stdio" else None

    @property
    def settings(self) -> dict[str, Any]:
        if self.started is None:
            return {"command": "python", "args": [str(SERVER), "stdio", self.mark]}
        return {"transport_type": self.way, "url": f"http://127.0.0.1:{self.started.port}/mcp"}

    @property
    def process(self) -> psutil.Process:
        if self.started is not None:
            return psutil.Process(self.started.process.pid)
        (process,) = children(self.mark)
        return process

    def kill(self) -> None:
        process = self.process
        process.kill()
        process.wait()

    def begin_again(self) -> None:
        if self.started is not None:
            self.started = start("http" if self.way == "streamable-http" else "plain", self.started.port)

    def close(self) -> None:
        if self.started is not None:
            self.started.process.kill()
            self.started.process.wait()


def children(mark: str) -> list[psutil.Process]:
    """Tool servers that this process has started with such a mark."""
    found: list[psutil.Process] = []
    for one in psutil.Process().children():
        try:
            if mark in one.cmdline():
                found.append(one)
        except psutil.Error:
            continue
    return found


@pytest.fixture(params=["stdio", "streamable-http", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


async def until_routed(asked: Asked, within_s: float = 30) -> float:
    """The seconds until the tool is obeyed again."""
    began = time.monotonic()
    while (await asked.plan("hello")).reason != "routed":
        assert time.monotonic() - began < within_s, asked.tool.status()
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_a_tool_that_was_killed_is_begun_again_and_obeyed(ask: Ask, server: Server) -> None:
    asked = ask(server.settings, timeout_seconds=5)
    assert (await asked.plan("hello")).category == "medical"
    server.kill()
    began = time.monotonic()
    plan = await asked.plan("hello")
    assert time.monotonic() - began < 6
    # A process of ours is begun again at once; who listens elsewhere is somebody else's to begin again.
    assert plan.reason == ("routed" if server.way == "stdio" else "error")
    assert [one.model for one in plan.candidates][-1] == "acme/base"
    server.begin_again()
    await until_routed(asked)
    assert asked.tool.breaker.failures == 0


async def test_a_tool_that_hangs_costs_its_time_and_then_nothing_until_it_answers(
    ask: Ask, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router.classifiers")
    asked = ask(server.settings, timeout_seconds=TIMEOUT_S)
    assert (await asked.plan("hello")).reason == "routed"
    server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    plans = await asyncio.gather(*(asked.plan("hello") for _ in range(5)))
    assert TIMEOUT_S - 0.1 < time.monotonic() - began < TIMEOUT_S + 2
    assert {plan.reason for plan in plans} == {"timeout"}
    assert plans[0].steps[-1].error == "no answer within classifier.mcp_category_model.timeout_seconds (1 s)"
    began = time.monotonic()
    plan = await asked.plan("hello")
    assert time.monotonic() - began < 0.5
    assert plan.reason == "error" and "the tool is left alone for" in (plan.steps[-1].error or "")
    assert asked.tool.status()["left_alone_s"] > 0
    if server.way != "stdio":  # ours is ended and begun anew
        server.process.send_signal(signal.SIGCONT)
    await until_routed(asked)
    said = [record.getMessage() for record in caplog.records]
    assert any("is left alone for 1 s, 5 failures in a row" in one for one in said)
    assert any("answers again" in one for one in said)


async def test_a_tool_that_is_slow_is_waited_for_within_its_time(ask: Ask, server: Server) -> None:
    asked = ask(server.settings, timeout_seconds=TIMEOUT_S)
    assert (await asked.plan("slow 0.3")).reason == "routed"
    assert (await asked.plan("slow 1.5")).reason == "timeout"
    assert (await asked.plan("hello")).reason == "routed"  # one failure opens nothing


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("html", "the tool's answer cannot be used: it is not JSON"),
        ("nan", "the tool's answer cannot be used: it is not JSON"),
        ("raise", "the tool reports an error"),
        ('{"class": 0, "confidence": 1, "model": "../../etc"}', "is a path, and an adapter is asked for by its name"),
        ('{"class": 0, "confidence": 1, "model": "a\\r\\nb"}', "contains a line break or a control character"),
    ],
)
async def test_nonsense_costs_the_request_the_next_candidate_and_the_next_one_nothing(
    ask: Ask, way: dict[str, Any], asked: Asked, text: str, why: str
) -> None:
    plan = await asked.plan(text)
    assert (plan.reason, [one.model for one in plan.candidates]) == ("error", ["acme/base"])
    assert why in (plan.steps[-1].error or "")
    assert (await asked.plan("hello")).reason == "routed"


async def test_nonsense_again_and_again_opens_the_breaker_and_sense_closes_it(ask: Ask, way: dict[str, Any]) -> None:
    asked = ask(way, timeout_seconds=5)
    calls = asked.tool.calls
    for _ in range(20):
        assert (await asked.plan("html")).reason == "error"
    assert asked.tool.calls == calls + 5
    assert 0.9 < await until_routed(asked) < 10
    assert (await asked.plan("hello")).reason == "routed"


@pytest.mark.once
async def test_ten_megabytes_hold_no_other_request_up(ask: Ask, server: Server) -> None:
    asked = ask(server.settings, timeout_seconds=TIMEOUT_S)
    lags: list[float] = []

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - began - 0.001)

    watching = asyncio.ensure_future(watch())
    began = time.monotonic()
    plan = await asked.plan("long")
    took_s = time.monotonic() - began
    watching.cancel()
    assert plan.reason in ("error", "timeout") and took_s < TIMEOUT_S + 2
    assert max(lags) < 0.5
    await until_routed(asked)


async def test_a_client_that_leaves_is_no_failure_of_the_tools(ask: Ask, asked: Asked) -> None:
    for _ in range(8):
        asking = asyncio.ensure_future(asked.plan("slow 0.2"))
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert asked.tool.breaker.failures == 0
    assert (await asked.plan("hello")).reason == "routed"


async def test_a_server_that_is_not_there_yet_keeps_nobody_from_starting(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server("http")
    settings = server.settings
    server.kill()
    began = time.monotonic()
    asked = ask(settings)
    assert time.monotonic() - began < 8
    assert "cannot be used" in caplog.text
    plan = await asked.plan("hello")
    assert plan.reason == "error" and "it is not connected" in (plan.steps[-1].error or "")
    server.begin_again()
    await until_routed(asked)
    server.close()


async def test_a_server_without_a_tool_that_classifies_is_told_apart(ask: Ask, way: dict[str, Any]) -> None:
    asked = ask(way, tool_name="classify_txt")
    error = (await asked.plan("hello")).steps[-1].error or ""
    assert "it has no tool 'classify_txt'; it offers" in error and "list_categories" in error


def test_a_command_that_is_not_there_keeps_the_server_from_starting(ask: Ask) -> None:
    with pytest.raises(ClassifierError, match="command: 'no-such-tool' is not found"):
        ask({"command": "no-such-tool"})


def test_a_header_whose_variable_is_empty_keeps_the_server_from_starting(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOL_TOKEN", "")
    way = {"transport_type": "http", "url": "http://127.0.0.1:9/mcp", "headers_env": {"authorization": "TOOL_TOKEN"}}
    with pytest.raises(ClassifierError, match=r"headers_env: authorization is to be what .* TOOL_TOKEN"):
        ask(way)


async def test_the_tools_process_ends_with_the_last_configuration_that_asks_it(ask: Ask) -> None:
    server = Server("stdio")
    asked = ask(server.settings)
    process = server.process
    await asyncio.to_thread(asked.tool.session.close)
    assert not psutil.pid_exists(process.pid)


async def test_the_tools_process_sees_no_variable_but_what_is_configured(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_SECRET", "x")
    server = Server("stdio")
    asked = ask({**server.settings, "env": {"FOR_THE_TOOL": "y"}})
    seen = server.process.environ()
    assert "SERVER_SECRET" not in seen and seen["FOR_THE_TOOL"] == "y" and os.environ["PATH"] == seen["PATH"]
    await asyncio.to_thread(asked.tool.session.close)
