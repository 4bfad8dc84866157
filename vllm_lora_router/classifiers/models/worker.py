"""The thread that runs a model, so that forward passes do not block the event loop."""

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vllm_lora_router.classifiers import UnavailableError

T = TypeVar("T")

# A forward pass that takes longer than this never returns: the driver hangs or a library has a deadlock.
STUCK_S = 10.0


class Worker:
    """Runs calls one at a time in the order of submission. A call that is cancelled before it starts never runs.

    The thread ends when the last reference to the worker is gone. A process that exits waits for the running call, but
    at most `STUCK_S`: a call that never returns would prevent the server from stopping.
    """

    def __init__(self, name: str, *, prepare: Callable[[], None] = lambda: None) -> None:
        """Start the thread.

        Args:
            prepare: Runs once on the thread before the first call.
        """
        self._thread = _Thread(name, prepare)
        self._thread.start()
        weakref.finalize(self, self._thread.end)

    @property
    def is_alive(self) -> bool:
        """Return whether the thread runs. If it has ended, calls wait forever."""
        return self._thread.is_alive()

    @property
    def stuck_s(self) -> float | None:
        """Return the seconds since the running call started if it is stuck, otherwise None."""
        running_s = self._thread.running_s
        return running_s if running_s > STUCK_S else None

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Return a future for the result of a call."""
        future: Future[T] = Future()
        self._thread.calls.put((future, call))
        return future

    def run_blocking(self, call: Callable[[], T]) -> T:
        """Return the result of a call. Blocks, so it must not be used on an event loop."""
        return self.submit(call).result()

    def close(self) -> None:
        """End the thread after the calls that are already queued."""
        self._thread.end()


_Calls = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class _Thread(threading.Thread):
    """The thread of a worker. It keeps no reference to the worker, so that both can end."""

    def __init__(self, name: str, prepare: Callable[[], None]) -> None:
        super().__init__(name=f"lora-router-{name}", daemon=True)
        self.calls: _Calls = queue.SimpleQueue()
        self.ends_now = False  # whether queued calls are dropped
        self._prepare = prepare
        self._running_since: float | None = None  # `time.monotonic()`
        _THREADS.add(self)

    @property
    def running_s(self) -> float:
        """Return the seconds since the running call started; 0 if none runs."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def end(self) -> None:
        self.calls.put(None)

    def run(self) -> None:
        failure: Exception | None = None
        try:
            self._prepare()
        except BaseException as error:
            failure = as_exception(error)  # fails every call, because a thread that ends would leave them waiting
        while (item := self.calls.get()) is not None and not self.ends_now:
            future, call = item
            if future.set_running_or_notify_cancel():
                self._running_since = time.monotonic()
                try:
                    future.set_result(call()) if failure is None else future.set_exception(failure)
                except BaseException as error:
                    future.set_exception(as_exception(error))
                self._running_since = None
            del item, future, call  # an idle worker keeps no reference to a request


_THREADS: "weakref.WeakSet[_Thread]" = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """Wait for running calls, because torch aborts the process when a call returns to an interpreter that has ended."""
    threads = [thread for thread in list(_THREADS) if thread.is_alive()]
    for thread in threads:
        thread.ends_now = True
        thread.end()
    for thread in threads:
        thread.join(max(STUCK_S - thread.running_s, 0.0))


def as_exception(error: BaseException) -> Exception:
    """Return an exception that fails one call: others, such as a panic of a Rust library, would end the event loop."""
    if isinstance(error, Exception):
        return error
    failure = UnavailableError(f"the model call failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def limit_cores(count: int) -> None:
    """Limit torch on the calling thread to a number of cores, because the engine on a CPU needs the other cores."""
    import torch

    torch.set_num_threads(count)
