"""Failures of a tool: requests fall back to the next candidate, and routing recovers."""

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

from .conftest import SERVER, TRANSPORTS, start

if TYPE_CHECKING:
    from .conftest import BuildRouter, ToolRouter

TIMEOUT_S = 1.0


class Server:
    """A tool server that can be killed, stopped and restarted."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        # Marks the process of a stdio server, because other tests also start and end tool servers.
        self.mark = uuid.uuid4().hex
        self.running = start(transport) if transport != "stdio" else None

    @property
    def settings(self) -> dict[str, Any]:
        if self.running is None:
            return {"command": "python", "args": [str(SERVER), "stdio", self.mark]}
        return {"transport_type": self.transport, "url": f"http://127.0.0.1:{self.running.port}/mcp"}

    @property
    def process(self) -> psutil.Process:
        if self.running is not None:
            return psutil.Process(self.running.process.pid)
        (process,) = child_processes(self.mark)
        return process

    def kill(self) -> None:
        process = self.process
        process.kill()
        process.wait()

    def restart(self) -> None:
        """Start the server again, unless it is a stdio server, which the router starts."""
        if self.running is not None:
            self.running = start(self.transport, self.running.port)

    def close(self) -> None:
        if self.running is not None:
            self.running.process.kill()
            self.running.process.wait()


def child_processes(mark: str) -> list[psutil.Process]:
    """Return the tool servers with this mark that the test process has started."""
    processes: list[psutil.Process] = []
    for process in psutil.Process().children():
        try:
            if mark in process.cmdline():
                processes.append(process)
        except psutil.Error:
            continue
    return processes


@pytest.fixture(params=TRANSPORTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


async def wait_until_routed(router: ToolRouter, within_s: float = 60) -> float:
    """Return the seconds until the tool's answers are used again."""
    began = time.monotonic()
    while (await router.plan("hello")).reason != "routed":
        assert time.monotonic() - began < within_s, router.tool.status()
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_routing_recovers_after_a_tool_server_was_killed(build_router: BuildRouter, server: Server) -> None:
    router = build_router(server.settings, timeout_seconds=5)
    assert (await router.plan("hello")).category == "medical"
    server.kill()
    plan = await router.plan("hello")
    # The router restarts a stdio server at once. It cannot restart a server that listens elsewhere.
    assert plan.reason == ("routed" if server.transport == "stdio" else "error")
    assert [candidate.model for candidate in plan.candidates][-1] == "acme/base"
    server.restart()
    await wait_until_routed(router)
    assert router.tool.breaker.failures == 0


async def test_a_hanging_tool_times_out_and_then_the_circuit_breaker_skips_it_until_it_answers(
    build_router: BuildRouter, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router.classifiers")
    router = build_router(server.settings, timeout_seconds=TIMEOUT_S)
    assert (await router.plan("hello")).reason == "routed"
    server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    plans = await asyncio.gather(*(router.plan("hello") for _ in range(5)))
    assert time.monotonic() - began > TIMEOUT_S - 0.1
    assert {plan.reason for plan in plans} == {"timeout"}
    assert plans[0].steps[-1].error == "no answer within classifier.mcp_category_model.timeout_seconds (1 s)"
    calls = router.tool.calls
    plan = await router.plan("hello")
    assert router.tool.calls == calls
    assert plan.reason == "error" and "the circuit breaker is open for" in (plan.steps[-1].error or "")
    assert router.tool.status()["circuit_open_s"] > 0
    if server.transport != "stdio":  # the router has ended the stdio server and starts a new one
        server.process.send_signal(signal.SIGCONT)
    await wait_until_routed(router)
    messages = [record.getMessage() for record in caplog.records]
    assert any("circuit breaker open for 1 s after 5 consecutive failures" in message for message in messages)
    assert any("answers again" in message for message in messages)


async def test_a_slow_tool_is_waited_for_within_its_timeout(build_router: BuildRouter, server: Server) -> None:
    router = build_router(server.settings, timeout_seconds=2)
    assert (await router.plan("slow 0.1")).reason == "routed"
    assert (await router.plan("slow 2.5")).reason == "timeout"
    assert (await router.plan("hello")).reason == "routed"  # one failure does not open the circuit breaker


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("html", "the tool's answer is invalid: it is not JSON"),
        ("nan", "the tool's answer is invalid: it is not JSON"),
        ("raise", "the tool reports an error"),
        ('{"class": 0, "confidence": 1, "model": "../../etc"}', "is a path"),
        ('{"class": 0, "confidence": 1, "model": "a\\r\\nb"}', "contains a line break or a control character"),
    ],
)
async def test_an_invalid_answer_falls_back_and_the_next_request_is_routed(
    each_router: ToolRouter, text: str, error: str
) -> None:
    plan = await each_router.plan(text)
    assert (plan.reason, [candidate.model for candidate in plan.candidates]) == ("error", ["acme/base"])
    assert error in (plan.steps[-1].error or "")
    assert (await each_router.plan("hello")).reason == "routed"


async def test_repeated_invalid_answers_open_the_circuit_breaker_and_a_valid_one_closes_it(
    build_router: BuildRouter, each_transport: dict[str, Any]
) -> None:
    router = build_router(each_transport, timeout_seconds=5)
    calls = router.tool.calls
    for _ in range(20):
        assert (await router.plan("html")).reason == "error"
    assert router.tool.calls == calls + 5
    assert await wait_until_routed(router) > 0.9
    assert (await router.plan("hello")).reason == "routed"


async def test_an_answer_of_ten_megabytes_does_not_delay_other_requests(
    build_router: BuildRouter, server: Server
) -> None:
    router = build_router(server.settings, timeout_seconds=TIMEOUT_S)
    task, iterations = asyncio.ensure_future(router.plan("long")), 0
    while not task.done():
        await asyncio.sleep(0.001)
        iterations += 1
    assert (await task).reason in ("error", "timeout") and iterations > 10
    await wait_until_routed(router)


async def test_a_disconnected_client_is_not_counted_as_a_failure(each_router: ToolRouter) -> None:
    for _ in range(8):
        planning = asyncio.ensure_future(each_router.plan("slow 0.2"))
        await asyncio.sleep(0.02)
        planning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await planning
    assert each_router.tool.breaker.failures == 0
    assert (await each_router.plan("hello")).reason == "routed"


async def test_an_unreachable_tool_server_does_not_prevent_the_start(
    build_router: BuildRouter, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server("http")
    settings = server.settings
    server.kill()
    router = build_router(settings)
    assert "cannot be used" in caplog.text
    plan = await router.plan("hello")
    assert plan.reason == "error" and "the tool server is not connected" in (plan.steps[-1].error or "")
    server.restart()
    await wait_until_routed(router)
    server.close()


async def test_a_server_without_the_configured_tool_is_reported(
    build_router: BuildRouter, each_transport: dict[str, Any]
) -> None:
    router = build_router(each_transport, tool_name="classify_txt")
    error = (await router.plan("hello")).steps[-1].error or ""
    assert "it has no tool 'classify_txt'; it offers" in error and "list_categories" in error


def test_a_missing_command_prevents_the_start(build_router: BuildRouter) -> None:
    with pytest.raises(ClassifierError, match="command: 'no-such-tool' does not exist"):
        build_router({"command": "no-such-tool"})


def test_an_empty_variable_of_a_header_prevents_the_start(
    build_router: BuildRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOL_TOKEN", "")
    settings = {
        "transport_type": "http",
        "url": "http://127.0.0.1:9/mcp",
        "headers_env": {"authorization": "TOOL_TOKEN"},
    }
    with pytest.raises(ClassifierError, match="headers_env: authorization: the environment variable TOOL_TOKEN is not"):
        build_router(settings)


async def test_a_stdio_server_ends_with_its_session(build_router: BuildRouter) -> None:
    server = Server("stdio")
    router = build_router(server.settings)
    process = server.process
    await asyncio.to_thread(router.tool.session.close)
    assert not psutil.pid_exists(process.pid)


async def test_a_stdio_server_gets_only_configured_environment_variables(
    build_router: BuildRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_SECRET", "x")
    server = Server("stdio")
    router = build_router({**server.settings, "env": {"FOR_THE_TOOL": "y"}})
    environment = server.process.environ()
    assert "SERVER_SECRET" not in environment and environment["FOR_THE_TOOL"] == "y"
    assert os.environ["PATH"] == environment["PATH"]
    await asyncio.to_thread(router.tool.session.close)
