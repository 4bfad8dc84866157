"""A server under everything at once: adapters that come, change and go, and requests that come, wait and leave."""

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime.lease import NotLeased
from vllm_lora_router.adapters.runtime.version_log import Key

from .conftest import Process, Server, delete, put, until

# How long after a change an answer may still be the old one. Far less is usual: this machine does other things, too.
MOMENT_S = 3.0


@dataclass
class Adapter:
    """An adapter that somebody else changes, and what lay there when."""

    name: str
    folder: Path
    declared: bool = False
    lay: deque[tuple[float, str | None]] = field(default_factory=deque)  # until when, and what
    lies: str | None = None

    def put(self, says: str | None) -> None:
        self.lay.append((time.monotonic(), self.lies))
        if says is None:
            delete(self.folder)
        else:
            put(self.folder, says)
        self.lies = says

    def was_there(self, says: str | None, since: float) -> bool:
        """Whether that lay there at any time after `since`; what a declared one served last counts while none does."""
        if says == self.lies or any(what == says and until_s >= since for until_s, what in self.lay):
            return True
        return self.declared and self.lies is None


@dataclass
class Storm:
    """Who writes and who asks, at random."""

    server: Server
    processes: list[Process]
    adapters: list[Adapter]
    chance: random.Random
    did: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    over: bool = False

    async def write(self, adapter: Adapter) -> None:
        """Changes one adapter again and again, also back to what it was."""
        while not self.over:
            await asyncio.sleep(self.chance.random() * 0.08)
            if self.chance.random() < 0.15:
                adapter.put(None)
                self.did["deleted"] += 1
                await asyncio.sleep(self.chance.choice((0.0, 0.02, 0.15)))
            adapter.put(f"{adapter.name} {self.chance.randrange(6)}")
            self.did["swapped"] += 1

    async def ask(self) -> None:
        """Asks one adapter after the other, and now and then does not wait for the answer."""
        while not self.over:
            adapter, process = self.chance.choice(self.adapters), self.chance.choice(self.processes)
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.chance.random() * 0.1 if self.chance.random() < 0.2 else None):
                    says = await process.ask(adapter.name, seconds=self.chance.random() * 0.02)
            except NotLeased:
                self.did["not leased"] += 1
                self.check(adapter.was_there(None, began - MOMENT_S), f"{adapter.name} was there and is not leased")
            except TimeoutError:
                self.did["left"] += 1
            else:
                self.did["answered"] += 1
                self.check(adapter.was_there(says, began - MOMENT_S), f"{adapter.name} answered an old {says!r}")
            await asyncio.sleep(self.chance.random() * 0.005)

    async def ask_around(self) -> None:
        """What reaches vLLM without a lease, such as a form with a file."""
        while not self.over:
            adapter, process = self.chance.choice(self.adapters), self.chance.choice(self.processes)
            with process.pool.unread():
                if adapter.name in process.engine.registry:
                    await process.engine.answer(adapter.name, seconds=self.chance.random() * 0.02)
                    self.did["around"] += 1
            await asyncio.sleep(self.chance.random() * 0.05)

    def check(self, holds: bool, wrong: str) -> None:
        if not holds:
            self.wrong.append(wrong)

    async def rage(self, until_s: float) -> None:
        """Goes on until enough was done, or that moment."""
        tasks = [
            *(asyncio.ensure_future(self.write(adapter)) for adapter in self.adapters),
            *(asyncio.ensure_future(self.ask()) for _ in range(6)),
            asyncio.ensure_future(self.ask_around()),
        ]
        enough = {"answered": 150, "swapped": 150, "deleted": 10, "left": 5, "around": 5}
        while time.monotonic() < until_s and any(self.did[what] < number for what, number in enough.items()):
            await asyncio.sleep(0.05)
        self.over = True
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_comes_every_answer_is_right_and_nothing_is_left_behind(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    server.core.capacity = 3
    declared = [server.declared(f"declared-{number}", f"declared-{number} 0") for number in range(2)]
    processes = [server.process(server.catalogue(*declared), slots=2, max_wait_s=0.02) for _ in range(2)]
    for process in processes:
        assert await process.pool.prepare([name for name, _ in declared]) == {}
        process.tending.start()
    uploaded = [f"uploaded-{number}" for number in range(4)]
    adapters = [
        *(Adapter(name, one.folder, declared=True, lies=f"{name} 0") for name, one in declared),
        *(Adapter(name, server.uploads / name) for name in uploaded),
    ]
    storm = Storm(server, processes, adapters, chance)
    await storm.rage(until_s=time.monotonic() + 20)
    assert storm.wrong == [] and server.core.faults == []
    assert all(storm.did[what] for what in ("answered", "swapped", "deleted", "left", "around"))

    for adapter in adapters[:-1]:
        adapter.put(f"{adapter.name} last")
    adapters[-1].put(None)
    async with asyncio.timeout(20):
        for process in processes:
            for adapter in adapters[:-1]:
                while await process.ask(adapter.name) != adapter.lies:
                    await asyncio.sleep(0.01)
    # Everything else is let go of by every process, and leaves the engine and the disk.
    one, two = (process.shelf for process in processes)
    await until(lambda: len(server.snapshots) == len(adapters) - 1)
    await until(lambda: all(shelf.ledger.superseded.keys() <= shelf.ledger.retired for shelf in (one, two)))
    await until(lambda: one.ledger.retired == two.ledger.retired)
    assert one.ledger.versions == two.ledger.versions
    for process in processes:
        pool = process.pool
        with pytest.raises(NotLeased):
            await process.ask(adapters[-1].name)
        assert pool.board.uses == {} and pool.slots.running == frozenset()
        assert pool.shelf.held.keys() == {Key(adapter.name) for adapter in adapters[:-1]}
        serving = {held.version.id for held in pool.shelf.held.values() if held.version is not None}
        assert {version.id for version in process.engine.registry.values()} <= serving
        await until(lambda pool=pool: next(pool.board.all()).sequence == pool.shelf.ledger.sequence)
