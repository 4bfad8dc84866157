"""A server under random load: adapters are added, changed and deleted while requests wait, run and are cancelled."""

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime.lease import LeaseRefusedError
from vllm_lora_router.adapters.runtime.version_log import AdapterKey

from .conftest import Process, Server, delete_adapter, put_adapter, until

# Time after a change in which an answer may still be the old one. It is far shorter on a machine with no other load.
MAX_DELAY_S = 3.0


@dataclass
class Adapter:
    """An adapter that another program changes, with its history."""

    name: str
    folder: Path
    declared: bool = False
    history: deque[tuple[float, str | None]] = field(default_factory=deque)  # end time and answer; None: no files
    answer: str | None = None

    def put(self, answer: str | None) -> None:
        self.history.append((time.monotonic(), self.answer))
        if answer is None:
            delete_adapter(self.folder)
        else:
            put_adapter(self.folder, answer)
        self.answer = answer

    def was_current(self, answer: str | None, since: float) -> bool:
        """Return whether the files had this answer at any time after `since`.

        A declared adapter without files keeps its last answer.
        """
        if answer == self.answer or any(past == answer and end_s >= since for end_s, past in self.history):
            return True
        return self.declared and self.answer is None


@dataclass
class RandomLoad:
    """Writers and clients that act at random."""

    server: Server
    processes: list[Process]
    adapters: list[Adapter]
    random: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    stopped: bool = False

    async def change(self, adapter: Adapter) -> None:
        """Change one adapter repeatedly, also back to an earlier content."""
        while not self.stopped:
            await asyncio.sleep(self.random.random() * 0.08)
            if self.random.random() < 0.15:
                adapter.put(None)
                self.counts["deleted"] += 1
                await asyncio.sleep(self.random.choice((0.0, 0.02, 0.15)))
            adapter.put(f"{adapter.name} {self.random.randrange(6)}")
            self.counts["replaced"] += 1

    async def send_requests(self) -> None:
        """Send requests to one adapter after the other, and cancel some of them."""
        while not self.stopped:
            adapter, process = self.random.choice(self.adapters), self.random.choice(self.processes)
            start = time.monotonic()
            timeout_s = self.random.random() * 0.1 if self.random.random() < 0.2 else None
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await process.request(adapter.name, seconds=self.random.random() * 0.02)
            except LeaseRefusedError:
                self.counts["refused"] += 1
                self.check(adapter.was_current(None, start - MAX_DELAY_S), f"{adapter.name} existed and was refused")
            except TimeoutError:
                self.counts["cancelled"] += 1
            else:
                self.counts["answered"] += 1
                message = f"{adapter.name} gave the outdated answer {answer!r}"
                self.check(adapter.was_current(answer, start - MAX_DELAY_S), message)
            await asyncio.sleep(self.random.random() * 0.005)

    async def send_requests_without_lease(self) -> None:
        """Send requests that reach vLLM around the router's leases, such as file uploads by form."""
        while not self.stopped:
            adapter, process = self.random.choice(self.adapters), self.random.choice(self.processes)
            with process.pool.track_unknown_use():
                if adapter.name in process.engine.registry:
                    await process.engine.answer(adapter.name, seconds=self.random.random() * 0.02)
                    self.counts["without lease"] += 1
            await asyncio.sleep(self.random.random() * 0.05)

    def check(self, condition: bool, error: str) -> None:
        if not condition:
            self.errors.append(error)

    async def run(self, until_s: float) -> None:
        """Run until enough events of each kind have occurred, at most until `until_s`."""
        tasks = [
            *(asyncio.ensure_future(self.change(adapter)) for adapter in self.adapters),
            *(asyncio.ensure_future(self.send_requests()) for _ in range(6)),
            asyncio.ensure_future(self.send_requests_without_lease()),
        ]
        enough = {"answered": 150, "replaced": 150, "deleted": 10, "cancelled": 5, "without lease": 5}
        while time.monotonic() < until_s and any(self.counts[event] < number for event, number in enough.items()):
            await asyncio.sleep(0.05)
        self.stopped = True
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("seed", range(2))
async def test_random_load_gets_right_answers_and_leaves_no_unused_versions(server: Server, seed: int) -> None:
    server.core.capacity = 3
    declared = [server.declared(f"declared-{number}", f"declared-{number} 0") for number in range(2)]
    processes = [server.process(server.resolver(*declared), slots=2, max_wait_s=0.02) for _ in range(2)]
    for process in processes:
        assert await process.pool.preload([name for name, _ in declared]) == {}
        process.maintenance.start()
    uploaded = [f"uploaded-{number}" for number in range(4)]
    adapters = [
        *(Adapter(name, files.folder, declared=True, answer=f"{name} 0") for name, files in declared),
        *(Adapter(name, server.uploads / name) for name in uploaded),
    ]
    load = RandomLoad(server, processes, adapters, random.Random(seed))
    await load.run(until_s=time.monotonic() + 20)
    assert load.errors == [] and server.core.faults == []
    assert all(load.counts[event] for event in ("answered", "replaced", "deleted", "cancelled", "without lease"))

    for adapter in adapters[:-1]:
        adapter.put(f"{adapter.name} last")
    adapters[-1].put(None)
    async with asyncio.timeout(60):
        for process in processes:
            for adapter in adapters[:-1]:
                while await process.request(adapter.name) != adapter.answer:
                    await asyncio.sleep(0.01)
    # Every process releases all other versions, and they leave the engine and the disk.
    first, second = (process.manager.version_log for process in processes)
    await until(lambda: len(server.snapshots) == len(adapters) - 1)
    await until(lambda: all(log.superseded.keys() <= log.retired for log in (first, second)))
    await until(lambda: first.retired == second.retired)
    assert first.versions == second.versions
    for process in processes:
        pool, manager = process.pool, process.manager
        with pytest.raises(LeaseRefusedError):
            await process.request(adapters[-1].name)
        assert pool.usage.uses == {} and pool.slot_scheduler.running == frozenset()
        assert manager.states.keys() == {AdapterKey(adapter.name) for adapter in adapters[:-1]}
        serving = {state.version.id for state in manager.states.values() if state.version is not None}
        assert {version.id for version in process.engine.registry.values()} <= serving
        log, usage = manager.version_log, pool.usage
        await until(lambda log=log, usage=usage: next(usage.all_processes()).sequence == log.sequence)
