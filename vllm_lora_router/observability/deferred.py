"""What no request has to wait for."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("vllm_lora_router.record")

# A process that waits for its engine finds its code out of the processor's caches when a request wakes it, and what is
# written down of a decision then takes ten times what it takes right after another one.
SOON_S = 0.1
MOST = 64  # pieces that wait: they hold the users' words
AT_ONCE = 16  # pieces of one turn of the event loop, about half a millisecond


class Later:
    """Work that is done together with other such work, in its order; without an event loop it is done at once."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the timer's

    def add(self, work: Callable[[], None]) -> None:
        """Takes work, to be done in `SOON_S`."""
        self._waiting.append(work)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.now()
            return
        if len(self._waiting) == MOST:
            self._start(loop, 0)
        elif self._timer is None or self._loop is not loop:
            self._start(loop, SOON_S)

    def now(self) -> None:
        """Does all that waits, for who looks at what comes of it."""
        self._stop()
        while self._waiting:
            self._do_one()

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._do_one()
        if self._waiting:
            self._start(loop, 0)

    def _do_one(self) -> None:
        try:
            self._waiting.popleft()()
        except Exception:
            logger.exception("something that happened was not written down")  # and nothing else is lost

    def _start(self, loop: asyncio.AbstractEventLoop, in_s: float) -> None:
        self._stop()
        self._loop = loop
        self._timer = loop.call_later(in_s, self._go, loop) if in_s else loop.call_soon(self._go, loop)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
