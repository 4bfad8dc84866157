"""A server's adapters with all real parts except the engine, which checks the files that it is given."""

import asyncio
import itertools
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import SnapshotStore
from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import importer, maintenance
from vllm_lora_router.adapters.runtime.importer import Importer
from vllm_lora_router.adapters.runtime.lease import Lease
from vllm_lora_router.adapters.runtime.loader import Loader, LoadError
from vllm_lora_router.adapters.runtime.maintenance import Maintenance
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.resolver import DeclaredFolder, Location, Resolver
from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler
from vllm_lora_router.adapters.runtime.version_log import AdapterKey, Version, VersionLog
from vllm_lora_router.adapters.runtime.version_manager import VersionManager
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import UsageTable

from ..files.conftest import HIDDEN, Files

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

SERVED_NAMES = ("served-base",)
AUTO_NAMES = ("MoM", "auto")

_numbers = itertools.count(1)


def write_adapter(folder: Path, answer: str, *, rank: int = 4, hidden: int = HIDDEN) -> Path:
    """Write an adapter in PEFT's format that answers `answer`."""
    folder.mkdir(parents=True)
    files = Files(folder)
    weights = {name: array + _number(answer) for name, array in files.adapter_weights(hidden=hidden, rank=rank).items()}
    written = files.adapter(weights, r=rank, revision=answer)
    for name in (CONFIG, WEIGHTS):
        (written / name).rename(folder / name)
    written.rmdir()
    return folder


def put_adapter(folder: Path, answer: str, **options: Any) -> Path:
    """Replace the adapter at `folder` in one step, as git-sync does: `folder` is a link."""
    written = write_adapter(folder.parent / f".{next(_numbers)}", answer, **options)
    link = folder.parent / f".{next(_numbers)}"
    link.symlink_to(written.name)
    link.replace(folder)
    return folder


def delete_adapter(folder: Path) -> None:
    """Delete the adapter that `put_adapter` put at `folder`."""
    folder.unlink(missing_ok=True)


def locate(resolver: Resolver, key: AdapterKey) -> Location | None:
    """Return the location of an adapter's files, without the time limits of the version manager."""
    if (declared := resolver.declared_location(key)) is not None:
        return declared
    locations = [location for _, search in resolver.searches(key) if (location := search()) is not None]
    return next((location for location in locations if location.has_files), next(iter(locations), None))


def read_answer(folder: Path) -> str:
    """Return the answer of the adapter in `folder`, after checking all its tensors."""
    answer = str(json.loads((folder / CONFIG).read_bytes())["revision"])
    for array in load_file(folder / WEIGHTS).values():
        if not np.all(array == _number(answer)):
            raise ValueError(f"{folder} mixes {answer!r} with another adapter")
    return answer


def _number(text: str) -> np.float32:
    return np.float32(sum(place * byte for place, byte in enumerate(text.encode(), start=1)))


@dataclass
class EngineCore:
    """The engine's own process: one memory for all API-server processes.

    As vLLM does, it evicts the least recently used adapter and reads it again from its folder at a request's next step.
    Everything that would end vLLM, or make it answer wrongly, is recorded in `faults`.
    """

    capacity: int
    unloadable: set[str] = field(default_factory=set)  # answers of the adapters that it refuses to load
    load_s: float = 0.0
    memory: OrderedDict[int, str] = field(default_factory=OrderedDict)
    loads: list[tuple[float, int]] = field(default_factory=list)  # start time and version id of each load
    running: Counter[int] = field(default_factory=Counter)  # number of requests by version
    max_running: int = 0  # largest number of versions that ran at once
    faults: list[str] = field(default_factory=list)
    loads_allowed: asyncio.Event = field(default_factory=asyncio.Event)
    loading: int = 0
    on_unload: Callable[[], object] = lambda: None
    _meanings: dict[tuple[str, object], tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loads_allowed.set()

    async def load(self, version: Version) -> None:
        self.loads.append((time.monotonic(), version.id))
        self.loading += 1
        try:
            self.check(self.loading == 1, f"{self.loading} loads at once")
            await asyncio.sleep(self.load_s)
            await self.loads_allowed.wait()
            self._store(version, self._read(version))
        finally:
            self.loading -= 1

    def step(self, version: Version) -> str:
        """Run one step of a request: an adapter that is not in memory is read, which delays other streams."""
        if version.id not in self.memory:
            self._store(version, self._read(version))
        self.memory.move_to_end(version.id)
        return self.memory[version.id]

    def check(self, condition: bool, fault: str) -> None:
        """Record `fault` unless `condition` holds."""
        if not condition:
            self.faults.append(fault)

    def _store(self, version: Version, answer: str) -> None:
        self.memory[version.id] = answer
        while len(self.memory) > self.capacity:
            self.memory.popitem(last=False)

    def _read(self, version: Version) -> str:
        folder = version.content.folder
        try:
            answer = read_answer(Path(folder))
        except (OSError, ValueError) as error:
            self.faults.append(f"{version.engine_name}: {error!r}")
            raise LoadError(f"cannot read {folder}") from error
        # A name, an id and a snapshot folder must always stand for the same adapter.
        kinds = [("name", version.engine_name), ("id", version.id)]
        for kind in [*kinds, ("folder", folder)] if version.content.is_snapshot else kinds:
            identifier = 0 if kind[0] == "folder" else version.id  # two names may share one folder
            meaning = self._meanings.setdefault(kind, (identifier, answer))
            self.check(meaning == (identifier, answer), f"{kind} was {meaning} and is {(identifier, answer)}")
        if answer in self.unloadable:
            raise LoadError(f"does not load {answer}")
        return answer


@dataclass
class FakeEngine:
    """The engine as one API-server process uses it, with its own registry."""

    core: EngineCore
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

    def registration(self, key: str) -> tuple[int, str] | None:
        version = self.registry.get(key)
        return None if version is None else (version.id, version.content.folder)

    def unregister(self, key: str) -> None:
        del self.registry[key]

    async def answer(self, model: str, seconds: float = 0.0) -> str:
        """Run a request with this `model`. It is looked up once, and the adapter may be read at each step."""
        version = self.registry[model]
        core = self.core
        core.running[version.id] += 1
        core.max_running = max(core.max_running, len(+core.running))
        try:
            answer = core.step(version)
            await asyncio.sleep(seconds)
            core.check(core.step(version) == answer, f"{model} changed while it ran")
            return answer
        finally:
            core.running[version.id] -= 1


@dataclass
class Process:
    """One of a server's API-server processes."""

    pool: AdapterPool
    engine: FakeEngine
    maintenance: Maintenance
    number: int

    @property
    def manager(self) -> VersionManager:
        return self.pool.version_manager

    async def lease(self, name: str, tenant: str | None = None, *, by_client: bool = False) -> Lease:
        lease = self.pool.lease_now(name, tenant, by_client=by_client)
        return lease or await self.pool.lease(name, tenant, by_client=by_client)

    async def request(self, name: str, tenant: str | None = None, seconds: float = 0.0) -> str:
        """Return the answer to a request that is routed to an adapter."""
        lease = await self.lease(name, tenant)
        try:
            await lease.acquire_slot()
            return await self.engine.answer(lease.model, seconds)
        finally:
            lease.release()

    async def refresh(self) -> None:
        """Import changed files and follow the version log. New versions may still have to be loaded."""
        await self.maintenance.watch_files()
        await until(lambda: not self.manager._refreshing)
        await self.maintenance.follow_log()

    async def wait_for_loads(self) -> None:
        """Wait until all new versions are loaded or have failed to load."""
        manager = self.manager
        await until(lambda: not manager._loading and not any(state.pending for state in manager.states.values()))

    async def maintain(self) -> None:
        """Run every maintenance task once."""
        await self.refresh()
        await self.maintenance.sweep()
        await self.maintenance.retry_shortages()

    async def maintain_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Run the maintenance tasks until `condition` holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self.maintain()


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


@dataclass
class Server:
    """One server: its folder, its engine, and the processes that share both."""

    root: Path
    base: BaseModel
    core: EngineCore = field(default_factory=lambda: EngineCore(capacity=4))
    processes: list[Process] = field(default_factory=list)

    @property
    def uploads(self) -> Path:
        """The source folder, to which adapters are uploaded."""
        return self.root / "uploads"

    @property
    def snapshots(self) -> set[str]:
        """The digests of the snapshots on disk."""
        return {path.name for path in (self.run / "snapshots").iterdir() if not path.name.startswith(".")}

    @property
    def run(self) -> Path:
        return self.root / "run" / "server"

    def declared(self, name: str, answer: str) -> tuple[str, DeclaredFolder]:
        """Write an adapter outside of the source folder, and return it as a declared one."""
        return name, DeclaredFolder(put_adapter(self.root / "declared" / name, answer))

    def resolver(self, *declared: tuple[str, DeclaredFolder], **options: Any) -> Resolver:
        """Return a resolver of the declared adapters and of the source folder."""
        self.uploads.mkdir(exist_ok=True)
        sources = options.pop("sources", (Source.parse(str(self.uploads)),))
        return Resolver(dict(declared), sources, **options)

    def process(
        self,
        resolver: Resolver | None = None,
        *,
        slots: int = 4,
        max_wait_s: float = 0.05,
        max_loads_per_s: float = 0,
        max_bytes: int | None = None,
        max_rank: int = 8,
    ) -> Process:
        """Add a process. It runs its maintenance tasks only when a test calls them."""
        number = len(self.processes) + 1
        run = RunDirectory.open("server", self.root / "run")
        engine = FakeEngine(self.core)
        snapshots = SnapshotStore(run.folder / "snapshots", max_bytes)
        usage = UsageTable(run, number)

        def warm(version: Version) -> None:
            if version.content.is_snapshot:
                snapshots.warm(version.content.digest)

        pool = AdapterPool(
            run,
            VersionLog(run),
            usage,
            resolver or self.resolver(),
            Importer(self.base, snapshots, max_rank, SERVED_NAMES, AUTO_NAMES),
            engine,
            Loader(engine, run, capacity=self.core.capacity, max_per_s=max_loads_per_s, warm=warm),
            SlotScheduler(slots, max_wait_s, usage, run),
        )
        self.processes.append(Process(pool, engine, Maintenance(pool), number))
        for process in self.processes:
            process.pool.usage.refresh()
        return self.processes[-1]

    def close(self) -> None:
        for process in self.processes:
            process.maintenance.stop()
            process.pool.usage.close()
            process.manager.run.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return Files(tmp_path_factory.mktemp("base")).base()


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the intervals of seconds to hundredths of seconds."""
    intervals = {"FOLLOW_S": 0.01, "WATCH_S": 0.01, "MISSING_S": 0.05, "IDLE_S": 0.05, "UNUSED_SNAPSHOTS_S": 0.05}
    for name, seconds in intervals.items():
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
