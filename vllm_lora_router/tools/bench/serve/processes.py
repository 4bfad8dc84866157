"""What processes take: seconds of a processor, and memory at the most."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_ENGINE = "EngineCore"  # what vLLM calls the process that runs the model
_TRACKER = "resource_tracker"


def of_server(name: str, pid: int) -> dict[str, psutil.Process]:
    """A server's processes by what they are; those of vLLM are its API server and its engine."""
    whole = psutil.Process(pid)
    found = {name: whole}
    for child in whole.children(recursive=True):
        said = " ".join([child.name(), *child.cmdline()])
        if _TRACKER not in said:
            what = "engine" if _ENGINE in said else child.name()
            found[_free(f"{name}, {what}", found)] = child
    return found


def cpu_seconds(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """What each has taken of a processor since it began, user and system; in hundredths of a second."""
    taken = {}
    for name, process in processes.items():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            taken[name] = times.user + times.system
    return taken


def peak_mib(process: psutil.Process) -> float:
    """The most memory that a process has had at once; shared pages count in each."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return process.memory_info().rss / 2**20


@contextmanager
def alone(processes: Mapping[str, psutil.Process], others: Iterable[psutil.Process]) -> Iterator[None]:
    """Lets processes run while the others are held, and holds them, too, when it ends.

    vLLM's processes look for work for a second after the last without a pause (`SpinCondition`), and those of several
    servers are bound to the same cores. A server that waits for its turn would take them from the one that has it.
    """
    _signal(others, signal.SIGSTOP)
    let_go(processes.values())
    try:
        yield
    finally:
        _signal(processes.values(), signal.SIGSTOP)


def let_go(processes: Iterable[psutil.Process]) -> None:
    """Lets processes that were held go on."""
    _signal(processes, signal.SIGCONT)


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # whose requests fail, and are counted
            os.kill(process.pid, number)


def itself() -> dict[str, psutil.Process]:
    """The process that asks."""
    return {"client": psutil.Process(os.getpid())}


def _free(name: str, taken: Mapping[str, object]) -> str:
    number = 2
    found = name
    while found in taken:
        found, number = f"{name} {number}", number + 1
    return found
