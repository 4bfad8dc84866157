"""Deferred work: bookkeeping that runs on the event loop shortly after the request that caused it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("vllm_lora_router.observability")

# While a process waits for its engine, its code leaves the processor's caches. Recording a decision right after a
# request wakes the process takes ten times as long as recording it right after another decision.
DELAY_S = 0.1
MAX_PENDING = 64  # calls that wait; a limit, because they hold user text
MAX_PER_ITERATION = 16  # calls in one event-loop iteration, about half a millisecond


class DeferredWork:
    """A queue of calls that run together, in order. Without an event loop each call runs immediately."""

    def __init__(self) -> None:
        self._pending: deque[Callable[[], None]] = deque()
        self._timer: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the timer's loop

    def add(self, call: Callable[[], None]) -> None:
        """Queue a call, to run within `DELAY_S`."""
        self._pending.append(call)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.run_now()
            return
        if len(self._pending) == MAX_PENDING:
            self._start_timer(loop, 0)
        elif self._timer is None or self._loop is not loop:
            self._start_timer(loop, DELAY_S)

    def run_now(self) -> None:
        """Run all pending calls."""
        self._cancel_timer()
        while self._pending:
            self._run_next()

    def _run_some(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for _ in range(min(MAX_PER_ITERATION, len(self._pending))):
            self._run_next()
        if self._pending:
            self._start_timer(loop, 0)

    def _run_next(self) -> None:
        try:
            self._pending.popleft()()
        except Exception:
            logger.exception("failed to record a decision or its outcome; the other records are not affected")

    def _start_timer(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self._cancel_timer()
        self._loop = loop
        self._timer = (
            loop.call_later(delay_s, self._run_some, loop) if delay_s else loop.call_soon(self._run_some, loop)
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
