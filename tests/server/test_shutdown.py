"""SIGTERM drains a server, and no process of a server survives its API server, however that ends."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest

from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import HANG_GUARD_S, SMALLEST_CONFIG, ConfiguredServer, one_server

DRAIN_S = 3
STREAMS = 16
LONG = 1900  # tokens, which take longer than DRAIN_S on the CPU
SHARED_MEMORY = Path("/dev/shm")
QUESTION: Any = [{"role": "user", "content": "Write for a long time."}]


def crash(process: psutil.Process, url: str) -> None:
    with suppress(httpx.TransportError):
        httpx.get(f"{url}/crash", timeout=HANG_GUARD_S)


# A middleware of the user that ends the API server with an exception.
CRASH = """
import asyncio
import sys

class Crash:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope.get("path") == "/crash":
            # uvicorn answers exceptions of a request with 500; this one ends the event loop.
            asyncio.get_running_loop().call_soon(sys.exit, 7)
            await asyncio.sleep(3600)
        await self.app(scope, receive, send)
"""


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended. A container's first process may not collect orphans, which stay zombies."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Target:
    """A running server, its processes and its audit record."""

    def __init__(self, server: ConfiguredServer) -> None:
        self.url = server.url
        self.folder = server.file.parent
        assert server.server is not None and server.server.process is not None
        self.process = server.server.process
        self.main = psutil.Process(server.pid)
        self.processes = [self.main, *self.main.children(recursive=True)]

    def named(self, name: str) -> psutil.Process:
        """Return the first process with this title, such as `EngineCore`."""
        return next(process for process in self.processes if name in " ".join(process.cmdline()))

    def seconds_until_gone(self) -> float:
        """Wait until no process is left."""
        started = time.monotonic()
        assert wait_for(lambda: all(has_ended(process) for process in self.processes)), self.processes
        self.process.wait()
        return time.monotonic() - started

    def outcomes(self) -> dict[str, dict[str, Any] | None]:
        """Return the outcome of each recorded decision."""
        files = (self.folder / "audit").glob("*.jsonl")
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        outcomes = {line["id"]: line for line in lines if line["type"] == "outcome"}
        return {line["id"]: outcomes.get(line["id"]) for line in lines if line["type"] == "decision"}


@contextmanager
def target(models: DemoModels, folder: Path, *, api_servers: int = 1, flags: Sequence[str] = ()) -> Iterator[Target]:
    config = SMALLEST_CONFIG.replace("router: {", f"router: {{drain_s: {DRAIN_S}, audit: {{path: audit, scope: all}}, ")
    (folder / "crashing.py").write_text(CRASH)
    flags = [*FLAGS, "--api-server-count", str(api_servers), *flags]
    with one_server(models, folder, config, flags, {"PYTHONPATH": os.pathsep.join([str(folder), *paths()])}) as server:
        target = Target(server)
        try:
            yield target
        finally:
            for process in target.processes:
                if not has_ended(process):
                    process.kill()


def paths() -> list[str]:
    return [path] if (path := os.environ.get("PYTHONPATH")) else []


def chat(url: str, started: Callable[[], None]) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=HANG_GUARD_S)
    try:
        for chunk in client.chat.completions.create(
            model="auto", messages=QUESTION, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
        ):
            started()
            if chunk.choices[0].finish_reason:
                return str(chunk.choices[0].finish_reason)
    except openai.APIError as error:
        return error.message
    return "ended without a reason"


def responses(url: str, started: Callable[[], None]) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=HANG_GUARD_S)
    number = -1
    for event in client.responses.create(
        model="base", input="Write for a long time.", max_output_tokens=LONG, stream=True
    ):
        started()
        assert event.sequence_number == number + 1
        number = event.sequence_number
        if event.type == "error":
            return event.message
        if event.type in ("response.completed", "response.incomplete"):
            return event.type
    return "ended without a reason"


def messages(url: str, started: Callable[[], None]) -> str:
    client = anthropic.Anthropic(base_url=url, api_key="-", max_retries=0, timeout=HANG_GUARD_S)
    try:
        for event in client.messages.create(model="auto", messages=QUESTION, max_tokens=LONG, stream=True):
            started()
            if event.type == "message_stop":
                return event.type
    except anthropic.APIStatusError as error:
        return error.message
    return "ended without a reason"


def plain(url: str, started: Callable[[], None]) -> str:
    """Send a request for the base model, without a stream."""
    started()
    body = {"model": "base", "messages": QUESTION, "max_tokens": LONG, "ignore_eos": True}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=HANG_GUARD_S)
    answer = response.json()
    return answer["error"]["message"] if response.status_code == 503 else answer["choices"][0]["finish_reason"]


COMPLETE = {"length", "stop", "response.completed", "response.incomplete", "message_stop"}


def open_streams(url: str, pool: ThreadPoolExecutor) -> list[Future[str]]:
    """Send requests, and return when all of them are running."""
    started = [threading.Event() for _ in range(STREAMS)]
    kinds = (chat, responses, messages, chat, plain)
    requests = [pool.submit(kinds[number % len(kinds)], url, event.set) for number, event in enumerate(started)]
    for event in started:
        assert event.wait(HANG_GUARD_S)
    return requests


def assert_ended(requests: Sequence[Future[str]]) -> list[str]:
    """Check that every request finished or received the error of the shutdown."""
    results = [request.result(HANG_GUARD_S) for request in requests]
    assert all(result in COMPLETE or "shutting down" in result for result in results), results
    return results


def assert_refused_with_503(url: str) -> None:
    """Check what a load balancer and a new client see while the server drains."""
    assert wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
    assert httpx.get(f"{url}/v1/router/health").json()["status"] == "draining"
    assert httpx.get(f"{url}/metrics").status_code == 200
    refused = httpx.post(f"{url}/v1/chat/completions", json={"model": "auto", "messages": QUESTION})
    assert refused.status_code == 503
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + HANG_GUARD_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("api_servers", [1, 2])
def test_sigterm_drains_the_server(models: DemoModels, tmp_path: Path, full: bool, api_servers: int) -> None:
    if api_servers > 1 and not full:
        pytest.skip("several API servers: --full")
    with target(models, tmp_path, api_servers=api_servers) as server, ThreadPoolExecutor(STREAMS) as pool:
        requests = open_streams(server.url, pool)
        server.main.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert_refused_with_503(server.url)
        results = assert_ended(requests)
        ended_s = time.monotonic() - sent
        server.seconds_until_gone()
        gone_s = time.monotonic() - sent
        assert server.process.returncode == 0
        outcomes = server.outcomes()
        assert len(outcomes) == STREAMS and None not in outcomes.values()
        print(f"{api_servers} API servers: {results}, ended after {ended_s:.1f} s, processes after {gone_s:.1f} s")
        if full:
            assert ended_s < DRAIN_S + 2 and gone_s < DRAIN_S + 12


@pytest.mark.parametrize("api_servers", [1, 2])
def test_second_signal_ends_the_requests(models: DemoModels, tmp_path: Path, full: bool, api_servers: int) -> None:
    if not full:
        pytest.skip("a server of its own: --full")
    flags = ["--shutdown-timeout", str(HANG_GUARD_S * 10)]
    with (
        target(models, tmp_path, api_servers=api_servers, flags=flags) as server,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        # A step of the engine that never ends.
        requests = open_streams(server.url, pool)
        server.named("Worker").suspend()
        server.main.send_signal(signal.SIGTERM)
        assert wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        server.main.send_signal(signal.SIGTERM)
        assert any("shutting down" in result for result in assert_ended(requests))
        server.named("Worker").resume()
        print(f"{api_servers} API servers: processes gone {server.seconds_until_gone():.1f} s after the second signal")
        assert server.process.returncode == 0 and None not in server.outcomes().values()


DEATHS: dict[str, Callable[[psutil.Process, str], object]] = {
    "SIGKILL": lambda process, url: process.send_signal(signal.SIGKILL),
    "SIGBUS": lambda process, url: process.send_signal(signal.SIGBUS),
    "exception": crash,
}


@pytest.mark.parametrize(
    ("api_servers", "death", "process"),
    [
        (1, "SIGKILL", ""),
        (1, "SIGBUS", ""),
        (1, "exception", ""),
        (2, "SIGKILL", ""),
        (2, "SIGKILL", "APIServer"),
        (2, "SIGBUS", "APIServer"),
        (2, "exception", "APIServer"),
    ],
)
def test_no_process_is_left_when_an_api_server_dies(
    models: DemoModels, tmp_path: Path, full: bool, api_servers: int, death: str, process: str
) -> None:
    if not full and (api_servers, death) != (1, "SIGKILL"):
        pytest.skip("a server of its own: --full")
    before = set(SHARED_MEMORY.iterdir())
    flags = ["--middleware", "crashing.Crash"]
    with (
        target(models, tmp_path, api_servers=api_servers, flags=flags) as server,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        requests = [pool.submit(plain, server.url, lambda: None) for _ in range(4)]
        time.sleep(1)  # the engine is generating
        DEATHS[death](server.named(process) if process else server.main, server.url)
        gone_s = server.seconds_until_gone()
        left = set(SHARED_MEMORY.iterdir()) - before
        print(f"{api_servers} API servers, {death} of {process or 'the main process'}: all gone after {gone_s:.1f} s")
        for request in requests:
            request.exception(HANG_GUARD_S)
        if full:
            # If one API server dies, vLLM's main process gives the other one 5 s, and then the engine 5 s.
            assert gone_s < (13 if process else 10)
            assert not left, "shared memory is left"


def test_no_process_is_left_when_the_server_is_killed_while_it_starts(models: DemoModels, tmp_path: Path) -> None:
    """The engine has not loaded plugins yet."""
    file = tmp_path / "config.yaml"
    file.write_text(SMALLEST_CONFIG)
    arguments = [str(models.base), "--served-model-name", "base", "--router-config", str(file), *FLAGS]
    with Server(arguments, log=tmp_path / "server.log", directory=tmp_path) as server:
        main, engines = psutil.Process(server.pid), []

        def has_started_engine() -> bool:
            children = main.children()
            engines[:] = [process for process in children if "multiprocessing.spawn" in " ".join(process.cmdline())]
            return bool(engines)

        assert wait_for(has_started_engine)
        main.kill()
        assert wait_for(lambda: all(has_ended(process) for process in engines)), engines
