"""Who may run when there are more adapters than slots: in turn, none for ever, and never more than there are slots."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lora_router.adapters.runtime.slot_scheduler import Slots, may_run
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import Board

from .conftest import beside, until

NOW = 100.0
MAX_WAIT_S = 2.0

A, B, C, D = range(2**20, 2**20 + 4)


def may(version: int, running: dict[int, float], waiting: dict[int, float], limit: int = 2) -> bool:
    return may_run(version, running, waiting, limit, MAX_WAIT_S, NOW)


def test_whoever_has_a_slot_goes_on_and_others_take_what_is_free() -> None:
    assert may(A, {A: 90.0}, {}) and may(B, {A: 90.0}, {})
    assert may(A, {A: 90.0, B: 91.0}, {}) and not may(C, {A: 90.0, B: 91.0}, {})


def test_a_free_slot_goes_to_whoever_waits_longest() -> None:
    waiting = {B: 99.0, C: 98.5}
    assert may(C, {A: 90.0}, waiting) and not may(B, {A: 90.0}, waiting)
    assert not may(D, {A: 90.0}, waiting)  # one that just came
    assert may(B, {}, waiting) and may(C, {}, waiting) and not may(D, {}, waiting)


def test_once_somebody_waited_too_long_the_longest_running_is_closed() -> None:
    running = {A: 90.0, B: 91.0}
    assert may(A, running, {C: 98.5})
    assert not may(A, running, {C: 97.5}) and may(B, running, {C: 97.5})
    assert not may(A, running, {C: 97.5, D: 97.6}) and not may(B, running, {C: 97.5, D: 97.6})


def test_a_request_of_a_version_that_runs_and_is_closed_does_not_close_another() -> None:
    assert may(B, {A: 90.0, B: 91.0}, {A: 90.5, C: 98.5})


versions = st.integers(A, A + 9)
moments = st.floats(NOW - 10, NOW)
tables = st.dictionaries(versions, moments, max_size=8)
limits = st.integers(1, 5)


@settings(deadline=None)
@given(versions, tables, tables, limits)
def test_nobody_gets_a_slot_that_there_is_not(
    version: int, running: dict[int, float], waiting: dict[int, float], limit: int
) -> None:
    if version not in running and len(running) >= limit:
        assert not may(version, running, waiting, limit)


@settings(deadline=None)
@given(tables, tables, limits)
def test_of_those_who_wait_as_many_enter_as_there_are_free_slots_and_the_first_who_came(
    running: dict[int, float], waiting: dict[int, float], limit: int
) -> None:
    without = sorted((since, version) for version, since in waiting.items() if version not in running)
    may_enter = [version for _, version in without if may(version, running, waiting, limit)]
    assert may_enter == [version for _, version in without][: max(limit - len(running), 0)]


@settings(deadline=None)
@given(tables, tables, limits)
def test_as_many_are_closed_as_wait_too_long_for_want_of_a_slot_and_the_longest_running(
    running: dict[int, float], waiting: dict[int, float], limit: int
) -> None:
    overdue = sum(NOW - since > MAX_WAIT_S for version, since in waiting.items() if version not in running)
    closed = [version for version in running if not may(version, running, waiting, limit)]
    assert len(closed) == min(max(overdue - (limit - len(running)), 0), len(running))
    still_open = running.keys() - set(closed)
    assert all(running[one] <= running[other] for one in closed for other in still_open)


@settings(deadline=None)
@given(tables, tables, limits, st.randoms())
def test_all_processes_decide_alike_in_whatever_order_they_read(
    running: dict[int, float], waiting: dict[int, float], limit: int, chance: random.Random
) -> None:
    shuffled = [dict(chance.sample(sorted(table.items()), len(table))) for table in (running, waiting)]
    for version in range(A, A + 10):
        assert may(version, running, waiting, limit) == may(version, shuffled[0], shuffled[1], limit)


class Two:
    """Two processes that share slots; what runs is counted where the engine would."""

    def __init__(self, run: RunDirectory, limit: int, max_wait_s: float = 0.03) -> None:
        self.run = run
        self.limit = limit
        self.boards = [Board(run, 1), Board(run, 2)]
        self.slots = [Slots(limit, max_wait_s, board, run) for board in self.boards]
        self.running: Counter[int] = Counter()
        self.most = 0
        self.look_around()

    def look_around(self) -> None:
        for board in self.boards:
            board.look_around()

    @asynccontextmanager
    async def slot(self, version: int, process: int = 0):
        slots = self.slots[process]
        await slots.enter(version)
        self.running[version] += 1
        self.most = max(self.most, len(+self.running))
        try:
            yield
        finally:
            self.running[version] -= 1
            slots.leave(version)

    async def request(self, version: int, seconds: float, process: int = 0) -> float:
        """How long a request waited."""
        began = time.monotonic()
        async with self.slot(version, process):
            waited = time.monotonic() - began
            await asyncio.sleep(seconds)
        return waited


@pytest.fixture
def two(run: RunDirectory) -> Iterator[Two]:
    two = Two(run, 1)
    yield two
    assert two.most <= two.limit
    for board in two.boards:
        assert board.uses == {}
        board.close()


async def test_requests_of_one_adapter_run_side_by_side_in_all_processes(two: Two) -> None:
    async with asyncio.timeout(10), two.slot(A), two.slot(A, 1), two.slot(A):
        assert two.slots[0].running == two.slots[1].running == {A}


@pytest.mark.parametrize("process", [0, 1])
async def test_the_next_adapter_waits_until_the_slot_is_free_in_all_processes(two: Two, process: int) -> None:
    async with two.slot(A, 1):
        async with two.slot(A, 0):
            waiting = asyncio.ensure_future(two.request(B, 0, process))
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.03)
        assert not waiting.done()
    async with asyncio.timeout(10):
        assert await waiting >= 0.06


async def keep_busy(two: Two, version: int, process: int, until_set: asyncio.Event) -> None:
    """Requests of one adapter that overlap, so that its slot never falls free by itself."""
    tasks = set()
    while not until_set.is_set():
        tasks.add(asyncio.ensure_future(two.request(version, 0.03, process)))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("busy", "waits"), [(0, 0), (0, 1)])
async def test_a_steady_stream_of_one_adapter_keeps_nobody_out(two: Two, busy: int, waits: int) -> None:
    done = asyncio.Event()
    stream = asyncio.ensure_future(keep_busy(two, A, busy, done))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        waited = [await two.request(B, 0.005, waits) for _ in range(3)]
    done.set()
    await stream
    # The bound is max_wait_s and the longest request, 0.06 s; the rest is for a machine that does other things, too.
    assert max(waited) < 2


async def test_a_stream_in_two_processes_keeps_nobody_out(two: Two) -> None:
    done = asyncio.Event()
    streams = [asyncio.ensure_future(keep_busy(two, A, process, done)) for process in (0, 1)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        await two.request(B, 0.005, 1)
    done.set()
    await asyncio.gather(*streams)


async def test_who_is_closed_for_another_gets_in_again_when_that_one_gives_up(two: Two) -> None:
    async with two.slot(A):
        gives_up = asyncio.ensure_future(two.request(B, 0))
        await asyncio.sleep(0.05)
        waits = asyncio.ensure_future(two.request(A, 0))
        await asyncio.sleep(0.03)
        assert not waits.done()
        gives_up.cancel()
        async with asyncio.timeout(10):
            await waits
    with pytest.raises(asyncio.CancelledError):
        await gives_up


async def test_the_next_in_turn_gets_in_when_the_one_before_gives_up(run: RunDirectory) -> None:
    board = Board(run, 1)
    slots = Slots(1, 0.0, board, run)
    await slots.enter(A)
    gives_up, waits = (asyncio.ensure_future(slots.enter(version)) for version in (B, A))
    await asyncio.sleep(0.01)
    assert not waits.done()  # closed for the other
    gives_up.cancel()
    async with asyncio.timeout(10):
        await waits
    for _ in range(2):
        slots.leave(A)
    board.close()


async def test_a_request_that_is_cancelled_in_the_moment_it_gets_in_leaves_the_slot(two: Two) -> None:
    async with two.slot(A):
        first, second = (asyncio.ensure_future(two.request(version, 0)) for version in (B, C))
        await asyncio.sleep(0)
    first.cancel()  # it was let in, and does not know it yet
    async with asyncio.timeout(10):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_one_that_waited_alone_is_woken_by_a_process_that_came_later(run: RunDirectory) -> None:
    first = Board(run, 1)
    slots = Slots(1, 0.03, first, run)
    await slots.enter(A)
    waiting = asyncio.ensure_future(slots.enter(B))
    await asyncio.sleep(0)
    second = Board(run, 2)
    later = Slots(1, 0.03, second, run)
    for board in (first, second):
        board.look_around()
    second.use(A).running = 1
    second.use(A).running_since = time.monotonic()
    second.write(A)
    slots.leave(A)
    assert not waiting.done()
    later.leave(A)
    async with asyncio.timeout(10):
        await waiting
    slots.leave(B)
    for board in (first, second):
        board.close()


RUNS_AND_WAITS = """
board = Board(RunDirectory.open("server", parent), 3)
use = board.use(2**20)
use.running, use.running_since = 1, time.monotonic()
board.write(2**20)
use = board.use(2**20 + 1)
use.waiting_since = time.monotonic()
board.write(2**20 + 1)
"""


async def test_a_killed_process_blocks_nobody(two: Two, tmp_path: Path) -> None:
    with beside(tmp_path / "run", RUNS_AND_WAITS) as process:
        two.look_around()
        waiting = [asyncio.ensure_future(two.request(version, 0, number)) for number, version in enumerate((C, D))]
        await asyncio.sleep(0.05)
        assert not any(one.done() for one in waiting)
        process.kill()
        process.wait()
    two.look_around()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)


RACES = """
from vllm_lora_router.adapters.runtime.slot_scheduler import Slots
run, own, other = RunDirectory.open("server", parent), 2**20 + int(arguments[0]), 2**20 + 1 - int(arguments[0])
board = Board(run, int(arguments[0]) + 1)
slots = Slots(1, 60, board, run)
print("done", flush=True)
while board.alone:
    board.look_around()
until, entered, together = time.monotonic() + 40, 0, 0
while entered < 5000 and time.monotonic() < until:
    if slots._try(own):
        entered += 1
        together += any(version == other and use.running for report in board.others() for version, use in report.uses)
        slots.leave(own)
print(entered, together, flush=True)
"""


def test_two_processes_that_enter_in_the_same_moment_do_not_take_one_slot_twice(
    run: RunDirectory, tmp_path: Path
) -> None:
    with beside(tmp_path / "run", RACES, "0") as one, beside(tmp_path / "run", RACES, "1") as two:
        for process in (one, two):
            assert process.stdout is not None
            entered, together = map(int, process.stdout.readline().split())
            assert entered == 5000 and together == 0


@pytest.mark.parametrize("seed", range(4))
async def test_everybody_gets_in_whoever_leaves_and_whoever_gives_up(run: RunDirectory, seed: int) -> None:
    chance = random.Random(seed)
    two = Two(run, limit := chance.choice((1, 2, 3)), max_wait_s=0.01)
    served = 0

    async def client() -> None:
        nonlocal served
        await asyncio.sleep(chance.random() * 0.3)
        request = two.request(A + chance.randrange(6), chance.random() * 0.01, chance.randrange(2))
        patience_s = chance.random() * 0.03 if chance.random() < 0.3 else None
        try:
            async with asyncio.timeout(patience_s):
                await request
        except TimeoutError:
            assert patience_s is not None
        else:
            served += 1

    async with asyncio.timeout(20):
        await asyncio.gather(*(client() for _ in range(200)))
    assert served > 100
    assert two.most <= limit
    for board, slots in zip(two.boards, two.slots, strict=True):
        assert board.uses == {} and slots.running == frozenset()
        board.close()


@pytest.mark.parametrize("alone", [True, False])
async def test_an_order_of_arrival_is_kept(run: RunDirectory, alone: bool) -> None:
    boards = [Board(run, 1)] if alone else [Board(run, 1), Board(run, 2)]
    for board in boards:
        board.look_around()
    slots = Slots(1, 5.0, boards[0], run)
    order: list[int] = []

    async def client(version: int) -> None:
        await slots.enter(version)
        order.append(version)
        await asyncio.sleep(0.001)
        slots.leave(version)

    async with asyncio.timeout(10):
        clients = []
        for version in (A, B, C, B, D, A):
            clients.append(asyncio.ensure_future(client(version)))
            await asyncio.sleep(0)
        await asyncio.gather(*clients)
    assert order == [A, A, B, B, C, D]
    for board in boards:
        board.close()


async def test_nothing_is_remembered_of_requests_that_are_over(two: Two) -> None:
    async with asyncio.timeout(10):
        for version in range(A, A + 50):
            await two.request(version, 0, version % 2)
    for slots in two.slots:
        assert slots._waiting == {}
    await until(lambda: all(slots._poll is None or slots._poll.done() for slots in two.slots))


class Simulated(asyncio.SelectorEventLoop):
    """A loop whose time passes at once: a minute of an engine takes no longer than its requests' bookkeeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        select = self._selector.select  # pyright: ignore[reportAttributeAccessIssue]

        def pass_time(timeout: float | None) -> object:
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = pass_time  # pyright: ignore[reportAttributeAccessIssue]

    def time(self) -> float:
        return self.now


GENERATION_S = 1.0


def simulate(run: RunDirectory, minutes: float, other_every_s: float | None) -> tuple[float, list[float]]:
    """One slot and three clients that keep one adapter busy: generations a second, and how long the other waited.

    A generation takes as long alone as beside others, which is the worst for turns: an engine's steps get shorter.
    """
    draw = random.Random(0)
    done = 0
    waits: list[float] = []
    loop = Simulated()
    until_s = loop.time() + minutes * 60
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vllm_lora_router.adapters.runtime.slot_scheduler.time", SimpleNamespace(monotonic=loop.time))
        two = Two(run, 1, MAX_WAIT_S)

        async def generate(version: int) -> float:
            nonlocal done
            began = loop.time()
            async with two.slot(version):
                waited = loop.time() - began
                await asyncio.sleep(GENERATION_S * draw.uniform(0.9, 1.1))
                done += 1
            return waited

        async def busy() -> None:
            while loop.time() < until_s:
                await generate(A)

        async def now_and_then(every_s: float) -> None:
            while loop.time() + every_s < until_s:
                await asyncio.sleep(every_s)
                waits.append(await generate(B))

        async def everybody() -> None:
            await asyncio.gather(busy(), busy(), busy(), *([now_and_then(other_every_s)] if other_every_s else []))

        try:
            loop.run_until_complete(everybody())
        finally:
            loop.close()
        for board in two.boards:
            board.close()
    return done / (minutes * 60), waits


def test_a_turn_every_half_minute_costs_less_than_a_twentieth(run: RunDirectory) -> None:
    alone, _ = simulate(run, 30, None)
    beside, waits = simulate(run, 30, 30)
    assert beside >= 0.95 * alone
    assert len(waits) > 50 and max(waits) <= MAX_WAIT_S + 1.1 * GENERATION_S + 0.1
