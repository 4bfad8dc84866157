"""A server's adapters with everything real but the engine, which checks what it is given to read."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import Snapshots
from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import importer, maintenance
from vllm_lora_router.adapters.runtime.importer import Intake
from vllm_lora_router.adapters.runtime.lease import Lease
from vllm_lora_router.adapters.runtime.loader import Loader, LoadError
from vllm_lora_router.adapters.runtime.maintenance import Tending
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.resolver import Catalogue, Declared
from vllm_lora_router.adapters.runtime.slot_scheduler import Slots
from vllm_lora_router.adapters.runtime.version_log import Ledger, Version
from vllm_lora_router.adapters.runtime.version_manager import Shelf
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import Board

from ..files.conftest import HIDDEN, Files

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

SERVED_NAMES = ("served-base",)
AUTO_NAMES = ("MoM", "auto")

_numbers = itertools.count(1)


def write(folder: Path, says: str, *, rank: int = 4, hidden: int = HIDDEN) -> Path:
    """An adapter as PEFT writes it, whose answers are `says`."""
    folder.mkdir(parents=True)
    files = Files(folder)
    weights = {name: array + _number(says) for name, array in files.adapter_weights(hidden=hidden, rank=rank).items()}
    written = files.adapter(weights, r=rank, revision=says)
    for name in (CONFIG, WEIGHTS):
        (written / name).rename(folder / name)
    written.rmdir()
    return folder


def put(folder: Path, says: str, **more: Any) -> Path:
    """Puts an adapter in the place of what lies in `folder`, in one step, as git-sync does."""
    written = write(folder.parent / f".{next(_numbers)}", says, **more)
    link = folder.parent / f".{next(_numbers)}"
    link.symlink_to(written.name)
    link.replace(folder)
    return folder


def delete(folder: Path) -> None:
    folder.unlink(missing_ok=True)


def read(folder: Path) -> str:
    """What the adapter in `folder` says; every byte of it is read."""
    says = str(json.loads((folder / CONFIG).read_bytes())["revision"])
    for array in load_file(folder / WEIGHTS).values():
        if not np.all(array == _number(says)):
            raise ValueError(f"{folder} is half of {says!r} and half of another adapter")
    return says


def _number(text: str) -> np.float32:
    return np.float32(sum(place * byte for place, byte in enumerate(text.encode(), start=1)))


@dataclass
class Core:
    """The engine's own process: one memory for all API-server processes, in which nothing may mean two things.

    It forgets the adapter that was not used for longest and reads it again from its folder at a request's next step, as
    vLLM does; what would end vLLM, or make it answer wrongly, is a fault.
    """

    capacity: int
    broken: set[str] = field(default_factory=set)  # what it refuses to load
    load_s: float = 0.0
    memory: OrderedDict[int, str] = field(default_factory=OrderedDict)
    loads: list[tuple[float, int]] = field(default_factory=list)  # the moment each began, and of which version
    running: Counter[int] = field(default_factory=Counter)  # requests, by version
    most_running: int = 0  # versions at once
    faults: list[str] = field(default_factory=list)
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    loading: int = 0
    on_unload: Callable[[], object] = lambda: None
    _meanings: dict[tuple[str, object], tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.may_load.set()

    async def load(self, version: Version) -> None:
        self.loads.append((time.monotonic(), version.id))
        self.loading += 1
        try:
            self.check(self.loading == 1, f"{self.loading} loads at once")
            await asyncio.sleep(self.load_s)
            await self.may_load.wait()
            self._keep(version, self._read(version))
        finally:
            self.loading -= 1

    def step(self, version: Version) -> str:
        """One step of a request: what is not in memory is read, and other streams wait."""
        if version.id not in self.memory:
            self._keep(version, self._read(version))
        self.memory.move_to_end(version.id)
        return self.memory[version.id]

    def check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def _keep(self, version: Version, says: str) -> None:
        self.memory[version.id] = says
        while len(self.memory) > self.capacity:
            self.memory.popitem(last=False)

    def _read(self, version: Version) -> str:
        folder = version.content.folder
        try:
            says = read(Path(folder))
        except (OSError, ValueError) as error:
            self.faults.append(f"{version.engine_name}: {error!r}")
            raise LoadError(f"cannot read {folder}") from error
        kinds = [("name", version.engine_name), ("id", version.id)]
        for kind in [*kinds, ("folder", folder)] if version.content.private else kinds:
            identifier = 0 if kind[0] == "folder" else version.id  # two names may share one folder
            known = self._meanings.setdefault(kind, (identifier, says))
            self.check(known == (identifier, says), f"{kind} was {known} and is {(identifier, says)}")
        if says in self.broken:
            raise LoadError(f"does not load {says}")
        return says


@dataclass
class FakeEngine:
    """The engine as one API-server process sees it, with a registry of its own."""

    core: Core
    registry: dict[str, Version] = field(default_factory=dict)

    async def load(self, version: Version) -> None:
        await self.core.load(version)

    async def unload(self, identifier: int) -> None:
        self.core.memory.pop(identifier, None)
        self.core.on_unload()

    async def loaded(self) -> Collection[int]:
        return list(self.core.memory)

    def register(self, key: str, version: Version) -> None:
        self.registry[key] = version

    def unregister(self, key: str) -> None:
        del self.registry[key]

    async def answer(self, model: str, seconds: float = 0.0) -> str:
        """Runs a request whose `model` is that; it is looked up once, and may be read at any step."""
        version = self.registry[model]
        core = self.core
        core.running[version.id] += 1
        core.most_running = max(core.most_running, len(+core.running))
        try:
            says = core.step(version)
            await asyncio.sleep(seconds)
            core.check(core.step(version) == says, f"{model} changed while it ran")
            return says
        finally:
            core.running[version.id] -= 1


@dataclass
class Process:
    """One of a server's API-server processes."""

    pool: AdapterPool
    engine: FakeEngine
    tending: Tending
    number: int

    @property
    def shelf(self) -> Shelf:
        return self.pool.shelf

    async def lease(self, name: str, tenant: str | None = None, *, by_client: bool = False) -> Lease:
        now = self.pool.lease_now(name, tenant, by_client=by_client)
        return now or await self.pool.lease(name, tenant, by_client=by_client)

    async def ask(self, name: str, tenant: str | None = None, seconds: float = 0.0) -> str:
        """What a request is answered that is routed to an adapter."""
        lease = await self.lease(name, tenant)
        try:
            await lease.enter()
            return await self.engine.answer(lease.model, seconds)
        finally:
            lease.release()

    async def look(self) -> None:
        """Sees what lies there and what the others wrote; what changed may still have to be loaded."""
        await self.tending.watch()
        await until(lambda: not self.shelf._looking)
        await self.tending.follow()

    async def settle(self) -> None:
        """Waits until everything that changed is loaded, or has failed to."""
        await until(lambda: not self.shelf._loading and not any(held.coming for held in self.shelf.held.values()))

    async def tend(self) -> None:
        """Every chore once."""
        await self.look()
        await self.tending.sweep()

    async def tend_until(self, true: Callable[[], object], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await self.tend()


async def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.001)


@dataclass
class Server:
    """One server: its folder, its engine, and the processes that share both."""

    root: Path
    base: BaseModel
    core: Core = field(default_factory=lambda: Core(capacity=4))
    processes: list[Process] = field(default_factory=list)

    @property
    def uploads(self) -> Path:
        """The folder where adapters come and go."""
        return self.root / "uploads"

    @property
    def snapshots(self) -> set[str]:
        """What is on disk, by content."""
        return {path.name for path in (self.run / "snapshots").iterdir() if not path.name.startswith(".")}

    @property
    def run(self) -> Path:
        return self.root / "run" / "server"

    def declared(self, name: str, says: str) -> tuple[str, Declared]:
        return name, Declared(put(self.root / "declared" / name, says))

    def catalogue(self, *declared: tuple[str, Declared], **more: Any) -> Catalogue:
        """The declared adapters, and whatever is uploaded."""
        self.uploads.mkdir(exist_ok=True)
        sources = more.pop("sources", (Source.parse(str(self.uploads)),))
        return Catalogue(dict(declared), sources, **more)

    def process(
        self,
        catalogue: Catalogue | None = None,
        *,
        slots: int = 4,
        max_wait_s: float = 0.05,
        max_loads_per_s: float = 0,
        max_bytes: int | None = None,
        max_rank: int = 8,
    ) -> Process:
        """Starts one more process, which does its chores when it is told to."""
        number = len(self.processes) + 1
        run = RunDirectory.open("server", self.root / "run")
        engine = FakeEngine(self.core)
        snapshots = Snapshots(run.folder / "snapshots", max_bytes)
        board = Board(run, number)

        def warm(version: Version) -> None:
            if version.content.private:
                snapshots.warm(version.content.digest)

        pool = AdapterPool(
            run,
            Ledger(run),
            board,
            catalogue or self.catalogue(),
            Intake(self.base, snapshots, max_rank, SERVED_NAMES, AUTO_NAMES),
            engine,
            Loader(engine, run, capacity=self.core.capacity, max_per_s=max_loads_per_s, warm=warm),
            Slots(slots, max_wait_s, board, run),
        )
        process = Process(pool, engine, Tending(pool), number)
        self.processes.append(process)
        for one in self.processes:
            one.pool.board.look_around()
        return process

    def close(self) -> None:
        for process in self.processes:
            process.tending.stop()
            process.pool.board.close()
            process.shelf.run.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return Files(tmp_path_factory.mktemp("base")).base()


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds on a server takes hundredths of them here."""
    shorter = {"FOLLOW_S": 0.01, "WATCH_S": 0.01, "GONE_S": 0.05, "IDLE_S": 0.05, "STRAYS_S": 0.05}
    for name, seconds in shorter.items():
        monkeypatch.setattr(maintenance, name, seconds)
    monkeypatch.setattr(importer, "QUIET_S", 0.0)


@pytest.fixture
def server(tmp_path: Path, base: BaseModel) -> Iterator[Server]:
    server = Server(tmp_path, base)
    yield server
    server.close()
    assert server.core.faults == []


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory.open("server", tmp_path / "run")
    yield run
    run.close()


PREAMBLE = """
import sys, time
from pathlib import Path
from vllm_lora_router.coordination.usage_table import Board
from vllm_lora_router.adapters.runtime.version_log import Content, Key, Ledger
from vllm_lora_router.coordination.run_directory import RunDirectory
parent, arguments = Path(sys.argv[1]), sys.argv[2:]
"""


@contextmanager
def beside(parent: Path, script: str, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Another process, which has done what `script` says and then waits to be killed."""
    command = PREAMBLE + script + "\nprint('done', flush=True)\ntime.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", command, str(parent), *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"done\n"
        yield process
    finally:
        process.kill()
        process.wait()
