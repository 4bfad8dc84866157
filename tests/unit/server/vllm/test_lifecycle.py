"""Shutdown: SIGTERM and SIGINT drain the server and then stop it."""

import asyncio
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from vllm_lora_router.observability.recorder import Recorder
from vllm_lora_router.server.drain import Drain
from vllm_lora_router.server.vllm.lifecycle import STOP_S, ShutdownMiddleware

HANG_GUARD_S = 60


class RunningRequest:
    """A request in flight."""

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.task = asyncio.ensure_future(asyncio.Event().wait())
        self.is_ended = False

    async def end(self) -> None:
        self.is_ended = True
        self.task.cancel()
        self.drain.remove(cast(Any, self))


class RunningServer:
    """A server between startup and shutdown of its lifespan, with vLLM's state."""

    def __init__(self, *, shutdown_timeout: int = 0, drain_s: float = 30) -> None:
        self.drain = Drain()
        self.closed = 0
        router = SimpleNamespace(
            loaded=SimpleNamespace(config=SimpleNamespace(router=SimpleNamespace(drain_s=drain_s)))
        )
        recorder = Recorder()
        recorder.close = self._close
        serving: Any = SimpleNamespace(drain=self.drain, recorder=recorder, router=router)
        self.http_server = SimpleNamespace(should_exit=False, force_exit=False)
        self.vllm_config = SimpleNamespace(shutdown_timeout=shutdown_timeout)
        app = Starlette()
        app.state.server = self.http_server
        app.state.args = SimpleNamespace(shutdown_timeout=shutdown_timeout)
        app.state.engine_client = SimpleNamespace(vllm_config=self.vllm_config)
        app.add_middleware(ShutdownMiddleware, serving=serving)
        self.app = app
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _close(self) -> None:
        self.closed += 1

    async def __aenter__(self) -> "RunningServer":
        started = asyncio.Event()
        messages = [{"type": "lifespan.startup"}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await self._stop.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            started.set()

        self._task = asyncio.ensure_future(self.app({"type": "lifespan", "state": {}}, receive, send))
        await started.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        assert self._task is not None
        await self._task

    def request(self) -> "RunningRequest":
        """Return a request in flight that never finishes by itself."""
        request: Any = RunningRequest(self.drain)
        self.drain.add(request)
        return request

    async def exits(self) -> None:
        """Wait until the HTTP server has to exit."""
        async with asyncio.timeout(HANG_GUARD_S):
            while not self.http_server.should_exit:
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def signals_without_a_handler_do_not_end_the_tests() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, lambda *_: None) for number in numbers]
    yield
    for number, handler in zip(numbers, previous, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
async def remove_handlers() -> AsyncIterator[None]:
    yield
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


async def send_signal(number: int) -> None:
    signal.raise_signal(number)
    await asyncio.sleep(0.05)  # the event loop reads signals from a pipe


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_the_server_when_the_requests_in_flight_have_finished(number: int) -> None:
    async with RunningServer() as server:
        request = server.request()
        await send_signal(number)
        assert server.drain.is_draining and not server.http_server.should_exit
        server.drain.remove(cast(Any, request))
        await server.exits()
        assert not request.is_ended and server.closed == 0
    assert server.closed == 1, "the audit record is closed when the lifespan ends"


async def test_second_signal_ends_the_requests_in_flight() -> None:
    async with RunningServer() as server:
        request = server.request()
        await send_signal(signal.SIGTERM)
        await send_signal(signal.SIGTERM)
        await server.exits()
        assert request.is_ended


async def test_api_server_process_ends_its_requests_on_sigint_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent sends SIGTERM, in addition to a signal that a terminal sends to both."""
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=1))
    async with RunningServer() as server:
        request = server.request()
        await send_signal(signal.SIGINT)
        await send_signal(signal.SIGTERM)
        assert not server.http_server.should_exit and not request.is_ended
        await send_signal(signal.SIGINT)
        await server.exits()
        assert request.is_ended


@pytest.mark.parametrize(
    ("shutdown_timeout", "drain_s", "seconds"),
    [(0, 12.5, 12.5), (0, 0, 0), (STOP_S + 40, 12.5, 40), (STOP_S - 1, 12.5, 0)],
)
async def test_requests_get_the_time_of_the_flag_or_of_the_configuration(
    shutdown_timeout: int, drain_s: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []

    async def run(self: Drain, seconds: float) -> int:
        times.append(seconds)
        return 0

    monkeypatch.setattr(Drain, "run", run)
    async with RunningServer(shutdown_timeout=shutdown_timeout, drain_s=drain_s) as server:
        assert server.vllm_config.shutdown_timeout == STOP_S, "the engine needs no time for requests after the drain"
        await send_signal(signal.SIGTERM)
        await server.exits()
    assert times == [seconds]


async def test_server_exits_if_the_drain_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(self: Drain, seconds: float) -> int:
        raise RuntimeError

    monkeypatch.setattr(Drain, "run", run)
    async with RunningServer() as server:
        await send_signal(signal.SIGTERM)
        await server.exits()


PARENT = """
import multiprocessing, os, signal, sys, time
from vllm_lora_router.server.vllm.lifecycle import forward_second_signal

def serve(ready):
    signal.signal(signal.SIGINT, lambda *_: print("SIGINT", flush=True) or sys.exit(3))
    os.write(1, b"ready\\n")  # one write: two processes share the pipe
    while True:
        time.sleep(0.1)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
    forward_second_signal()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(None,), name="ApiServer_0")
    other = multiprocessing.get_context("spawn").Process(target=serve, args=(None,), name="EngineCore", daemon=True)
    child.start()
    other.start()
    child.join()
    sys.exit(child.exitcode if other.is_alive() else 4)
"""


def test_second_signal_to_the_main_process_reaches_the_api_servers_as_sigint(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert process.poll() is None, "one signal only starts the drain"
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_GUARD_S) == 3
    finally:
        process.kill()
