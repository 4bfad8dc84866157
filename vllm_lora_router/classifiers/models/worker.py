"""Where a model's forward passes run: a thread of its own, off the event loop."""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# A forward pass that has not returned by then never will: a driver that hangs, a deadlock in a library.
STUCK_S = 10.0


class Worker:
    """Runs calls one at a time in the order they came; a call that was given up before it began never runs.

    The thread ends with the last reference to this. Nothing waits for it at the process's end: one that never returns
    would keep the server from stopping.
    """

    def __init__(self, name: str, *, prepare: Callable[[], None] = lambda: None) -> None:
        """`prepare` runs once, on the thread, before the first call."""
        self._calls: _Calls = queue.SimpleQueue()
        self._under_way = _UnderWay()
        threading.Thread(
            target=_run, args=(self._calls, self._under_way, prepare), name=f"lora-router-{name}", daemon=True
        ).start()
        weakref.finalize(self, self._calls.put, None)

    @property
    def stuck_s(self) -> float | None:
        """For how long the call under way has not returned, when that is longer than any call takes."""
        since = self._under_way.since
        took_s = 0.0 if since is None else time.monotonic() - since
        return took_s if took_s > STUCK_S else None

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """The call's result, some time."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def run_blocking(self, call: Callable[[], T]) -> T:
        """The call's result, for those who are not on an event loop."""
        return self.submit(call).result()

    def close(self) -> None:
        """Ends the thread once the calls before are done."""
        self._calls.put(None)


_Calls = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


@dataclass
class _UnderWay:
    since: float | None = None  # `time.monotonic()`


def _run(calls: _Calls, under_way: _UnderWay, prepare: Callable[[], None]) -> None:
    prepare()
    while (found := calls.get()) is not None:
        future, call = found
        if future.set_running_or_notify_cancel():
            under_way.since = time.monotonic()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            under_way.since = None
        del found, future, call  # nothing of a request is kept while there is nothing to do


def limit_cores(count: int) -> None:
    """Keeps torch on the calling thread to so many cores: on a CPU the engine needs the others."""
    import torch

    torch.set_num_threads(count)
