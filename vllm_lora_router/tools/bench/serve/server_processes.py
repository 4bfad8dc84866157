"""Measure CPU time and peak memory of server processes, and pause and resume them."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_ENGINE = "EngineCore"  # vLLM's name for the process that runs the model
_TRACKER = "resource_tracker"


def server_processes(name: str, pid: int) -> dict[str, psutil.Process]:
    """Return a server's processes by role; vLLM has an API server and an engine."""
    server = psutil.Process(pid)
    processes = {name: server}
    for child in server.children(recursive=True):
        command = " ".join([child.name(), *child.cmdline()])
        if _TRACKER not in command:
            role = "engine" if _ENGINE in command else child.name()
            processes[_unused_name(f"{name}, {role}", processes)] = child
    return processes


def cpu_seconds(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Return each process's user and system CPU time since its start, with a resolution of 10 ms."""
    seconds = {}
    for name, process in processes.items():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[name] = times.user + times.system
    return seconds


def peak_mib(process: psutil.Process) -> float:
    """Return a process's peak resident memory; shared pages count in every process."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return process.memory_info().rss / 2**20


@contextmanager
def run_exclusively(processes: Mapping[str, psutil.Process], others: Iterable[psutil.Process]) -> Iterator[None]:
    """Run processes while the others are paused, and pause them too at the end.

    vLLM's processes busy-wait for a second after the last request (`SpinCondition`), and those of several servers are
    bound to the same cores, so an idle server would slow down the measured one.
    """
    _signal(others, signal.SIGSTOP)
    resume(processes.values())
    try:
        yield
    finally:
        _signal(processes.values(), signal.SIGSTOP)


def resume(processes: Iterable[psutil.Process]) -> None:
    """Resume paused processes."""
    _signal(processes, signal.SIGCONT)


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # its requests fail and are counted
            os.kill(process.pid, number)


def client_process() -> dict[str, psutil.Process]:
    """Return the client, which is this process."""
    return {"client": psutil.Process(os.getpid())}


def _unused_name(name: str, used: Mapping[str, object]) -> str:
    number = 2
    candidate = name
    while candidate in used:
        candidate, number = f"{name} {number}", number + 1
    return candidate
