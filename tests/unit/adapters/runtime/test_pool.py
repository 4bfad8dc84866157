"""Leases: which version answers a request, and that the version does not change until the request ends."""

import asyncio
import gc
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.adapters.files.snapshots import Snapshot, SnapshotStore
from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime import pool as module
from vllm_lora_router.adapters.runtime.lease import LeaseRefusedError, UnknownAdapterError
from vllm_lora_router.adapters.runtime.resolver import DeclaredFolder, Resolver
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, AdapterKey
from vllm_lora_router.config.schema import AdapterSettings

from .conftest import WEIGHTS, Process, Server, delete_adapter, put_adapter, read_answer, until, write_adapter

MEDICAL = AdapterKey("medical")


def upload(server: Server, answer: str) -> Path:
    """Put an adapter medical that gives this answer into the source folder."""
    return put_adapter(server.uploads / "medical", answer)


async def refresh(*processes: Process) -> None:
    for process in processes:
        await process.refresh()


async def wait_for_loads(*processes: Process) -> None:
    for process in processes:
        await process.wait_for_loads()


def engine_name(process: Process, key: AdapterKey = MEDICAL) -> str | None:
    state = process.manager.states.get(key)
    return state.version.engine_name if state is not None and state.version is not None else None


@pytest.fixture
def process(server: Server) -> Process:
    return server.process()


# Leases


async def test_first_request_imports_and_loads_the_adapter(server: Server, process: Process) -> None:
    upload(server, "v1")
    assert process.pool.lease_now("medical", None) is None
    lease = await process.pool.lease("medical", None)
    assert lease.model == lease.version.engine_name == "medical"
    assert Path(lease.version.content.folder).is_relative_to(server.run / "snapshots")
    assert await process.engine.answer(lease.model) == "v1"
    second = process.pool.lease_now("medical", None)
    assert second is not None and second.version is lease.version
    for item in (lease, second, second):
        item.release()
    assert process.pool.usage.uses == {}


async def test_concurrent_requests_share_one_import_and_one_load(server: Server, process: Process) -> None:
    upload(server, "v1")
    assert await asyncio.gather(*(process.request("medical") for _ in range(30))) == ["v1"] * 30
    assert len(server.core.loads) == len(server.snapshots) == 1
    assert list(process.manager.version_log.versions) == [2**20]


async def test_concurrent_requests_to_two_processes_load_once(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    upload(server, "v1")
    answers = await asyncio.gather(
        *(process.request("medical") for process in (process_a, process_b) for _ in range(5))
    )
    assert answers == ["v1"] * 10 and len(server.core.loads) == 1
    assert process_a.manager.version_log.serving_version(MEDICAL) == process_b.manager.version_log.serving_version(
        MEDICAL
    )


async def test_lease_without_require_loaded_does_not_need_the_engines_memory(server: Server, process: Process) -> None:
    upload(server, "v1")
    await process.request("medical")
    process.pool.loader.forget(FIRST_ID)
    assert process.pool.lease_now("medical", None) is None
    lease = process.pool.lease_now("medical", None, require_loaded=False)
    assert lease is not None and process.engine.registry[lease.model] == lease.version
    lease.release()


async def test_unknown_name_raises_unknown_adapter_error_and_leaves_no_state(server: Server, process: Process) -> None:
    upload(server, "v1")
    await process.request("medical")
    pool, manager = process.pool, process.manager

    def sizes() -> list[int]:
        tables = (manager.states, manager._refreshing, manager._loading, manager.version_log.serving)
        return [len(table) for table in tables]

    before = sizes()
    for name in ("missing", *(f"made-up-{number}" for number in range(100)), "../medical", "a\nb", "x" * 300):
        for tenant in (None, "acme"):
            assert pool.lease_now(name, tenant) is None
            with pytest.raises(LeaseRefusedError):
                await pool.lease(name, tenant)
            assert not await pool.can_serve(name, tenant)
    await asyncio.sleep(0)
    assert sizes() == before
    assert process.engine.registry.keys() == {"medical"} and len(pool.usage.uses) == 0
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'missing'"):
        await pool.lease("missing", None)


async def test_unknown_names_of_tenants_are_cached_in_limited_number(server: Server) -> None:
    pool = server.process(server.resolver(sources=(Source.parse(str(server.uploads / "{tenant}/{name}")),))).pool
    for number in range(100):
        with pytest.raises(UnknownAdapterError):
            await pool.lease(f"made-up-{number}", "acme")
    assert len(pool.version_manager.states) == 0 and len(pool._absent) <= pool._absent.maxsize < 10**5


async def test_lease_cancelled_during_import_or_load_leaves_no_state(server: Server, process: Process) -> None:
    upload(server, "v1")
    server.core.loads_allowed.clear()
    for delay_s in (0, 0.001, 0.02, 0.05):
        waiting = asyncio.ensure_future(process.request("medical"))
        await asyncio.sleep(delay_s)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    server.core.loads_allowed.set()
    assert await process.request("medical") == "v1"
    assert process.pool.usage.uses == {} and not process.manager._refreshing and not process.manager._loading
    assert len(server.core.loads) == 1


async def test_lease_cancelled_while_waiting_for_a_slot_leaves_no_state(server: Server) -> None:
    process = server.process(slots=1)
    for name in ("medical", "legal"):
        put_adapter(server.uploads / name, name)
    await process.request("legal")
    holder = await process.lease("medical")
    await holder.acquire_slot()
    waiting = asyncio.ensure_future(process.request("legal"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    holder.release()
    assert process.pool.usage.uses == {}
    assert await process.request("legal") == "legal"


async def test_more_adapters_than_slots_all_answer_within_the_number_of_slots(server: Server) -> None:
    processes = [server.process(slots=2) for _ in range(2)]
    names = [f"adapter-{number}" for number in range(5)]
    for name in names:
        put_adapter(server.uploads / name, name)
    requests = [(name, process) for name in names for process in processes for _ in range(3)]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(process.request(name, seconds=0.005) for name, process in requests))
    assert answers == [name for name, _ in requests]
    assert server.core.max_running <= 2


async def test_pinned_version_is_never_retired_but_its_slot_is_released(server: Server) -> None:
    process = server.process(slots=1)
    upload(server, "v1")
    lease = await process.lease("medical")
    await lease.acquire_slot()
    lease.pin()
    lease.release()
    assert process.pool.slot_scheduler.running == frozenset()
    upload(server, "v2")
    await refresh(process)
    await wait_for_loads(process)
    for _ in range(10):
        await process.maintain()
        await asyncio.sleep(0.01)
    assert await process.engine.answer(lease.model) == "v1"


# New versions


async def test_new_version_serves_as_soon_as_it_is_loaded(server: Server, process: Process) -> None:
    upload(server, "v1")
    lease = await process.lease("medical")
    server.core.loads_allowed.clear()
    upload(server, "v2")
    await refresh(process)
    assert await process.request("medical") == "v1"  # v2 is being loaded
    server.core.loads_allowed.set()
    await wait_for_loads(process)
    assert await process.request("medical") == "v2"
    server.core.memory.clear()  # evicted
    assert await process.engine.answer(lease.model) == "v1"
    lease.release()


async def test_unused_version_is_replaced_without_a_gap(server: Server, process: Process) -> None:
    upload(server, "v1")
    assert await process.request("medical") == "v1"
    upload(server, "v2")
    await refresh(process)
    lease = process.pool.lease_now("medical", None)
    assert lease is not None
    lease.release()
    await wait_for_loads(process)
    assert await process.request("medical") == "v2"


async def test_content_that_returns_is_the_earlier_version(server: Server, process: Process) -> None:
    names = []
    for answer in ("v1", "v2", "v1", "v2"):
        upload(server, answer)
        await refresh(process)
        if names:
            await wait_for_loads(process)
        assert await process.request("medical") == answer
        names.append(str(engine_name(process)))
    assert names == [names[0], names[1]] * 2 and names[0] == "medical" and names[1].startswith("medical@")


async def test_content_that_returns_during_a_load_keeps_serving(server: Server, process: Process) -> None:
    upload(server, "v1")
    assert await process.request("medical") == "v1"
    server.core.loads_allowed.clear()
    upload(server, "v2")
    await refresh(process)
    upload(server, "v1")
    await refresh(process)
    server.core.loads_allowed.set()
    await wait_for_loads(process)
    await refresh(process)
    assert await process.request("medical") == "v1"


async def test_content_that_returns_during_a_load_does_not_delay_retirement(server: Server, process: Process) -> None:
    upload(server, "v1")
    await process.request("medical")
    server.core.loads_allowed.clear()
    upload(server, "v2")
    await refresh(process)
    upload(server, "v1")
    await refresh(process)
    assert next(process.pool.usage.all_processes()).sequence == process.manager.version_log.sequence
    server.core.loads_allowed.set()


async def test_all_processes_switch_to_a_new_version(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    for answer in ("v1", "v2", "v3"):
        upload(server, answer)
        await refresh(process_a, process_b)
        await wait_for_loads(process_a, process_b)
        assert await process_a.request("medical") == await process_b.request("medical") == answer
    versions = process_a.manager.version_log.versions
    assert versions == process_b.manager.version_log.versions and len(versions) == 3


async def test_process_follows_the_version_log_without_checking_files(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    upload(server, "v1")
    assert await process_a.request("medical") == await process_b.request("medical") == "v1"
    upload(server, "v2")
    await process_a.refresh()
    await process_b.maintenance.follow_log()
    await process_b.wait_for_loads()
    assert await process_b.request("medical") == "v2"


async def test_slow_import_does_not_supersede_a_newer_version(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    loop = asyncio.get_running_loop()

    class SlowStore(SnapshotStore):
        def create(self, source: Path, boundary: Path | None = None) -> Snapshot:
            snapshot = super().create(source, boundary)
            process_a.manager.importer.snapshots = SnapshotStore(self.folder)
            upload(server, "v2")
            asyncio.run_coroutine_threadsafe(process_b.manager._import(MEDICAL), loop).result(60)
            return snapshot

    process_a.manager.importer.snapshots = SlowStore(process_a.manager.importer.snapshots.folder)
    upload(server, "v1")
    assert await process_a.request("medical") == "v2"
    assert len(process_a.manager.version_log.versions) == 1


async def test_version_superseded_before_its_first_lease_is_not_loaded(server: Server, process: Process) -> None:
    for answer in ("v1", "v2", "v3"):
        upload(server, answer)
        await process.manager.refresh(MEDICAL)
    assert await process.request("medical") == "v3"
    assert len(server.core.loads) == 1
    await process.maintain_until(lambda: len(server.snapshots) == 1)
    assert await process.request("medical") == "v3"


async def test_lease_that_is_loading_keeps_its_version(server: Server, process: Process) -> None:
    upload(server, "v1")
    server.core.loads_allowed.clear()
    waiting = asyncio.ensure_future(process.lease("medical"))
    await until(lambda: server.core.loading)
    upload(server, "v2")
    await refresh(process)
    server.core.loads_allowed.set()
    lease = await waiting
    assert await process.engine.answer(lease.model) == "v1"
    lease.release()
    await wait_for_loads(process)
    assert await process.request("medical") == "v2"


async def test_adapter_deactivated_during_a_load_serves_that_lease(server: Server, process: Process) -> None:
    upload(server, "v1")
    server.core.loads_allowed.clear()
    waiting = asyncio.ensure_future(process.lease("medical"))
    await until(lambda: server.core.loading)
    await process.manager.deactivate(MEDICAL)
    for _ in range(8):
        await process.maintain()
        await asyncio.sleep(0.01)
    server.core.loads_allowed.set()
    lease = await waiting
    server.core.memory.clear()
    assert await process.engine.answer(lease.model) == "v1"
    lease.release()
    assert process.engine.registry == {}
    assert await process.request("medical") == "v1"


async def test_adapter_deactivated_right_after_its_import_is_refused(server: Server, process: Process) -> None:
    upload(server, "v1")
    waiting = asyncio.ensure_future(process.pool.lease("medical", None))
    await until(lambda: MEDICAL in process.manager._refreshing)

    def deactivate(_: object) -> None:
        process.manager.version_log.deactivate(MEDICAL)
        process.manager.apply_changes([MEDICAL])
        process.manager.forget(MEDICAL)

    process.manager._refreshing[MEDICAL].add_done_callback(deactivate)
    with pytest.raises(LeaseRefusedError, match="removed a moment ago"):
        await waiting


# Rejected files


@pytest.mark.parametrize("problem", ["truncated", "rank", "other base"])
async def test_rejected_files_leave_the_current_version_serving(
    server: Server, process: Process, caplog: pytest.LogCaptureFixture, problem: str
) -> None:
    upload(server, "v1")
    await process.request("medical")
    staged = write_adapter(server.uploads / ".staged", "bad", **{"rank": {"rank": 16}}.get(problem, {}))
    if problem == "other base":
        staged = write_adapter(server.uploads / ".staged2", "bad", hidden=32)
    if problem == "truncated":
        (staged / WEIGHTS).write_bytes((staged / WEIGHTS).read_bytes()[:-100])
    (server.uploads / ".link").symlink_to(staged.name)
    (server.uploads / ".link").replace(server.uploads / "medical")
    for _ in range(3):
        await process.maintain()
    assert await process.request("medical") == "v1"
    version = process.manager.states[MEDICAL].version
    assert version is not None and caplog.text.count("adapter medical: new files rejected (") == 1
    assert f"; still serving version {version.digest[:8]}\n" in caplog.text
    assert await process.pool.names(None) == ["medical"]
    upload(server, "v2")
    await refresh(process)
    await wait_for_loads(process)
    assert await process.request("medical") == "v2"


async def test_rejected_adapter_gives_the_reason_and_serves_once_it_is_valid(server: Server, process: Process) -> None:
    put_adapter(server.uploads / "medical", "bad", rank=16)
    for _ in range(2):
        with pytest.raises(LeaseRefusedError, match=r"rank 16 is above the server's --max-lora-rank 8"):
            await process.pool.lease("medical", None)
    assert await process.pool.names(None) == [] and not await process.pool.can_serve("medical", None)
    upload(server, "v1")
    assert await process.request("medical") == "v1"


async def test_version_that_the_engine_refuses_leaves_the_current_version_serving(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    server.core.unloadable.add("v2")
    upload(server, "v1")
    assert await process_a.request("medical") == await process_b.request("medical") == "v1"
    upload(server, "v2")
    for _ in range(5):
        await refresh(process_a, process_b)
        await wait_for_loads(process_a, process_b)
        await asyncio.sleep(0.01)
    assert await process_a.request("medical") == await process_b.request("medical") == "v1"
    upload(server, "v3")
    await refresh(process_a, process_b)
    await wait_for_loads(process_a, process_b)
    assert await process_a.request("medical") == await process_b.request("medical") == "v3"


async def test_failed_load_does_not_delay_retirement(server: Server, process: Process) -> None:
    server.core.unloadable.add("v2")
    upload(server, "v1")
    await process.request("medical")
    upload(server, "v2")
    await refresh(process)
    await wait_for_loads(process)
    await process.maintain_until(lambda: len(server.snapshots) == 1)


async def test_version_uploaded_while_the_engine_refuses_another_one_serves(server: Server, process: Process) -> None:
    server.core.unloadable.add("v2")
    upload(server, "v1")
    await process.request("medical")
    server.core.loads_allowed.clear()
    upload(server, "v2")
    await refresh(process)
    upload(server, "v3")
    server.core.loads_allowed.set()
    for _ in range(3):
        await wait_for_loads(process)
        await refresh(process)
    assert await process.request("medical") == "v3"


async def test_failed_load_does_not_supersede_a_version_of_another_process(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    server.core.unloadable.add("v2")
    upload(server, "v1")
    assert await process_a.request("medical") == await process_b.request("medical") == "v1"
    server.core.loads_allowed.clear()
    upload(server, "v2")
    await process_a.refresh()  # starts to load v2
    upload(server, "v3")
    await process_b.manager.refresh(MEDICAL)  # imports v3 before `one` reads of it
    server.core.loads_allowed.set()
    for _ in range(5):
        await wait_for_loads(process_a, process_b)
        await refresh(process_a, process_b)
    assert await process_a.request("medical") == await process_b.request("medical") == "v3"


@pytest.mark.parametrize("is_first", [True, False])
async def test_version_that_the_engine_refuses_is_not_registered_in_vllm(
    server: Server, process: Process, is_first: bool
) -> None:
    """If it were registered, vLLM would load it between two steps and exit when that fails."""
    server.core.unloadable.add("v2")
    if not is_first:
        upload(server, "v1")
        await process.request("medical")
        process.pool.loader.forget(FIRST_ID)  # evicted
    upload(server, "v2")
    await refresh(process)
    with pytest.raises(LeaseRefusedError, match="does not load v2"):
        await process.pool.lease("medical", None)
    assert "v2" not in [read_answer(Path(version.content.folder)) for version in process.engine.registry.values()]


async def test_deleted_snapshot_is_imported_again(server: Server, process: Process) -> None:
    upload(server, "v1")
    version = await process.manager.refresh(MEDICAL)
    process.manager.importer.snapshots.remove(version.content.digest)
    with suppress(LeaseRefusedError):
        assert await process.request("medical") == "v1"
    assert await process.request("medical") == "v1"


# Deletion


async def test_deleted_declared_adapter_is_still_served(server: Server) -> None:
    process = server.process(server.resolver(server.declared("declared", "v1")))
    assert await process.pool.preload(["declared"]) == {}
    delete_adapter(server.root / "declared" / "declared")
    for _ in range(10):
        await process.maintain()
        await asyncio.sleep(0.01)
    assert await process.request("declared") == "v1"
    put_adapter(server.root / "declared" / "declared", "v2")
    await refresh(process)
    await wait_for_loads(process)
    assert await process.request("declared") == "v2"


async def test_deleted_adapter_of_a_source_is_served_until_it_is_missing_for_long(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    upload(server, "v1")
    lease = await process_a.lease("medical")
    await process_b.request("medical")
    delete_adapter(server.uploads / "medical")
    await refresh(process_a, process_b)
    assert (
        await process_a.request("medical") == await process_b.request("medical") == "v1"
    )  # its folder may be about to be replaced
    await asyncio.sleep(0.06)
    await refresh(process_a, process_b)
    for process in (process_a, process_b):
        with pytest.raises(UnknownAdapterError):
            await process.lease("medical")
        assert await process.pool.names(None) == []
    assert MEDICAL not in process_b.manager.states and process_b.engine.registry == {}
    await process_a.maintain()
    server.core.memory.clear()
    assert await process_a.engine.answer(lease.model) == "v1"
    lease.release()
    assert process_a.engine.registry == {}
    upload(server, "v1")
    assert await process_a.request("medical") == "v1"


async def test_folder_that_is_missing_briefly_is_not_deleted(server: Server, process: Process) -> None:
    upload(server, "v1")
    await process.request("medical")
    delete_adapter(server.uploads / "medical")
    await refresh(process)
    upload(server, "v2")
    await refresh(process)
    await wait_for_loads(process)
    assert await process.request("medical") == "v2"
    assert process.manager.states[MEDICAL].missing_since == 0


# Tenants and clients


def tenants(server: Server, **options: Any) -> Resolver:
    root = server.root / "tenants"
    for tenant in ("acme", "evil"):
        (root / tenant).mkdir(parents=True, exist_ok=True)
    sources = (Source.parse(str(root / "{tenant}" / "{name}")), Source.parse(str(server.uploads)))
    return server.resolver(server.declared("acme/medical", "shared"), sources=sources, **options)


async def test_tenants_own_adapter_takes_precedence_over_the_shared_one(server: Server) -> None:
    process = server.process(tenants(server))
    upload(server, "all")
    put_adapter(server.root / "tenants/acme/medical", "acme's")
    answers = {tenant: await process.request("medical", tenant) for tenant in ("acme", "evil", None)}
    assert answers == {"acme": "acme's", "evil": "all", None: "all"}
    lease = process.pool.lease_now("medical", "evil")  # the absence of its own adapter is cached
    assert lease is not None
    lease.release()


@pytest.mark.parametrize("first", ["acme", None])
async def test_tenants_adapter_and_declared_adapter_with_equal_full_names_are_not_mixed(
    server: Server, first: str | None
) -> None:
    process = server.process(tenants(server))
    put_adapter(server.root / "tenants/acme/medical", "acme's")
    for tenant in (first, "acme", None):
        name = "medical" if tenant else "acme/medical"
        assert await process.request(name, tenant) == ("acme's" if tenant else "shared")
    assert await process.request("acme/medical", "acme") == "shared"


async def test_tenant_cannot_use_another_tenants_adapter(server: Server) -> None:
    process = server.process(tenants(server))
    put_adapter(server.root / "tenants/acme/secret", "acme's")
    lease = await process.lease("secret", "acme")
    assert lease.model != lease.version.engine_name == "acme/secret"
    for name in ("secret", "acme/secret", "../acme/secret", lease.version.engine_name, lease.model):
        for tenant in ("evil", None, "evil/../acme"):
            with pytest.raises(LeaseRefusedError):
                await process.pool.lease(name, tenant)
            assert process.pool.lease_now(name, tenant) is None
    assert "acme/secret" not in process.engine.registry and "secret" not in await process.pool.names("evil")
    lease.release()


@pytest.mark.parametrize("client_may_name", ["own", "none"])
async def test_without_public_names_vllm_knows_adapters_only_by_private_names(
    server: Server, client_may_name: str
) -> None:
    process_a, process_b = (server.process(tenants(server, client_may_name=client_may_name)) for _ in range(2))
    upload(server, "all")
    models = []
    for process in (process_a, process_b):
        lease = await process.lease("medical")
        models.append(lease.model)
        assert await process.engine.answer(lease.model) == "all"
        assert process.engine.registry.keys() == {lease.model} and len(lease.model) >= len("medical#") + 16
        assert process.pool.owns(lease.version.engine_name)
        lease.release()
        with pytest.raises(UnknownAdapterError):
            await process.pool.lease("medical", None, by_client=True)
        assert process.pool.lease_now("medical", None, by_client=True) is None
    assert models[0] != models[1]


async def test_client_may_name_own_allows_only_own_adapters(server: Server) -> None:
    process = server.process(tenants(server, client_may_name="own"))
    put_adapter(server.root / "tenants/acme/medical", "acme's")
    upload(server, "all")
    lease = await process.pool.lease("medical", "acme", by_client=True)
    assert await process.engine.answer(lease.model) == "acme's"
    lease.release()
    with pytest.raises(UnknownAdapterError):
        await process.pool.lease("medical", "evil", by_client=True)
    assert await process.pool.names("acme") == ["medical"] and await process.pool.names("evil") == []


async def test_plain_name_in_vllm_means_the_newest_version(server: Server, process: Process) -> None:
    upload(server, "v1")
    lease = await process.lease("medical")
    upload(server, "v2")
    await refresh(process)
    await wait_for_loads(process)
    assert await process.engine.answer("medical") == "v1"  # the version is leased
    lease.release()
    assert await process.engine.answer("medical") == "v2"
    upload(server, "v3")
    await refresh(process)
    await wait_for_loads(process)
    assert await process.request("medical") == await process.engine.answer("medical") == "v3"
    assert len(process.engine.registry) == 2


async def test_process_registers_the_plain_name_without_an_earlier_version(server: Server) -> None:
    process_a, process_b = server.process(), server.process()
    for answer in ("v1", "v2"):
        upload(server, answer)
        await refresh(process_a)
        await wait_for_loads(process_a)
        assert await process_a.request("medical") == answer
    assert await process_b.request("medical") == await process_b.engine.answer("medical") == "v2"


# Configurations


async def test_preloaded_adapters_serve_at_once_under_their_names(server: Server) -> None:
    process = server.process(server.resolver(server.declared("a", "va"), server.declared("b", "vb")))
    assert await process.pool.preload(["a", "b"]) == {}
    assert await process.engine.answer("a") == "va" and await process.engine.answer("b") == "vb"
    lease = process.pool.lease_now("a", None)
    assert lease is not None
    lease.release()


async def test_preload_returns_the_reason_for_each_adapter_that_cannot_be_served(server: Server) -> None:
    bad = put_adapter(server.root / "declared" / "bad", "bad", rank=16)
    declared = [server.declared("a", "va"), ("bad", DeclaredFolder(bad)), ("missing", DeclaredFolder(bad / "x"))]
    refused = await server.process(server.resolver(*declared)).pool.preload(["a", "bad", "missing"])
    assert refused.keys() == {"bad", "missing"}
    assert "rank 16" in refused["bad"] and "is missing from" in refused["missing"]


async def test_preload_loads_at_most_as_many_adapters_as_the_engine_keeps(server: Server) -> None:
    server.core.capacity = 2
    names = [f"adapter-{number}" for number in range(4)]
    process = server.process(server.resolver(*(server.declared(name, name) for name in names)))
    await process.pool.preload(names)
    assert len(server.core.loads) == 2
    assert await process.request("adapter-3") == "adapter-3"


async def test_new_configuration_removes_and_moves_adapters(server: Server) -> None:
    process_a, process_b = (server.declared(name, name) for name in ("one", "two"))
    process = server.process(server.resolver(process_a, process_b))
    await process.pool.preload(["one", "two"])
    lease = await process.lease("one")
    moved = "two", DeclaredFolder(put_adapter(server.root / "elsewhere", "moved"))
    await process.pool.configure(server.resolver(moved), AdapterSettings(max_wait_ms=100, max_loads_per_s=7))
    assert (process.pool.slot_scheduler.max_wait_s, process.pool.loader.max_per_s) == (0.1, 7)
    with pytest.raises(UnknownAdapterError):
        await process.lease("one")
    assert await process.engine.answer(lease.model) == "one"
    lease.release()
    assert "one" not in process.engine.registry
    await refresh(process)
    await wait_for_loads(process)
    assert await process.request("two") == "moved"


async def test_new_configuration_sets_the_limit_of_the_snapshot_store_and_the_reserved_names(server: Server) -> None:
    process = server.process(server.resolver())
    store, importer = process.manager.importer.snapshots, process.manager.importer
    await process.pool.configure(replace(server.resolver(), reserved=("mom",)), AdapterSettings(max_disk_gb=0.5))
    assert (store.max_bytes, importer.reserved) == (500_000_000, ("mom",))
    await process.pool.configure(server.resolver(), AdapterSettings())
    by_default = store.max_bytes
    # The default limit has room for all declared adapters.
    large = put_adapter(server.root / "elsewhere", "large")
    with (large / "adapter_model.safetensors").open("ab") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    await process.pool.configure(server.resolver(("large", DeclaredFolder(large))), AdapterSettings())
    assert by_default is not None and store.max_bytes is not None
    assert store.max_bytes >= 1 << 40 and store.max_bytes > by_default


async def test_new_configuration_ignores_adapters_deactivated_meanwhile(server: Server, process: Process) -> None:
    class SlowResolver(Resolver):
        def searches(self, key: AdapterKey):
            yield server.uploads, lambda: time.sleep(0.05)

    upload(server, "v1")
    await process.request("medical")
    configuring = asyncio.ensure_future(process.pool.configure(SlowResolver({}), AdapterSettings()))
    await asyncio.sleep(0.01)
    process.manager.version_log.deactivate(MEDICAL)
    process.manager.apply_changes([MEDICAL])
    process.manager.forget(MEDICAL)
    await configuring
    assert process.manager.states == {}


async def test_new_configuration_moves_adapters_that_are_not_watched(server: Server) -> None:
    moved = "one", DeclaredFolder(put_adapter(server.root / "elsewhere", "moved"))
    process = server.process(server.resolver(server.declared("one", "one"), watch=False, snapshot=False))
    await process.pool.preload(["one"])
    await process.pool.configure(server.resolver(moved, watch=False, snapshot=False), AdapterSettings())
    for _ in range(3):
        await process.maintain()
        await wait_for_loads(process)
    assert await process.request("one") == "moved"


async def test_configuration_that_forbids_names_withdraws_them_from_vllm(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WITHDRAW_S", 0.05)
    process = server.process()
    upload(server, "v1")
    await process.request("medical")
    upload(server, "v2")
    await refresh(process)
    await wait_for_loads(process)
    await process.request("medical")
    lease = await process.lease("medical")
    assert process.engine.registry.keys() == {"medical", lease.model}
    await process.pool.configure(server.resolver(client_may_name="none"), AdapterSettings())
    assert await process.engine.answer(lease.model) == "v2"  # the request was forwarded already
    await asyncio.sleep(0.06)
    assert await process.request("medical") == "v2"
    assert not process.engine.registry.keys() & {"medical", lease.model}
    lease.release()


async def test_requests_do_not_grow_memory(server: Server, process: Process) -> None:
    names = [f"adapter-{number}" for number in range(3)]
    for name in names:
        put_adapter(server.uploads / name, name)

    def sizes() -> list[int]:
        pool, manager = process.pool, process.manager
        pool_parts = (pool, pool.usage, pool.slot_scheduler, pool.loader, pool.vllm_names)
        parts = (*pool_parts, manager, manager.version_log, manager.importer, process.maintenance)
        values = (value for part in parts for value in vars(part).values())
        return [len(value) for value in values if isinstance(value, dict | list | set | tuple)]

    async def requests() -> None:
        for name in names * 10:
            assert await process.request(name) == name
        for number in range(20):
            with pytest.raises(LeaseRefusedError):
                await process.request(f"{number}-{id(object())}")
        await process.maintain()
        gc.collect()

    await requests()
    before = sizes()
    await requests()
    assert sizes() == before
    assert read_answer(server.uploads / names[0]) == names[0]
