"""A mount that hangs: its adapters are unavailable with the reason, and nothing else is affected."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import disk_calls
from vllm_lora_router.adapters.runtime.lease import AdapterUnavailableError, UnknownAdapterError
from vllm_lora_router.adapters.runtime.loader import AdapterMetrics
from vllm_lora_router.adapters.runtime.resolver import Resolver
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.config.schema import AdapterSettings
from vllm_lora_router.server.schemas.adapters import AdaptersResponse

from .conftest import FakeEngine, Process, Server, put_adapter, until


@dataclass
class Mount:
    """A folder in which every call hangs while `answers` is not set, as on a network mount without its server."""

    root: Path
    answers: threading.Event = field(default_factory=threading.Event)
    hanging: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if not self.answers.is_set() and not isinstance(path, int) and Path(path).is_relative_to(self.root):
                assert threading.current_thread() is not threading.main_thread(), "the event loop would hang"
                with self.lock:
                    self.hanging += 1
                self.answers.wait()
                with self.lock:
                    self.hanging -= 1
            return call(path, *arguments, **options)

        return wrapped

    @property
    def problem(self) -> str:
        return f"the file system of {self.root} does not answer; check its mount"


@pytest.fixture
def mount(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    mount = Mount(server.root / "mount")
    mount.root.mkdir()
    mount.answers.set()
    for name in ("stat", "lstat", "statvfs", "open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, mount.wrap(getattr(os, name)))
    # Long enough for a machine under load: calls to healthy disks must not take longer.
    monkeypatch.setattr(disk_calls, "TIMEOUT_S", 2.5)
    monkeypatch.setattr(disk_calls, "PROBE_S", 0.01)
    yield mount
    mount.answers.set()


@pytest.fixture
def resolver(server: Server, mount: Mount) -> Resolver:
    """A resolver of two sources: the mount, and the folder of uploads on a healthy disk."""
    for name in ("served", "new"):
        put_adapter(mount.root / name, name)
    server.uploads.mkdir()
    put_adapter(server.uploads / "healthy", "v1")
    return server.resolver(sources=(Source.parse(str(mount.root)), Source.parse(str(server.uploads))))


@pytest.fixture
def process(server: Server, resolver: Resolver) -> Process:
    return server.process(resolver)


async def refusal(process: Process, name: str, tenant: str | None = None) -> str:
    with pytest.raises(AdapterUnavailableError) as raised:
        await process.lease(name, tenant, by_client=True)
    return str(raised.value)


async def hang(mount: Mount, process: Process) -> None:
    """Make the mount hang, and wait until that is known."""
    mount.answers.clear()
    async with asyncio.timeout(60):
        assert await refusal(process, "new") == mount.problem
    await until(lambda: not process.manager.disk(mount.root).is_answering)


async def test_mount_that_hangs_affects_its_adapters_only(
    server: Server, process: Process, mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert await process.request("served") == "served" and await process.request("healthy") == "v1"
    names = await process.pool.names(None)
    metrics = process.pool.loader.metrics = Mock(spec=AdapterMetrics)
    process.pool._adapters.clear()
    mount.answers.clear()
    process.maintenance.start()
    async with asyncio.timeout(60):
        # While it is not known yet, only those wait that need the mount.
        waiting = [asyncio.ensure_future(refusal(process, "new")) for _ in range(20)]
        await until(lambda: mount.hanging)
        put_adapter(server.uploads / "healthy", "v2")
        assert await process.request("served") == "served"
        assert set(await process.pool.names(None)) == set(names) == {"served", "new", "healthy"}
        assert set(await asyncio.gather(*waiting)) == {mount.problem}
        await until(lambda: not process.manager.disk(mount.root).is_answering)
        # Maintenance continues for the other source: files are watched, and superseded versions are removed.
        await until(lambda: process.manager.version_log.retired)
        assert await process.request("healthy") == "v2"
        put_adapter(server.uploads / "later", "later")
        assert await process.request("later") == "later"
        for _ in range(50):
            assert await refusal(process, "new") == mount.problem
        report = await process.pool.report()
        await until(lambda: metrics.set_not_answering.call_args == call(1))
    assert AdaptersResponse.model_validate(report).model_dump(exclude_unset=True) == report
    assert report["not_answering"] == [str(mount.root)]
    reasons = {adapter["name"]: adapter.get("refused") for adapter in report["adapters"]}
    assert reasons["served"] == mount.problem and reasons["healthy"] is None
    assert process.pool.health() == {"unavailable": 0, "problem": mount.problem}
    assert process.manager.states.keys() == {AdapterKey(name) for name in ("served", "healthy", "later")}
    assert mount.hanging <= disk_calls.THREADS + 1
    assert [text for text in caplog.messages if "not answer" in text] == [f"adapters: {mount.problem}"]
    mount.answers.set()
    await until(lambda: process.manager.disk(mount.root).is_answering)
    assert await process.request("new") == "new"
    await until(lambda: metrics.set_not_answering.call_args == call(0))
    assert process.pool.health() == {"unavailable": 0, "problem": None}
    put_adapter(mount.root / "served", "v2")
    await until(lambda: len([key for key in process.manager.version_log.versions.values() if key.name == "served"]) > 1)


async def test_copy_that_hangs_holds_no_lock_that_maintenance_needs(
    server: Server, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_calls, "TIMEOUT_S", 60.0)
    put_adapter(server.uploads / "large", "large")
    await process.request("healthy")
    copying, copied = threading.Event(), threading.Event()
    create = process.manager.importer.snapshots.create

    def slow_create(*arguments: Any) -> Any:
        snapshot = create(*arguments)
        copying.set()
        copied.wait()
        return snapshot

    process.manager.importer.snapshots.create = slow_create  # pyright: ignore[reportAttributeAccessIssue]
    request = asyncio.ensure_future(process.request("large"))
    try:
        await until(copying.is_set)
        number = len(server.snapshots)
        async with asyncio.timeout(60):
            while len(server.snapshots) == number:  # the copy has no version yet, so it is removed
                await process.maintenance.sweep()
    finally:
        copied.set()
        process.manager.importer.snapshots.create = create
    assert await request == "large" and len(server.snapshots) == 2


async def test_tenant_gets_the_shared_adapter_only_if_it_is_known_to_have_none_of_its_own(
    server: Server, mount: Mount
) -> None:
    put_adapter(mount.root / "acme/medical", "acme's")
    server.uploads.mkdir()
    for name in ("medical", "legal"):
        put_adapter(server.uploads / name, "shared")
    sources = (Source.parse(str(mount.root / "{tenant}/{name}")), Source.parse(str(server.uploads)))
    process = server.process(server.resolver(sources=sources))
    assert await process.request("medical", "acme") == "acme's"
    assert await process.request("medical", "globex") == "shared"
    mount.answers.clear()
    async with asyncio.timeout(60):
        assert await refusal(process, "legal", "acme") == mount.problem
        await until(lambda: not process.manager.disk(mount.root).is_answering)
        process.pool._absent[AdapterKey("medical", "globex")] -= 10  # it was looked up long ago
        assert await process.request("medical", "globex") == "shared"
        assert await process.request("medical", "acme") == "acme's"
        assert await process.request("legal") == "shared"
        assert await refusal(process, "medical", "new") == mount.problem
        assert set(await process.pool.names("acme")) == {"medical", "legal"}


async def test_adapter_that_is_read_in_place_is_loaded_only_while_its_mount_answers(
    server: Server, process: Process, resolver: Resolver, mount: Mount
) -> None:
    process = server.process(Resolver(resolver.declared, resolver.sources, snapshot=False))
    key = AdapterKey("new")
    version = await process.manager.refresh(key)
    mount.answers.clear()
    async with asyncio.timeout(60):
        assert await refusal(process, "new") == mount.problem
        await until(lambda: not process.manager.disk(mount.root).is_answering)
        for _ in range(3):
            await process.maintain()
            assert await refusal(process, "new") == mount.problem
    assert server.core.loads == []  # a load would stop every stream
    mount.answers.set()
    await process.maintain_until(lambda: not process.manager.shortages)
    assert await process.request("new") == "new" and [load[1] for load in server.core.loads] == [version.id]


async def test_reload_while_a_mount_hangs_keeps_its_adapters(
    server: Server, process: Process, resolver: Resolver, mount: Mount
) -> None:
    await process.request("served")
    put_adapter(server.uploads / "served", "of a later source")
    await hang(mount, process)
    async with asyncio.timeout(60):
        await process.pool.configure(resolver, AdapterSettings())
        await process.refresh()
        assert await process.request("served") == "served" and await process.request("healthy") == "v1"
        process.manager.states[AdapterKey("served")].version = None
        assert await refusal(process, "served") == mount.problem


async def test_adapter_that_vllm_has_loaded_itself_is_left_to_vllm_while_a_mount_hangs(
    process: Process, mount: Mount
) -> None:
    await process.request("healthy")
    process.engine.registry["vllms-own"] = next(iter(process.engine.registry.values()))
    await hang(mount, process)
    with pytest.raises(UnknownAdapterError):
        await process.lease("vllms-own", by_client=True)


# vLLM's own routes


@pytest.mark.parametrize("client_may_name", ["all", "none"])
async def test_version_that_vllm_has_unloaded_is_registered_again(server: Server, client_may_name: str) -> None:
    server.uploads.mkdir()
    put_adapter(server.uploads / "medical", "v1")
    process = server.process(server.resolver(client_may_name=client_may_name))
    await process.request("medical")
    names = set(process.engine.registry)
    process.engine.registry.clear()
    assert await process.request("medical") == "v1"
    assert process.engine.registry.keys() == names


async def test_version_whose_weights_vllm_has_replaced_is_loaded_again(server: Server) -> None:
    class VllmRequest(FakeEngine):
        """The registry after `load_lora_adapter` with `load_inplace` and the name of a version."""

        overwritten = False

        def registration(self, key: str) -> tuple[int, str] | None:
            registration = super().registration(key)
            return (registration[0], "/elsewhere") if registration and self.overwritten else registration

        def register(self, key: str, version: Any) -> None:
            self.overwritten = False
            super().register(key, version)

    server.uploads.mkdir()
    put_adapter(server.uploads / "medical", "v1")
    process = server.process()
    engine = VllmRequest(server.core)
    process.pool.engine = process.pool.vllm_names._engine = process.pool.loader._engine = process.engine = engine
    await process.request("medical")
    (identifier,) = server.core.memory
    server.core.memory[identifier] = "other weights"
    engine.overwritten = True
    assert await process.request("medical") == "v1"
    assert await process.request("medical") == "v1" and len(server.core.loads) == 2
