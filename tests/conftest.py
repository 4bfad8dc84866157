"""A test that fails while the machine itself stands still is tried again: its times say nothing of what it tests.

Seen on virtual machines of two cores: while a model generated on the one core, nothing ran on the other for up to
eleven seconds, not even a process that only sleeps; a server's idle connections ran out, and no bound on a time held.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

STANDSTILL_S = 0.25
TRIES = 3

# In a process of its own: a test that keeps Python's interpreter lock is not the machine's fault. One thread a core:
# each core stands still by itself, and with it whatever happens to run there.
WATCH = f"""
import os, threading, time

def watch(core):
    os.sched_setaffinity(0, [core])
    last = time.monotonic()
    while True:
        time.sleep(0.02)
        now = time.monotonic()
        if now - last > {STANDSTILL_S}:
            os.write(1, f"{{now - last:.2f}}\\n".encode())  # whole: another core's thread writes too
        last = now

for core in os.sched_getaffinity(0):
    threading.Thread(target=watch, args=[core], daemon=True).start()
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.1)
"""


class Machine:
    """Whether it stood still since somebody last asked."""

    def __init__(self) -> None:
        self._watching = subprocess.Popen([sys.executable, "-c", WATCH], stdout=subprocess.PIPE)
        assert self._watching.stdout is not None
        self._said = self._watching.stdout.fileno()
        os.set_blocking(self._said, False)

    def stood_still(self, *, wait_s: float = 0.0) -> list[float]:
        """For how many seconds each time; the watcher, too, needs a moment until it runs again."""
        time.sleep(wait_s)
        try:
            return [float(line) for line in os.read(self._said, 65536).split()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        self._watching.kill()
        self._watching.communicate()


MACHINE = pytest.StashKey[Machine]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[MACHINE] = Machine()


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[MACHINE].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def stood_still(failure: BaseException | None) -> bool:
        if failure is None:
            return False
        found = config.stash[MACHINE].stood_still(wait_s=0.1)
        if found:
            print(
                f"the machine stood still for {', '.join(f'{seconds:g}' for seconds in found)} s: this is tried again"
            )
        return bool(found)

    for item in items:
        # Whoever got wrong weights got them, however slow the machine was.
        if item.get_closest_marker("once"):
            continue
        item.add_marker(pytest.mark.flaky(reruns=TRIES - 1, condition=stood_still))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[MACHINE].stood_still()  # what was before is no excuse
    return (yield)
