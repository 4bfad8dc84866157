"""Calls to a file system that hangs: they fail, their threads are limited, and the process can exit."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime import disk_calls
from vllm_lora_router.adapters.runtime.disk_calls import THREADS, Disk, NotAnsweringError

from .conftest import until


@dataclass
class Mount:
    """A file system whose calls hang while `answers` is not set."""

    answers: threading.Event = field(default_factory=threading.Event)
    started: int = 0
    running: int = 0
    probes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self) -> str:
        with self.lock:
            self.started += 1
            self.running += 1
        self.answers.wait()
        with self.lock:
            self.running -= 1
        return "answer"


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    """A file system that hangs, with its probe."""
    mount = Mount()

    def statvfs(root: Path) -> None:
        mount.probes += 1
        mount.answers.wait()

    monkeypatch.setattr(os, "statvfs", statvfs)
    # Long enough for a machine under load: calls that do not hang must not take longer.
    monkeypatch.setattr(disk_calls, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(disk_calls, "PROBE_S", 0.01)
    yield mount
    mount.answers.set()


@pytest.fixture
def disk() -> Disk:
    return Disk(Path("/mnt/adapters"))


PROBLEM = "the file system of /mnt/adapters does not answer; check its mount"


async def test_calls_fail_at_once_until_the_file_system_answers(
    mount: Mount, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(NotAnsweringError) as raised:
        await disk.run(mount.call)
    assert str(raised.value) == PROBLEM
    await until(lambda: not disk.is_answering)
    assert disk.problem == PROBLEM
    for _ in range(100):
        with pytest.raises(NotAnsweringError):
            await disk.run(mount.call)
    assert (mount.started, mount.probes) == (1, 1)  # a probe that hangs is not repeated
    mount.answers.set()
    await until(lambda: disk.is_answering)
    assert await disk.run(mount.call) == "answer" and disk.problem is None
    assert caplog.messages == [
        f"adapters: {PROBLEM}",
        "adapters: the file system of /mnt/adapters answers again",
    ]


async def test_hanging_calls_take_a_limited_number_of_threads_and_no_caller_waits_for_them(
    mount: Mount, disk: Disk
) -> None:
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(disk.run(mount.call) for _ in range(200)), return_exceptions=True)
    assert {type(result) for result in results} == {NotAnsweringError}
    assert mount.running == mount.started == THREADS
    mount.answers.set()
    await until(lambda: disk.is_answering)
    assert await asyncio.gather(*(disk.run(mount.call) for _ in range(200))) == ["answer"] * 200


async def test_callers_that_are_cancelled_leave_no_later_caller_waiting(mount: Mount, disk: Disk) -> None:
    callers = [asyncio.ensure_future(disk.run(mount.call, 60)) for _ in range(THREADS)]
    await until(lambda: mount.running == THREADS)
    for caller in callers:
        caller.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(NotAnsweringError):
            await disk.run(mount.call, 60)
    assert mount.started == THREADS


async def test_slow_call_to_a_file_system_that_answers_is_awaited(
    mount: Mount, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda root: probed.set())
    slow = asyncio.ensure_future(disk.run(mount.call, 60))
    await until(probed.is_set)
    await asyncio.sleep(0.1)
    assert disk.is_answering and await disk.run(lambda: "other") == "other"
    mount.answers.set()
    assert await slow == "answer"


async def test_file_system_on_which_all_threads_hang_does_not_answer_although_its_probe_does(
    mount: Mount, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda root: None)
    async with asyncio.timeout(60):
        await asyncio.gather(*(disk.run(mount.call) for _ in range(THREADS + 1)), return_exceptions=True)
    await until(lambda: not disk.is_answering)
    mount.answers.set()
    await until(lambda: disk.is_answering)


async def test_file_system_is_probed_again_after_no_thread_could_be_started(
    mount: Mount, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotAnsweringError):
        await disk.run(mount.call)
    await until(lambda: not disk.is_answering)
    start = threading.Thread.start
    failures: list[threading.Thread] = []

    def fail_once(thread: threading.Thread) -> None:
        if not failures:
            failures.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    mount.answers.set()
    await until(lambda: disk.is_answering)
    assert failures
    failures.clear()
    with pytest.raises(NotAnsweringError, match="no thread can be started to read /mnt/adapters"):
        await disk.run(mount.call)
    assert await disk.run(mount.call) == "answer"


async def test_errors_of_a_call_are_those_of_the_call(disk: Disk) -> None:
    def fail(error: Exception) -> None:
        raise error

    for error in (TimeoutError(110, "Connection timed out"), OSError(5, "Input/output error"), KeyError("x")):
        with pytest.raises(type(error)) as raised:
            await disk.run(lambda error=error: fail(error))
        assert raised.value is error
    assert disk.is_answering


def test_process_exits_while_a_call_hangs() -> None:
    program = """
import asyncio, signal, threading
from pathlib import Path
from vllm_lora_router.adapters.runtime.disk_calls import Disk

async def main():
    hung = threading.Event()
    task = asyncio.ensure_future(Disk(Path("/")).run(hung.wait))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await asyncio.sleep(0.1)
    print("hangs", flush=True)
    await stopped.wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"hangs\n"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
