"""Schedule requests onto the engine's LoRA slots when more adapters are in use than there are slots.

vLLM lets requests of adapters that have a slot pass all other requests, without a limit. Here a request waits in front
of the engine until its adapter has a slot, in the order in which adapters began to wait. When an adapter has waited for
`max_wait_s`, the adapter that has run longest accepts no new requests until it runs none, which frees its slot.
"""

import asyncio
import fcntl
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from vllm_lora_router.coordination.repeat import repeat
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import UsageTable

logger = logging.getLogger("vllm_lora_router.adapters")

LOCK = "slots"
POLL_S = 0.02  # interval of checks whether another process has freed a slot


class SlotScheduler:
    """Schedules the device's slots across all processes.

    Under data parallelism every engine has the same number of slots, and the router does not know which engine serves a
    request. So the scheduler counts the slots of one engine.
    """

    def __init__(self, limit: int, max_wait_s: float, usage: UsageTable, run: RunDirectory) -> None:
        """
        Args:
            limit: number of slots (`--max-loras`).
            max_wait_s: time that an adapter waits before another one's slot is freed for it.
        """
        self.limit = limit
        self.max_wait_s = max_wait_s
        self._usage = usage
        self._lock = run.open_lock(LOCK)  # only the event loop takes it
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}  # in the order in which versions began to wait
        self._poll: asyncio.Task[None] | None = None

    async def acquire(self, version: int) -> None:
        """Wait until a request of `version` may run. Call `release` after each call that was not cancelled."""
        if self._try_start(version):
            return
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(version, deque()).append(started)
        self._update_waiting_since(version)
        self._start_polling()
        try:
            await started
        except asyncio.CancelledError:
            if started.done() and not started.cancelled():
                self.release(version)
            else:
                self._cancel_wait(version, started)
            raise

    def release(self, version: int) -> None:
        """Record that a request of `version` has ended."""
        use = self._usage.use(version)
        use.running -= 1
        if not use.running:
            use.running_since = 0.0
        self._usage.write(version)
        if not use.running:
            with suppress(OSError):  # the request has ended whatever happens, and the lock is tried again
                self._start_waiting()

    @property
    def running(self) -> frozenset[int]:
        """The versions that have a slot, as far as that can be known from outside of the engine."""
        with self._locked():
            return frozenset(self._running_and_waiting()[0])

    def _try_start(self, version: int) -> bool:
        if self._usage.is_only_process and not self._waiting:
            uses = self._usage.uses
            if (version in uses and uses[version].running) or sum(
                use.running > 0 for use in uses.values()
            ) < self.limit:
                self._start_request(version)
                return True
            return False
        with self._locked():
            running, waiting = self._running_and_waiting()
            if not may_run(version, running, waiting, self.limit, self.max_wait_s, time.monotonic()):
                return False
            self._start_request(version)
            return True

    def _start_waiting(self) -> None:
        """Start the waiting requests that may run now, in the order in which their versions began to wait."""
        if not self._waiting:
            return
        with self._locked():
            # A version that gets its slot may reopen another one that was closed to free that slot.
            while any(self._start_version(version) for version in list(self._waiting)):
                pass
        self._start_polling()

    def _start_version(self, version: int) -> bool:
        running, waiting = self._running_and_waiting()
        if not may_run(version, running, waiting, self.limit, self.max_wait_s, time.monotonic()):
            return False
        for started in self._waiting.pop(version):
            if not started.done():
                started.set_result(None)
                self._start_request(version)
        self._update_waiting_since(version)
        return True

    def _start_request(self, version: int) -> None:
        use = self._usage.use(version)
        use.running += 1
        use.running_since = use.running_since or time.monotonic()
        self._usage.write(version)

    def _update_waiting_since(self, version: int) -> None:
        use = self._usage.use(version)
        use.waiting_since = (use.waiting_since or time.monotonic()) if version in self._waiting else 0.0
        self._usage.write(version)

    def _cancel_wait(self, version: int, started: asyncio.Future[None]) -> None:
        queue = self._waiting.get(version)
        if queue is not None and started in queue:
            queue.remove(started)
            if not queue:
                del self._waiting[version]
                self._update_waiting_since(version)
        with suppress(OSError):
            self._start_waiting()

    def _start_polling(self) -> None:
        # Another process does not announce that it has freed a slot. With a single process no polling is needed: its
        # own requests start the waiting ones when they end.
        if self._waiting and not self._usage.is_only_process and (self._poll is None or self._poll.done()):
            step = self._poll_other_processes
            self._poll = asyncio.ensure_future(repeat("adapters: starting waiting requests", step, logger))

    async def _poll_other_processes(self) -> None:
        await asyncio.sleep(POLL_S)
        self._start_waiting()
        if not self._waiting and self._poll is not None:
            self._poll.cancel()
            self._poll = None  # a request that has to wait before the task ends starts another one

    def _running_and_waiting(self) -> tuple[dict[int, float], dict[int, float]]:
        running: dict[int, float] = {}
        waiting: dict[int, float] = {}
        for process in self._usage.all_processes():
            for version, use in process.uses:
                if use.running:
                    running[version] = min(use.running_since, running.get(version, use.running_since))
                if use.waiting_since:
                    waiting[version] = min(use.waiting_since, waiting.get(version, use.waiting_since))
        return running, waiting

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._usage.is_only_process:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def may_run(
    version: int,
    running: Mapping[int, float],
    waiting: Mapping[int, float],
    limit: int,
    max_wait_s: float,
    now: float,
) -> bool:
    """Return whether a request of `version` may run now.

    Args:
        running: versions with requests in the engine, each with the time since which it has run without a pause.
        waiting: versions whose requests wait for a slot, each with the time since which it waits.
        limit: number of versions that may run at once.
        max_wait_s: waiting time after which the version that has run longest is closed to new requests.
        now: the current time, by the clock of the other times.
    """
    without_slot = {other: since for other, since in waiting.items() if other not in running}
    free = limit - len(running)
    if version in running:
        overdue = sum(now - since > max_wait_s for since in without_slot.values())
        return version not in _longest(running, overdue - free)
    turn = (waiting.get(version, now), version)
    return free > sum(other != version and (since, other) < turn for other, since in without_slot.items())


def _longest(running: Mapping[int, float], count: int) -> Iterable[int]:
    return sorted(running, key=lambda version: (running[version], version))[: max(count, 0)]
