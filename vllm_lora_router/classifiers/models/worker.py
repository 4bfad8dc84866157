"""The thread that runs a model, so that forward passes do not block the event loop."""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# A forward pass that takes longer than this never returns: the driver hangs or a library has a deadlock.
STUCK_S = 10.0


class Worker:
    """Runs calls one at a time in the order of submission. A call that is cancelled before it starts never runs.

    The thread ends when the last reference to the worker is gone. The process does not wait for the thread when it
    exits: a call that never returns would prevent the server from stopping.
    """

    def __init__(self, name: str, *, prepare: Callable[[], None] = lambda: None) -> None:
        """Start the thread.

        Args:
            prepare: Runs once on the thread before the first call.
        """
        self._calls: _Calls = queue.SimpleQueue()
        self._running = _RunningCall()
        threading.Thread(
            target=_run, args=(self._calls, self._running, prepare), name=f"lora-router-{name}", daemon=True
        ).start()
        weakref.finalize(self, self._calls.put, None)

    @property
    def stuck_s(self) -> float | None:
        """Return the seconds since the running call started if it is stuck, otherwise None."""
        since = self._running.since
        took_s = 0.0 if since is None else time.monotonic() - since
        return took_s if took_s > STUCK_S else None

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Return a future for the result of a call."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def run_blocking(self, call: Callable[[], T]) -> T:
        """Return the result of a call. Blocks, so it must not be used on an event loop."""
        return self.submit(call).result()

    def close(self) -> None:
        """End the thread after the calls that are already queued."""
        self._calls.put(None)


_Calls = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


@dataclass
class _RunningCall:
    since: float | None = None  # start time, as `time.monotonic()`


def _run(calls: _Calls, running: _RunningCall, prepare: Callable[[], None]) -> None:
    prepare()
    while (item := calls.get()) is not None:
        future, call = item
        if future.set_running_or_notify_cancel():
            running.since = time.monotonic()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            running.since = None
        del item, future, call  # an idle worker keeps no reference to a request


def limit_cores(count: int) -> None:
    """Limit torch on the calling thread to a number of cores, because the engine on a CPU needs the other cores."""
    import torch

    torch.set_num_threads(count)
