"""Who may run next when there are more adapters than slots.

vLLM lets requests of the adapters that are in a slot pass all others, for ever. Here a request waits in front of the
engine until its adapter has a slot, in the order in which adapters began to wait; and once one has waited `max_wait_s`,
the adapter that has run longest is closed to new requests until it runs none, which frees its slot.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import Board

LOCK = "slots"
POLL_S = 0.02  # how often to look whether another process freed a slot


class Slots:
    """The device's slots, counted over all processes.

    Under data parallelism every engine has as many, and which one a request goes to is not known: one engine's count.
    """

    def __init__(self, limit: int, max_wait_s: float, board: Board, run: RunDirectory) -> None:
        self.limit = limit
        self.max_wait_s = max_wait_s
        self._board = board
        self._run = run
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}  # in the order in which they began to wait
        self._poll: asyncio.Task[None] | None = None

    async def enter(self, version: int) -> None:
        """Returns when a request of `version` may run. Each must `leave`, but for one that was cancelled here."""
        if self._try(version):
            return
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(version, deque()).append(entered)
        self._mark(version)
        self._look_at_others()
        try:
            await entered
        except asyncio.CancelledError:
            if entered.done() and not entered.cancelled():
                self.leave(version)
            else:
                self._give_up(version, entered)
            raise

    def leave(self, version: int) -> None:
        use = self._board.use(version)
        use.running -= 1
        if not use.running:
            use.running_since = 0.0
        self._board.write(version)
        if not use.running:
            self._wake()

    @property
    def running(self) -> frozenset[int]:
        """The versions that have a slot, as far as it can be known from outside the engine."""
        with self._locked():
            return frozenset(self._view()[0])

    def _try(self, version: int) -> bool:
        if self._board.alone and not self._waiting:
            uses = self._board.uses
            if (version in uses and uses[version].running) or sum(
                use.running > 0 for use in uses.values()
            ) < self.limit:
                self._run_one(version)
                return True
            return False
        with self._locked():
            running, waiting = self._view()
            if not may_run(version, running, waiting, self.limit, self.max_wait_s, time.monotonic()):
                return False
            self._run_one(version)
            return True

    def _wake(self) -> None:
        """Lets in what may run now, the longest waiting first."""
        if not self._waiting:
            return
        with self._locked():
            # One that gets its slot may open another that was closed for it.
            while any(self._let_in(version) for version in list(self._waiting)):
                pass
        self._look_at_others()

    def _let_in(self, version: int) -> bool:
        running, waiting = self._view()
        if not may_run(version, running, waiting, self.limit, self.max_wait_s, time.monotonic()):
            return False
        for entered in self._waiting.pop(version):
            if not entered.done():
                entered.set_result(None)
                self._run_one(version)
        self._mark(version)
        return True

    def _run_one(self, version: int) -> None:
        use = self._board.use(version)
        use.running += 1
        use.running_since = use.running_since or time.monotonic()
        self._board.write(version)

    def _mark(self, version: int) -> None:
        use = self._board.use(version)
        use.waiting_since = (use.waiting_since or time.monotonic()) if version in self._waiting else 0.0
        self._board.write(version)

    def _give_up(self, version: int, entered: asyncio.Future[None]) -> None:
        queue = self._waiting.get(version)
        if queue is not None and entered in queue:
            queue.remove(entered)
            if not queue:
                del self._waiting[version]
                self._mark(version)
        self._wake()

    def _look_at_others(self) -> None:
        # Nobody says that another process freed a slot; whoever waits alone is woken by this process's own requests.
        if self._waiting and not self._board.alone and (self._poll is None or self._poll.done()):
            self._poll = asyncio.ensure_future(self._keep_looking())

    async def _keep_looking(self) -> None:
        while self._waiting:
            await asyncio.sleep(POLL_S)
            self._wake()

    def _view(self) -> tuple[dict[int, float], dict[int, float]]:
        running: dict[int, float] = {}
        waiting: dict[int, float] = {}
        for report in self._board.all():
            for version, use in report.uses:
                if use.running:
                    running[version] = min(use.running_since, running.get(version, use.running_since))
                if use.waiting_since:
                    waiting[version] = min(use.waiting_since, waiting.get(version, use.waiting_since))
        return running, waiting

    def _locked(self) -> AbstractContextManager[object]:
        return nullcontext() if self._board.alone else self._run.locked(LOCK)


def may_run(
    version: int,
    running: Mapping[int, float],
    waiting: Mapping[int, float],
    limit: int,
    max_wait_s: float,
    now: float,
) -> bool:
    """Whether a request of `version` may run now.

    Args:
        running: the versions with requests in the engine, and since when they have run without a pause.
        waiting: the versions whose requests wait for a slot, and since when.
        limit: how many versions may run at once.
    """
    without_slot = {other: since for other, since in waiting.items() if other not in running}
    free = limit - len(running)
    if version in running:
        overdue = sum(now - since > max_wait_s for since in without_slot.values())
        return version not in _longest(running, overdue - free)
    mine = (waiting.get(version, now), version)
    return free > sum(other != version and (since, other) < mine for other, since in without_slot.items())


def _longest(running: Mapping[int, float], count: int) -> Iterable[int]:
    return sorted(running, key=lambda version: (running[version], version))[: max(count, 0)]
