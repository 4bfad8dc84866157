"""Call file systems that may stop answering, such as network mounts, so that a call that hangs delays nothing else."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger("vllm_lora_router.adapters")

T = TypeVar("T")

TIMEOUT_S = 5.0  # a file system answers a call about a few files within this time
MIN_BYTES_PER_S = 5_000_000  # the slowest disk that files are copied from
LONG_TIMEOUT_S = 60.0  # for calls that list or delete many files
THREADS = 8  # for one file system: a call that hangs keeps its thread
PROBE_S = 1.0  # pause between probes of a file system that did not answer


class NotAnsweringError(OSError):
    """A file system does not answer, so nothing is known about its files."""


def copy_timeout_s(size_bytes: int) -> float:
    """Return the time limit of a call that reads this much."""
    return TIMEOUT_S + size_bytes / MIN_BYTES_PER_S


def run_in_daemon_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a call in a new thread. Unlike with `asyncio.to_thread`, the process can exit while the call hangs."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(set_outcome: Callable[[Any], None], value: object) -> None:
        if not outcome.done():
            set_outcome(value)

    def run() -> None:
        try:
            delivery = deliver, outcome.set_result, call()
        except BaseException as error:
            delivery = deliver, outcome.set_exception, error
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(*delivery)

    threading.Thread(target=run, name="lora-router-disk", daemon=True).start()
    return outcome


class Disk:
    """The calls to one file system, in a limited number of threads.

    A call that takes longer than `TIMEOUT_S` starts a probe. If the probe hangs too, or if all threads hang, calls fail
    at once until a probe is answered in time.
    """

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: a folder of the file system; it need not exist.
        """
        self.root = root
        self.is_answering = True
        self._slots = asyncio.Semaphore(THREADS)
        self._running: dict[asyncio.Future[Any], float] = {}  # the end of each call's time limit, by the loop's clock
        self._limits: set[asyncio.Timeout] = set()  # of the callers
        self._check: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why no calls are made; None if the file system answers."""
        return None if self.is_answering else self._problem

    async def run(self, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """Return the result of a call. A call continues in its thread if its caller is cancelled.

        Args:
            timeout_s: time limit from the moment that a thread is free; None: `TIMEOUT_S`.

        Raises:
            NotAnsweringError: the file system did not answer in time, or is known not to answer.
        """
        if not self.is_answering:
            raise NotAnsweringError(self._problem)
        limit = asyncio.timeout(None)
        self._limits.add(limit)
        try:
            async with limit:
                await self._slots.acquire()
                ends_at = asyncio.get_running_loop().time() + (TIMEOUT_S if timeout_s is None else timeout_s)
                thread = self._start(call, ends_at)
                limit.reschedule(ends_at)
                return await asyncio.shield(thread)
        except TimeoutError:
            if not limit.expired():
                raise  # the call's own error
            raise NotAnsweringError(self._problem) from None
        finally:
            self._limits.discard(limit)

    @property
    def _problem(self) -> str:
        return f"the file system of {self.root} does not answer; check its mount"

    @property
    def _all_threads_hang(self) -> bool:
        now = asyncio.get_running_loop().time()
        return len(self._running) == THREADS and all(ends_at <= now for ends_at in self._running.values())

    def _start(self, call: Callable[[], T], ends_at: float) -> asyncio.Future[T]:
        try:
            thread = run_in_daemon_thread(call)
        except RuntimeError as error:  # this user or machine can start no more threads
            self._slots.release()
            raise NotAnsweringError(f"no thread can be started to read {self.root} ({error})") from error
        loop = asyncio.get_running_loop()
        # Not in the caller, which may be cancelled while its call hangs.
        checks = [loop.call_at(at, self._start_check) for at in (loop.time() + TIMEOUT_S, ends_at)]

        def end(_: object) -> None:
            for check in checks:
                check.cancel()
            del self._running[thread]
            self._slots.release()

        self._running[thread] = ends_at
        thread.add_done_callback(end)
        return thread

    def _start_check(self) -> None:
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(self._check_answers())

    async def _check_answers(self) -> None:
        """Refuse calls from the time at which the file system is found not to answer until it answers again."""
        probe = self._probe()
        if await _ends_in_time(probe) and not self._all_threads_hang:
            return
        self.is_answering = False
        logger.warning("adapters: %s", self._problem)
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(now)
        while True:
            await asyncio.wait({probe})  # one probe at a time, so that they do not add up
            with suppress(RuntimeError):  # no thread can be started now
                probe = self._probe()
                # An answer that came late is no sign that the next one comes in time.
                if await _ends_in_time(probe) and not self._all_threads_hang:
                    break
            await asyncio.sleep(PROBE_S)
        self.is_answering = True
        logger.info("adapters: the file system of %s answers again", self.root)

    def _probe(self) -> asyncio.Future[object]:
        # Network file systems do not cache the answer to this call.
        return run_in_daemon_thread(partial(_statvfs, self.root))


async def _ends_in_time(call: asyncio.Future[object]) -> bool:
    return bool((await asyncio.wait({call}, timeout=TIMEOUT_S))[0])


def _statvfs(root: Path) -> None:
    with suppress(OSError):  # an error is an answer: calls do not hang
        os.statvfs(root)
