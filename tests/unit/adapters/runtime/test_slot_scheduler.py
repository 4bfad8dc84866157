"""Slot scheduling: adapters take turns, none waits for ever, and at most as many run as there are slots."""

import asyncio
import errno
import fcntl
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

from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler, may_run
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import UsageTable

from ...processes import kill, other_process, wait_for_line
from .conftest import until

NOW = 100.0
MAX_WAIT_S = 2.0

A, B, C, D = range(2**20, 2**20 + 4)


def may(version: int, running: dict[int, float], waiting: dict[int, float], limit: int = 2) -> bool:
    return may_run(version, running, waiting, limit, MAX_WAIT_S, NOW)


def test_version_with_a_slot_may_run_and_others_need_a_free_slot() -> None:
    assert may(A, {A: 90.0}, {}) and may(B, {A: 90.0}, {})
    assert may(A, {A: 90.0, B: 91.0}, {}) and not may(C, {A: 90.0, B: 91.0}, {})


def test_free_slot_goes_to_the_version_that_has_waited_longest() -> None:
    waiting = {B: 99.0, C: 98.5}
    assert may(C, {A: 90.0}, waiting) and not may(B, {A: 90.0}, waiting)
    assert not may(D, {A: 90.0}, waiting)  # it has just arrived
    assert may(B, {}, waiting) and may(C, {}, waiting) and not may(D, {}, waiting)


def test_longest_running_version_is_closed_when_another_has_waited_too_long() -> None:
    running = {A: 90.0, B: 91.0}
    assert may(A, running, {C: 98.5})
    assert not may(A, running, {C: 97.5}) and may(B, running, {C: 97.5})
    assert not may(A, running, {C: 97.5, D: 97.6}) and not may(B, running, {C: 97.5, D: 97.6})


def test_waiting_request_of_a_running_version_does_not_close_another() -> None:
    assert may(B, {A: 90.0, B: 91.0}, {A: 90.5, C: 98.5})


versions = st.integers(A, A + 9)
moments = st.floats(NOW - 10, NOW)
tables = st.dictionaries(versions, moments, max_size=8)
limits = st.integers(1, 5)


@settings(deadline=None)
@given(versions, tables, tables, limits)
def test_no_version_starts_without_a_free_slot(
    version: int, running: dict[int, float], waiting: dict[int, float], limit: int
) -> None:
    if version not in running and len(running) >= limit:
        assert not may(version, running, waiting, limit)


@settings(deadline=None)
@given(tables, tables, limits)
def test_waiting_versions_take_the_free_slots_in_order_of_arrival(
    running: dict[int, float], waiting: dict[int, float], limit: int
) -> None:
    without = sorted((since, version) for version, since in waiting.items() if version not in running)
    may_start = [version for _, version in without if may(version, running, waiting, limit)]
    assert may_start == [version for _, version in without][: max(limit - len(running), 0)]


@settings(deadline=None)
@given(tables, tables, limits)
def test_one_running_version_is_closed_per_overdue_version_longest_running_first(
    running: dict[int, float], waiting: dict[int, float], limit: int
) -> None:
    overdue = sum(NOW - since > MAX_WAIT_S for version, since in waiting.items() if version not in running)
    closed = [version for version in running if not may(version, running, waiting, limit)]
    assert len(closed) == min(max(overdue - (limit - len(running)), 0), len(running))
    still_open = running.keys() - set(closed)
    assert all(running[version] <= running[other] for version in closed for other in still_open)


@settings(deadline=None)
@given(tables, tables, limits, st.randoms())
def test_decision_does_not_depend_on_the_order_of_reading(
    running: dict[int, float], waiting: dict[int, float], limit: int, rng: random.Random
) -> None:
    shuffled = [dict(rng.sample(sorted(table.items()), len(table))) for table in (running, waiting)]
    for version in range(A, A + 10):
        assert may(version, running, waiting, limit) == may(version, shuffled[0], shuffled[1], limit)


class TwoProcesses:
    """Two processes that share slots, and a count of the running versions as the engine sees them."""

    def __init__(self, run: RunDirectory, limit: int, max_wait_s: float = 0.03) -> None:
        self.run = run
        self.limit = limit
        self.tables = [UsageTable(run, 1), UsageTable(run, 2)]
        self.slots = [SlotScheduler(limit, max_wait_s, table, run) for table in self.tables]
        self.running: Counter[int] = Counter()
        self.max_running = 0
        self.refresh()

    def refresh(self) -> None:
        for table in self.tables:
            table.refresh()

    @asynccontextmanager
    async def slot(self, version: int, process: int = 0):
        slots = self.slots[process]
        await slots.acquire(version)
        self.running[version] += 1
        self.max_running = max(self.max_running, len(+self.running))
        try:
            yield
        finally:
            self.running[version] -= 1
            slots.release(version)

    async def request(self, version: int, seconds: float, process: int = 0) -> float:
        """Run a request for `seconds`, and return how long it waited."""
        start = time.monotonic()
        async with self.slot(version, process):
            waited = time.monotonic() - start
            await asyncio.sleep(seconds)
        return waited


@pytest.fixture
def two(run: RunDirectory) -> Iterator[TwoProcesses]:
    two = TwoProcesses(run, 1)
    yield two
    assert two.max_running <= two.limit
    for table in two.tables:
        assert table.uses == {}
        table.close()


async def test_requests_of_one_adapter_run_concurrently_in_all_processes(two: TwoProcesses) -> None:
    async with asyncio.timeout(60), two.slot(A), two.slot(A, 1), two.slot(A):
        assert two.slots[0].running == two.slots[1].running == {A}


@pytest.mark.parametrize("process", [0, 1])
async def test_next_adapter_waits_until_the_slot_is_free_in_all_processes(two: TwoProcesses, process: int) -> None:
    async with two.slot(A, 1):
        async with two.slot(A, 0):
            waiting = asyncio.ensure_future(two.request(B, 0, process))
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.03)
        assert not waiting.done()
    async with asyncio.timeout(60):
        assert await waiting >= 0.06


async def test_waiting_request_starts_after_the_lock_failed(
    two: TwoProcesses, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flock = fcntl.flock
    failures: list[int] = []

    def failing(lock: int, operation: int) -> None:
        if waiting_in(two, 0) and operation == fcntl.LOCK_EX and len(failures) < 2:
            failures.append(lock)
            raise OSError(errno.ENOLCK, "No locks available")
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", failing)
    async with two.slot(A, 1):
        waiting = asyncio.ensure_future(two.request(B, 0, 0))
        await until(lambda: failures)
    async with asyncio.timeout(60):
        await waiting
    assert len([text for text in caplog.messages if "starting waiting requests failed" in text]) == 1


def waiting_in(two: TwoProcesses, process: int) -> bool:
    return bool(two.slots[process]._waiting)


async def keep_busy(two: TwoProcesses, version: int, process: int, until_set: asyncio.Event) -> None:
    """Run overlapping requests of one adapter, so that its slot never becomes free."""
    tasks = set()
    while not until_set.is_set():
        tasks.add(asyncio.ensure_future(two.request(version, 0.03, process)))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("busy", "waits"), [(0, 0), (0, 1)])
async def test_steady_stream_of_one_adapter_does_not_block_another(two: TwoProcesses, busy: int, waits: int) -> None:
    done = asyncio.Event()
    stream = asyncio.ensure_future(keep_busy(two, A, busy, done))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        waited = [await two.request(B, 0.005, waits) for _ in range(3)]
    done.set()
    await stream
    # The bound is max_wait_s plus the longest request, 0.06 s. The margin allows for other load on the machine.
    assert max(waited) < 2


async def test_stream_in_two_processes_does_not_block_another_adapter(two: TwoProcesses) -> None:
    done = asyncio.Event()
    streams = [asyncio.ensure_future(keep_busy(two, A, process, done)) for process in (0, 1)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(60):
        await two.request(B, 0.005, 1)
    done.set()
    await asyncio.gather(*streams)


async def test_closed_version_reopens_when_the_waiting_request_is_cancelled(two: TwoProcesses) -> None:
    async with two.slot(A):
        cancelled = asyncio.ensure_future(two.request(B, 0))
        await asyncio.sleep(0.05)
        waiting = asyncio.ensure_future(two.request(A, 0))
        await asyncio.sleep(0.03)
        assert not waiting.done()
        cancelled.cancel()
        async with asyncio.timeout(60):
            await waiting
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_next_waiting_request_starts_when_the_one_before_is_cancelled(run: RunDirectory) -> None:
    table = UsageTable(run, 1)
    slots = SlotScheduler(1, 0.0, table, run)
    await slots.acquire(A)
    cancelled, waiting = (asyncio.ensure_future(slots.acquire(version)) for version in (B, A))
    await asyncio.sleep(0.01)
    assert not waiting.done()  # closed for the waiting version
    cancelled.cancel()
    async with asyncio.timeout(60):
        await waiting
    for _ in range(2):
        slots.release(A)
    table.close()


async def test_request_cancelled_while_it_starts_releases_its_slot(two: TwoProcesses) -> None:
    async with two.slot(A):
        first, second = (asyncio.ensure_future(two.request(version, 0)) for version in (B, C))
        await asyncio.sleep(0)
    first.cancel()  # its slot is granted, but its task has not resumed yet
    async with asyncio.timeout(60):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_waiting_request_starts_when_a_process_that_joined_later_frees_the_slot(run: RunDirectory) -> None:
    first = UsageTable(run, 1)
    slots = SlotScheduler(1, 0.03, first, run)
    await slots.acquire(A)
    waiting = asyncio.ensure_future(slots.acquire(B))
    await asyncio.sleep(0)
    second = UsageTable(run, 2)
    later = SlotScheduler(1, 0.03, second, run)
    for table in (first, second):
        table.refresh()
    second.use(A).running = 1
    second.use(A).running_since = time.monotonic()
    second.write(A)
    slots.release(A)
    assert not waiting.done()
    later.release(A)
    async with asyncio.timeout(60):
        await waiting
    slots.release(B)
    for table in (first, second):
        table.close()


RUNS_AND_WAITS = """
table = UsageTable(RunDirectory.open("server", parent), 3)
use = table.use(2**20)
use.running, use.running_since = 1, time.monotonic()
table.write(2**20)
use = table.use(2**20 + 1)
use.waiting_since = time.monotonic()
table.write(2**20 + 1)
"""


async def test_killed_process_does_not_block_others(two: TwoProcesses, tmp_path: Path) -> None:
    with other_process(tmp_path / "run", RUNS_AND_WAITS) as process:
        two.refresh()
        waiting = [asyncio.ensure_future(two.request(version, 0, number)) for number, version in enumerate((C, D))]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        kill(process)
    two.refresh()
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)


RACES = """
from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler
run = RunDirectory.open("server", parent)
own, other = 2**20 + int(arguments[0]), 2**20 + 1 - int(arguments[0])
table = UsageTable(run, int(arguments[0]) + 1)
slots = SlotScheduler(1, 60, table, run)
print("done", flush=True)
while table.is_only_process:
    table.refresh()
deadline, started, overlaps = time.monotonic() + 40, 0, 0
while started < 5000 and time.monotonic() < deadline:
    if slots._try_start(own):
        started += 1
        uses = [item for process in table.other_processes() for item in process.uses]
        overlaps += any(version == other and use.running for version, use in uses)
        slots.release(own)
print(started, overlaps, flush=True)
"""


def test_two_processes_do_not_take_one_slot_at_the_same_time(run: RunDirectory, tmp_path: Path) -> None:
    with other_process(tmp_path / "run", RACES, "0") as first, other_process(tmp_path / "run", RACES, "1") as second:
        for process in (first, second):
            started, overlaps = map(int, wait_for_line(process).split())
            assert started == 5000 and overlaps == 0


@pytest.mark.parametrize("seed", range(4))
async def test_all_requests_that_are_not_cancelled_run(run: RunDirectory, seed: int) -> None:
    rng = random.Random(seed)
    two = TwoProcesses(run, limit := rng.choice((1, 2, 3)), max_wait_s=0.01)
    served = 0

    async def client() -> None:
        nonlocal served
        await asyncio.sleep(rng.random() * 0.3)
        request = two.request(A + rng.randrange(6), rng.random() * 0.01, rng.randrange(2))
        timeout_s = rng.random() * 0.03 if rng.random() < 0.3 else None
        try:
            async with asyncio.timeout(timeout_s):
                await request
        except TimeoutError:
            assert timeout_s is not None
        else:
            served += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(client() for _ in range(200)))
    assert served > 100
    assert two.max_running <= limit
    for table, slots in zip(two.tables, two.slots, strict=True):
        assert table.uses == {} and slots.running == frozenset()
        table.close()


@pytest.mark.parametrize("is_only_process", [True, False])
async def test_order_of_arrival_is_kept(run: RunDirectory, is_only_process: bool) -> None:
    tables = [UsageTable(run, 1)] if is_only_process else [UsageTable(run, 1), UsageTable(run, 2)]
    for table in tables:
        table.refresh()
    slots = SlotScheduler(1, 5.0, tables[0], run)
    order: list[int] = []

    async def client(version: int) -> None:
        await slots.acquire(version)
        order.append(version)
        await asyncio.sleep(0.001)
        slots.release(version)

    async with asyncio.timeout(60):
        clients = []
        for version in (A, B, C, B, D, A):
            clients.append(asyncio.ensure_future(client(version)))
            await asyncio.sleep(0)
        await asyncio.gather(*clients)
    assert order == [A, A, B, B, C, D]
    for table in tables:
        table.close()


async def test_ended_requests_leave_no_state(two: TwoProcesses) -> None:
    async with asyncio.timeout(60):
        for version in range(A, A + 50):
            await two.request(version, 0, version % 2)
    for slots in two.slots:
        assert slots._waiting == {}
    await until(lambda: all(slots._poll is None or slots._poll.done() for slots in two.slots))


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with simulated time: waiting takes no real time."""

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
    """Simulate one slot and three clients that keep one adapter busy, with requests for another adapter in between.

    A generation takes the same time alone as concurrently. That is the worst case for taking turns, because the steps
    of a real engine get shorter.

    Returns:
        Generations per second, and the waiting times of the other adapter.
    """
    rng = random.Random(0)
    done = 0
    waits: list[float] = []
    loop = SimulatedTimeLoop()
    until_s = loop.time() + minutes * 60
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vllm_lora_router.adapters.runtime.slot_scheduler.time", SimpleNamespace(monotonic=loop.time))
        two = TwoProcesses(run, 1, MAX_WAIT_S)

        async def generate(version: int) -> float:
            nonlocal done
            start = loop.time()
            async with two.slot(version):
                waited = loop.time() - start
                await asyncio.sleep(GENERATION_S * rng.uniform(0.9, 1.1))
                done += 1
            return waited

        async def busy() -> None:
            while loop.time() < until_s:
                await generate(A)

        async def occasional(every_s: float) -> None:
            while loop.time() + every_s < until_s:
                await asyncio.sleep(every_s)
                waits.append(await generate(B))

        async def all_clients() -> None:
            await asyncio.gather(busy(), busy(), busy(), *([occasional(other_every_s)] if other_every_s else []))

        try:
            loop.run_until_complete(all_clients())
        finally:
            loop.close()
        for table in two.tables:
            table.close()
    return done / (minutes * 60), waits


def test_request_for_another_adapter_every_30_s_costs_less_than_5_percent(run: RunDirectory) -> None:
    undisturbed, _ = simulate(run, 30, None)
    disturbed, waits = simulate(run, 30, 30)
    assert disturbed >= 0.95 * undisturbed
    assert len(waits) > 50 and max(waits) <= MAX_WAIT_S + 1.1 * GENERATION_S + 0.1
