"""Processes of a server end when the process that started them has died."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.server.vllm import parent_watch

HANG_GUARD_S = 60

# A server with an engine that ignores SIGTERM, as during a long step, and the engine's worker.
SERVER = """
import gc, multiprocessing, os, signal, sys, time
from vllm_lora_router.server.vllm import parent_watch

spawn = multiprocessing.get_context(sys.argv[1] if len(sys.argv) > 1 else "spawn")

def work():
    parent_watch.load_plugin()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(1, f"{os.getpid()}\\n".encode())  # one write: two processes share the pipe
    while True:
        time.sleep(0.1)

def run_engine(method):
    spawn.Process(target=work).start()
    work()

def start():
    spawn.Process(target=run_engine, args=(None,)).start()
    gc.collect()

if __name__ == "__main__":
    start()
    time.sleep(1000)
"""


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended. A container's first process may not collect orphans, which stay zombies."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Processes:
    """A main process, and the processes that it started."""

    def __init__(self, folder: Path, method: str, plugins: str) -> None:
        script = folder / "server.py"
        script.write_text(SERVER)
        environment = {**os.environ, "VLLM_PLUGINS": plugins}
        self.main = subprocess.Popen(
            [sys.executable, str(script), method], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.main.stdout is not None
        self.children = [psutil.Process(int(self.main.stdout.readline())) for _ in range(2)]

    def are_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not all(has_ended(process) for process in self.children):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        for process in (self.main, *self.children):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.main.wait()


@pytest.fixture
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path, *request.param)
    yield processes
    processes.close()


@pytest.mark.parametrize(
    "processes", [("spawn", "lora_router"), ("fork", "other,lora_router")], indirect=True, ids=["spawn", "fork"]
)
def test_processes_end_after_their_parent_was_killed(processes: Processes) -> None:
    time.sleep(2 * parent_watch.POLL_S)
    assert not any(has_ended(process) for process in processes.children), "nothing ends while the parent lives"
    processes.main.kill()
    assert processes.are_gone(HANG_GUARD_S)


@pytest.mark.parametrize("processes", [("spawn", "other")], indirect=True)
def test_servers_without_the_router_are_not_watched(processes: Processes) -> None:
    processes.main.kill()
    time.sleep(2 * (parent_watch.POLL_S + parent_watch.KILL_AFTER_S))
    assert not any(has_ended(process) for process in processes.children)


def test_process_that_multiprocessing_did_not_start_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "lora_router")
    parent_watch.load_plugin()
    assert parent_watch._thread is None
