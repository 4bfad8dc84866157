"""Maintenance: unused versions and snapshots are removed from the engine and the disk, and no others."""

import asyncio
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime import importer, maintenance
from vllm_lora_router.adapters.runtime.lease import LeaseRefusedError
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, AdapterKey
from vllm_lora_router.adapters.runtime.version_manager import STORE_LOCK

from ...processes import kill, other_process
from .conftest import Process, Server, delete_adapter, put_adapter, until, write_adapter

MEDICAL = AdapterKey("medical")

LONG_S = 0.3  # six times IDLE_S


def upload(server: Server, answer: str) -> Path:
    """Put an adapter medical that gives this answer into the source folder."""
    return put_adapter(server.uploads / "medical", answer)


async def upload_and_apply(server: Server, answer: str, *processes: Process) -> None:
    """Upload a new version and wait until all processes serve it."""
    upload(server, answer)
    for process in processes:
        await process.refresh()
    for process in processes:
        await process.maintenance.follow_log()
        await process.wait_for_loads()
        assert await process.request("medical") == answer


async def maintain_for(seconds: float, *processes: Process) -> None:
    """Run the maintenance tasks for this time."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for process in processes:
            await process.maintain()


async def mark_idle(monkeypatch: pytest.MonkeyPatch, *processes: Process) -> None:
    """Make the next sweep the first one that removes unused versions."""
    monkeypatch.setattr(maintenance, "UNUSED_SNAPSHOTS_S", 60.0)
    monkeypatch.setattr(maintenance, "IDLE_S", 60.0)
    for process in processes * 2:
        await process.maintain()
    monkeypatch.setattr(maintenance, "IDLE_S", 0.0)


def retired(process: Process, identifier: int = FIRST_ID) -> bool:
    return identifier in process.manager.version_log.retired


# Retirement


async def test_superseded_version_is_removed_from_engine_and_disk(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    await upload_and_apply(server, "v2", process)
    assert len(server.snapshots) == 2 and FIRST_ID in server.core.memory
    await process.maintain_until(lambda: retired(process))
    assert server.core.memory.keys() == {FIRST_ID + 1} and len(server.snapshots) == 1
    assert not process.pool.loader.is_resident(FIRST_ID)
    assert await process.request("medical") == "v2"


async def test_deleted_adapter_is_removed_from_engine_and_disk(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    delete_adapter(server.uploads / "medical")
    await process.maintain_until(lambda: retired(process))
    assert server.snapshots == set() and not server.core.memory and process.manager.states == {}


async def test_version_that_returns_after_retirement_is_the_same_version(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    await upload_and_apply(server, "v2", first, second)
    async with asyncio.timeout(60):
        while not retired(first):
            await first.maintain()
            await second.maintain()
    await upload_and_apply(server, "v1", first, second)  # `two` assumes that the engine still has it in memory
    assert first.manager.version_log.serving_version(MEDICAL) == first.manager.version_log.versions[FIRST_ID]
    await maintain_for(LONG_S, first, second)
    assert not retired(first) and await first.request("medical") == await second.request("medical") == "v1"


async def test_version_that_returns_is_loaded_before_its_requests_run(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    await upload_and_apply(server, "v2", first, second)
    async with asyncio.timeout(60):
        while not retired(second):
            await second.maintenance.follow_log()
            await first.maintain()
    loads = len(server.core.loads)
    await upload_and_apply(server, "v1", second)
    assert len(server.core.loads) == loads + 1  # otherwise the engine reads it between two steps, and all streams wait


async def test_version_that_serves_again_during_a_sweep_is_not_retired(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = server.process()
    put_adapter(server.uploads / "other", "v1")
    await upload_and_apply(server, "v1", process)
    await process.request("other")
    versions = list(process.manager.version_log.versions.values())
    for version in versions:
        await process.manager.deactivate(version.key)
    await mark_idle(monkeypatch, process)
    server.core.on_unload = lambda: process.manager.version_log.serve(versions[1].key, versions[1].content)
    await process.maintenance.sweep()
    assert retired(process) and not retired(process, versions[1].id)


async def test_snapshot_of_another_name_is_kept(server: Server) -> None:
    process = server.process()
    put_adapter(server.uploads / "same", "v1")
    await upload_and_apply(server, "v1", process)
    assert await process.request("same") == "v1"
    await upload_and_apply(server, "v2", process)
    await process.maintain_until(lambda: process.manager.version_log.retired)
    server.core.memory.clear()
    assert await process.request("same") == "v1" and len(server.snapshots) == 2


async def test_files_that_are_read_in_place_are_never_deleted(server: Server) -> None:
    process = server.process(server.resolver(snapshot=False))
    upload(server, "v1")
    lease = await process.lease("medical")
    version = lease.version
    lease.release()
    assert version.content.folder == str(server.uploads / "medical")
    folder = (server.uploads / "medical").resolve()
    upload(server, "v2")
    await maintain_for(LONG_S, process)
    assert folder.exists()


# Versions that are kept


async def test_version_is_kept_while_a_process_leases_it(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    lease = await second.lease("medical")
    await upload_and_apply(server, "v2", first, second)
    await maintain_for(LONG_S, first, second)
    server.core.memory.clear()
    assert not retired(first) and await second.engine.answer(lease.model) == "v1"
    lease.release()
    async with asyncio.timeout(60):
        while not retired(first):
            await first.maintain()
            await second.maintain()


async def test_version_is_kept_until_all_processes_have_read_that_it_is_superseded(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    await upload_and_apply(server, "v2", first)
    await maintain_for(LONG_S, first)  # while `two` runs no maintenance
    server.core.memory.clear()
    assert not retired(first) and await second.request("medical") == "v1"
    async with asyncio.timeout(60):
        while not retired(first):
            await second.maintenance.follow_log()
            await first.maintain()
    assert await second.request("medical") == "v2"


async def test_version_is_kept_while_its_successor_is_loading(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    server.core.loads_allowed.clear()
    upload(server, "v2")
    await maintain_for(LONG_S, first, second)
    server.core.memory.clear()
    assert not retired(first) and await first.request("medical") == await second.request("medical") == "v1"
    server.core.loads_allowed.set()


async def test_version_is_kept_while_a_process_has_read_but_not_applied_its_deactivation(server: Server) -> None:
    first, second = server.process(), server.process()
    put_adapter(server.uploads / "other", "other")
    await upload_and_apply(server, "v1", first, second)
    await first.manager.deactivate(MEDICAL)
    assert await second.request("other") == "other"  # reads the version log
    await maintain_for(LONG_S, first)
    server.core.memory.clear()
    assert not retired(first) and await second.request("medical") == "v1"


async def test_sweep_waits_for_a_running_import(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    await upload_and_apply(server, "v2", process)
    await mark_idle(monkeypatch, process)
    with process.manager.run.locked(STORE_LOCK, shared=True):  # the import may reuse this snapshot
        sweeping = asyncio.ensure_future(process.maintenance.sweep())
        await asyncio.sleep(0.05)
        assert len(server.snapshots) == 2
    await sweeping
    assert retired(process) and len(server.snapshots) == 1


async def test_adapter_deactivated_in_one_process_is_deactivated_in_all(server: Server) -> None:
    first, second = server.process(), server.process()
    put_adapter(server.uploads / "other", "other")
    await upload_and_apply(server, "v1", first, second)
    await first.manager.deactivate(MEDICAL)
    assert await second.request("other") == "other"  # reads the version log with the change by `one`
    async with asyncio.timeout(60):
        while not retired(first):
            await second.maintenance.follow_log()
            await first.maintain()
    server.core.memory.clear()
    assert await second.request("medical") == await first.request("medical") == "v1"


async def test_version_is_kept_for_idle_s_after_its_last_lease(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "IDLE_S", 0.2)
    process = server.process()
    await upload_and_apply(server, "v1", process)
    lease = await process.lease("medical")
    await upload_and_apply(server, "v2", process)
    lease.release()
    released = time.monotonic()
    await process.maintain_until(lambda: retired(process))
    assert time.monotonic() - released >= 0.2


async def test_version_is_kept_while_a_request_with_unknown_adapters_runs(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    with second.pool.track_unknown_use():  # such as a file upload by form, which uses the plain name
        running = asyncio.ensure_future(second.engine.answer("medical", seconds=LONG_S + 0.05))
        await upload_and_apply(server, "v2", first, second)
        await maintain_for(LONG_S, first, second)
        server.core.memory.clear()
        assert not retired(first) and await running == "v1"
    async with asyncio.timeout(60):
        while not retired(first):
            await first.maintain()
            await second.maintain()


async def test_later_requests_with_unknown_adapters_do_not_keep_a_version(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    await upload_and_apply(server, "v2", process)
    before, deadline = process.pool.track_unknown_use(), time.monotonic() + 8
    before.__enter__()
    while not retired(process) and time.monotonic() < deadline:
        after = process.pool.track_unknown_use()  # each starts before the last one ends
        after.__enter__()
        before.__exit__(None, None, None)
        await process.maintain()
        before = after
    before.__exit__(None, None, None)
    assert retired(process)


USES = """
table = UsageTable(RunDirectory.open("server", parent), 77)
table.use(2**20).leases = 1
table.write(2**20)
"""


async def test_killed_process_keeps_no_version(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    await upload_and_apply(server, "v2", process)
    with other_process(server.run.parent, USES) as other:
        await process.maintenance.follow_log()
        await maintain_for(LONG_S, process)
        assert not retired(process)
        kill(other)
    await process.maintain_until(lambda: retired(process))


async def test_process_that_ended_keeps_no_version(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    await second.lease("medical")
    await upload_and_apply(server, "v2", first)
    second.pool.usage.close()
    second.manager.run.close()
    server.processes.remove(second)
    await first.maintain_until(lambda: retired(first))


async def test_version_that_served_again_during_a_sweep_is_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    await upload_and_apply(server, "v2", first, second)
    await mark_idle(monkeypatch, first, second)
    with second.manager.run.locked(STORE_LOCK, shared=True):  # as during the import of a large adapter
        sweeping = asyncio.ensure_future(first.maintenance.sweep())  # is about to retire v1
        await asyncio.sleep(0.02)
        await upload_and_apply(server, "v1", second)
        lease = await second.lease("medical")
        await upload_and_apply(server, "v2", second)
    await sweeping
    server.core.memory.clear()
    assert await second.engine.answer(lease.model) == "v1"
    lease.release()


async def test_idle_time_restarts_when_a_version_serves_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    await upload_and_apply(server, "v2", process)
    await mark_idle(monkeypatch, process)
    await upload_and_apply(server, "v1", process)
    with process.pool.track_unknown_use():  # starts now, while v1 serves
        running = asyncio.ensure_future(process.engine.answer("medical", seconds=0.2))
        await asyncio.sleep(0)
        await upload_and_apply(server, "v2", process)
        await process.maintenance.sweep()
        server.core.memory.clear()
        assert not retired(process) and await running == "v1"


async def test_version_is_kept_while_it_loads_for_a_cancelled_request(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    server.core.loads_allowed.clear()
    put_adapter(server.uploads / "other", "other")
    cancelled = asyncio.ensure_future(process.lease("other"))
    await until(lambda: server.core.loading)
    cancelled.cancel()
    await process.manager.deactivate(AdapterKey("other"))
    await maintain_for(LONG_S, process)
    server.core.loads_allowed.set()
    await process.wait_for_loads()
    assert server.core.faults == []


async def test_version_that_serves_again_while_it_is_retired_is_kept(server: Server) -> None:
    first, second = server.process(), server.process()
    await upload_and_apply(server, "v1", first, second)
    await upload_and_apply(server, "v2", first, second)
    upload(server, "v1")
    for _ in range(5):  # one process retires the version that the other imports
        await maintain_for(0.1, second)
        sweeping = asyncio.ensure_future(first.maintenance.sweep())
        version = await second.manager.refresh(MEDICAL)
        await sweeping
        assert not retired(second) and version.content.digest in server.snapshots
        await second.manager.deactivate(MEDICAL)


async def test_snapshot_without_a_version_is_removed(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    process.manager.importer.snapshots.create(write_adapter(server.uploads / ".other", "replaced while it was copied"))
    await maintain_for(LONG_S, process)
    assert len(server.snapshots) == 1


# Files that change


async def test_new_adapter_is_found_by_the_next_request(server: Server) -> None:
    process = server.process()
    process.maintenance.start()
    with pytest.raises(LeaseRefusedError):
        await process.request("medical")
    upload(server, "v1")
    assert await process.request("medical") == "v1"


async def test_started_maintenance_follows_changes_and_retires_versions(server: Server) -> None:
    first, second = server.process(), server.process()
    for process in (first, second):
        process.maintenance.start()
    upload(server, "v1")
    assert await first.request("medical") == await second.request("medical") == "v1"
    upload(server, "v2")
    await until(lambda: all(retired(process) for process in (first, second)))
    assert await first.request("medical") == await second.request("medical") == "v2"
    delete_adapter(server.uploads / "medical")
    await until(lambda: not server.snapshots and not first.manager.states and not second.manager.states)


async def test_more_adapters_than_one_slice_are_all_watched(server: Server) -> None:
    process = server.process(max_rank=8)
    number = 2 * maintenance.SLICE + 3
    names = [f"adapter-{index}" for index in range(number)]
    source = write_adapter(server.root / "same", "v1")
    for name in names:
        (server.uploads / name).symlink_to(put_adapter(server.uploads / ".all", "v1").name)
    await asyncio.gather(*(process.manager.refresh(AdapterKey(name)) for name in names))
    assert source.exists() and len(server.snapshots) == 1
    put_adapter(server.uploads / ".all", "v2")
    await process.refresh()
    serving = [process.manager.version_log.serving_version(AdapterKey(name)) for name in names]
    assert all(version is not None and version.id >= FIRST_ID + number for version in serving)


async def test_files_overwritten_in_place_are_imported_when_the_writer_is_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "QUIET_S", 0.4)
    process = server.process()
    folder = write_adapter(server.uploads / "medical", "v1")
    assert await process.request("medical") == "v1"
    new = write_adapter(server.uploads / ".new", "v2")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        content = (new / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        watching = asyncio.ensure_future(process.maintenance.watch_files())
        await asyncio.sleep(0.05)
        (folder / name).write_bytes(content)
        assert await process.request("medical") == "v1"
    await watching
    await process.maintain_until(lambda: len(process.manager.version_log.versions) == 2)
    await process.wait_for_loads()
    assert await process.request("medical") == "v2"


async def test_slow_upload_does_not_delay_other_adapters(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    process = server.process()
    uploading = write_adapter(server.uploads / "a-large-one", "v1")
    assert await process.request("a-large-one") == "v1"
    await upload_and_apply(server, "v1", process)
    monkeypatch.setattr(importer, "QUIET_S", 0.2)
    ended = asyncio.Event()

    async def keep_writing() -> None:
        while not ended.is_set():
            (uploading / "adapter_config.json").touch()
            await asyncio.sleep(0.02)

    writer = asyncio.ensure_future(keep_writing())
    await asyncio.sleep(0.03)
    upload(server, "v2")
    process.maintenance.start()
    try:
        await until(lambda: len(process.manager.version_log.versions) == 3, seconds=8)
    finally:
        ended.set()
        await writer


async def test_folder_that_is_missing_briefly_twice_is_not_deleted(server: Server) -> None:
    process = server.process()
    await upload_and_apply(server, "v1", process)
    for _ in range(2):
        (server.uploads / "medical").rename(server.uploads / ".away")
        await process.maintenance.watch_files()
        (server.uploads / ".away").rename(server.uploads / "medical")
        await process.maintenance.watch_files()
        await asyncio.sleep(0.06)
    assert MEDICAL in process.manager.states and process.manager.version_log.superseded == {}


# Disk space


def size_bytes(server: Server) -> int:
    """Return the size of one adapter's snapshot."""
    folder = write_adapter(server.root / "measured", "v1")
    return sum(file.stat().st_size for file in folder.iterdir())


async def filled(server: Server, number: int, space_for: float) -> tuple[Process, list[str]]:
    """Return a process that served `number` adapters in order, with disk space for `space_for` adapters."""
    process = server.process(max_bytes=int(space_for * size_bytes(server)))
    names = [f"adapter-{index}" for index in range(number)]
    for name in names:
        put_adapter(server.uploads / name, name)
        assert await process.request(name) == name
    return process, names


def deactivated(process: Process, names: list[str]) -> list[str]:
    return [name for name in names if process.manager.version_log.serving_version(AdapterKey(name)) is None]


async def test_least_recently_used_adapter_is_deactivated_when_the_disk_fills(server: Server) -> None:
    process, names = await filled(server, 5, space_for=5.3)
    leased = await process.lease(names[0])
    for name in (names[2], names[3], names[4], names[1]):
        await process.request(name)
    await process.maintenance.sweep()
    assert deactivated(process, names) == [names[2]]
    await process.maintain_until(lambda: len(server.snapshots) < 5)
    server.core.memory.clear()
    assert await process.engine.answer(leased.model) == names[0]
    leased.release()
    assert await process.request(names[1]) == names[1]
    assert await process.request(names[2]) == names[2]  # it is imported again when requested


async def test_no_adapter_is_deactivated_while_there_is_space(server: Server) -> None:
    process, names = await filled(server, 5, space_for=6)
    await maintain_for(0.1, process)
    assert deactivated(process, names) == []


async def test_only_as_many_adapters_are_deactivated_as_needed(server: Server) -> None:
    process, names = await filled(server, 5, space_for=5.3)
    await process.maintain_until(lambda: len(server.snapshots) == 4)
    await maintain_for(0.1, process)
    assert deactivated(process, names) == [names[0]] and len(server.snapshots) == 4


async def test_adapter_refused_for_lack_of_space_serves_when_there_is_space(server: Server) -> None:
    process, names = await filled(server, 4, space_for=4.5)
    put_adapter(server.uploads / "one-more", "one-more")
    with pytest.raises(LeaseRefusedError, match=r"raise router\.adapters\.max_disk_gb, or remove adapters"):
        await process.request("one-more")
    for name in names[:2]:
        delete_adapter(server.uploads / name)
    await process.maintain_until(lambda: not process.manager.shortages)
    assert await process.request("one-more") == "one-more"


async def test_space_is_freed_for_a_requested_adapter(server: Server) -> None:
    process, _ = await filled(server, 4, space_for=4.5)
    put_adapter(server.uploads / "one-more", "one-more")
    answer = None
    async with asyncio.timeout(60):
        while answer is None:
            try:
                answer = await process.request("one-more")
            except LeaseRefusedError:
                await process.maintain()
    assert answer == "one-more" and len(server.snapshots) == 4


class RecordingMetrics:
    """Adapter metrics that keep the last size of the snapshot store."""

    snapshot_bytes: int | None = None

    def count_load(self, seconds: float) -> None: ...

    def count_failed_load(self) -> None: ...

    def set_snapshot_bytes(self, used_bytes: int) -> None:
        self.snapshot_bytes = used_bytes

    def set_unavailable_adapters(self, number: int) -> None: ...

    def set_not_answering(self, number: int) -> None: ...


async def test_sweep_reports_the_size_of_the_snapshot_store(server: Server) -> None:
    process = server.process()
    metrics = process.pool.loader.metrics = RecordingMetrics()
    await process.maintenance.sweep()
    assert metrics.snapshot_bytes == 0
    await upload_and_apply(server, "v1", process)
    await process.maintenance.sweep()
    size = size_bytes(server)
    assert metrics.snapshot_bytes == size
    delete_adapter(server.uploads / "medical")
    await process.maintain_until(lambda: retired(process))
    await process.maintenance.sweep()
    assert metrics.snapshot_bytes == 0
