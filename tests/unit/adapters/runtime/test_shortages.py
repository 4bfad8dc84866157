"""Resources that run out while the server runs: requests are refused with the reason until they are available again."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.runtime import loader, version_manager
from vllm_lora_router.adapters.runtime.lease import AdapterUnavailableError, LeaseRefusedError, UnknownAdapterError
from vllm_lora_router.coordination import usage_table
from vllm_lora_router.server.schemas.adapters import AdaptersResponse

from ...resources import full, no_descriptors, small_disk
from .conftest import Process, Server, delete_adapter, put_adapter, write_adapter


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB for the run directory."""
    with small_disk(tmp_path / "run", "4m", "mode=700") as disk:
        yield disk


@pytest.fixture
def server(tmp_path: Path, disk: Path, base: BaseModel) -> Iterator[Server]:
    """A server whose run directory is on the small disk."""
    server = Server(tmp_path, base)
    yield server
    server.close()
    assert server.core.faults == []


@pytest.fixture
def process(server: Server) -> Process:
    for name in ("known", "new"):
        put_adapter(server.uploads / name, name)
    return server.process()


async def state(process: Process, name: str) -> tuple[str, str | None]:
    """Return the state of an adapter and its reason in the report."""
    report = await process.pool.report()
    assert AdaptersResponse.model_validate(report).model_dump(exclude_unset=True) == report
    status = next(adapter for adapter in report["adapters"] if adapter["name"] == name)
    return status["state"], status.get("refused")


async def refusal(process: Process, name: str) -> str:
    with pytest.raises(AdapterUnavailableError) as raised:
        await process.lease(name, by_client=True)
    return str(raised.value)


async def test_full_disk_is_the_reason_until_it_has_space(
    server: Server, process: Process, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert await process.request("known") == "known"
    caplog.clear()
    folder = process.manager.importer.snapshots.folder
    with full(disk):
        for _ in range(3):
            reason = await refusal(process, "new")
            await process.maintain()
        assert reason.startswith(f"a copy of {server.uploads}/new needs ")
        assert f", but the disk of {folder} is full (" in reason
        assert reason.endswith("or set router.adapters.run_dir to a folder on another disk and restart the server")
        assert await state(process, "new") == ("unavailable", reason)
        health = process.pool.health()
        assert health["unavailable"] == 1 and health["problem"].startswith(f"the disk of {folder} is full (")
        assert not await process.pool.can_serve("new", None)
        assert await process.request("known") == "known"
        with pytest.raises(UnknownAdapterError):
            await process.lease("no-such-adapter")
    await process.maintain()
    assert caplog.messages == [
        f"adapter new: cannot be loaded now ({reason}); trying again",
        "adapter new: can be loaded again",
    ]
    assert process.pool.health() == {"unavailable": 0, "problem": None}
    assert await process.request("new") == "new"


async def test_new_files_wait_for_space_while_the_current_version_serves(
    server: Server, process: Process, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await process.request("known")
    put_adapter(server.uploads / "known", "v2")
    with full(disk):
        for _ in range(3):
            await process.maintain()
            assert await process.request("known") == "known"
        assert (await state(process, "known"))[0] == "loaded"
        (message,) = [message for message in caplog.messages if message.startswith("adapter known: cannot be loaded")]
        assert "still serving version" in message
    await process.maintain_until(lambda: not process.manager.shortages)
    await process.wait_for_loads()
    assert await process.request("known") == "v2"


async def test_requests_do_not_use_the_disk_while_it_is_full(
    process: Process, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports: list[object] = []
    import_adapter = process.manager.importer.import_adapter

    def counted(*arguments):
        imports.append(arguments)
        return import_adapter(*arguments)

    monkeypatch.setattr(process.manager.importer, "import_adapter", counted)
    with full(disk):
        for _ in range(10):
            await refusal(process, "new")
        assert len(imports) == 1
        await process.maintain()
        assert len(imports) == 2


async def test_adapter_that_is_deleted_or_rejected_while_the_disk_is_full_is_no_longer_unavailable(
    server: Server, process: Process, disk: Path
) -> None:
    with full(disk):
        await refusal(process, "known")
        await refusal(process, "new")
        delete_adapter(server.uploads / "new")
        put_adapter(server.uploads / "known", "x", rank=64)
        await process.maintain()
        await process.maintain()
        assert process.pool.health()["unavailable"] == 0
        with pytest.raises(LeaseRefusedError, match="rank 64"):
            await process.lease("known")


async def test_process_without_file_descriptors_serves_loaded_adapters_and_recovers(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    await process.request("known")
    with no_descriptors():
        assert await process.request("known") == "known"
        reason = await refusal(process, "new")
        assert "file descriptors of this process are in use; raise the limit (ulimit -n)" in reason
        await process.manager.retry_shortages()
        assert process.pool.health()["unavailable"] == 1
    assert [message for message in caplog.messages if "adapter new" in message] == [
        f"adapter new: cannot be loaded now ({reason}); trying again"
    ]
    await process.maintain()
    assert await process.request("new") == "new"


async def test_several_processes_without_file_descriptors_schedule_slots(server: Server, process: Process) -> None:
    server.process()
    await process.request("known")
    lease = await process.lease("known")
    with no_descriptors():
        await lease.acquire_slot()
        lease.release()


async def test_adapter_on_disk_is_not_deactivated_when_no_file_descriptor_is_free(process: Process) -> None:
    await process.request("known")
    version = process.manager.states[next(iter(process.manager.states))].version
    assert version is not None
    process.pool.loader.forget(version.id)
    with no_descriptors():
        assert "file descriptors" in await refusal(process, "known")
    assert process.pool.health()["unavailable"] == 1
    await process.maintain()
    assert process.pool.health()["unavailable"] == 0
    lease = await process.lease("known")
    assert lease.version.id == version.id
    lease.release()


async def test_load_rate_is_limited_on_a_full_disk(
    server: Server, process: Process, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def write(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    process.pool.loader.max_per_s = 0.1
    monkeypatch.setattr(loader.os, "pwrite", write)
    monkeypatch.setattr(loader.asyncio, "sleep", sleep)
    assert await process.request("known") == "known" and await process.request("new") == "new"
    assert [pause for pause in pauses if pause > 1]


async def test_file_system_of_a_source_that_fails_is_the_reason(
    process: Process, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    failure = OSError(errno.EIO, os.strerror(errno.EIO), str(server.uploads / "new"))

    def fail(*arguments: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(process.manager.importer, "signature", fail)
        reason = await refusal(process, "new")
        assert reason == f"its files cannot be read ([Errno 5] Input/output error: '{server.uploads}/new')"
        assert process.pool.health()["problem"] == "files of adapters cannot be read (Input/output error)"
    await process.maintain()
    assert await process.request("new") == "new"


async def test_files_that_keep_changing_are_unavailable_and_not_unknown(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_manager, "CHANGING_TIMEOUT_S", -1.0)
    signatures = iter(range(100))
    monkeypatch.setattr(process.manager.importer, "signature", lambda location: f"0,0,{next(signatures)}")
    assert await refusal(process, "new") == "its files keep changing"


async def test_adapters_in_use_beyond_the_usage_table_are_unavailable(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.request("known")
    await process.request("new")
    monkeypatch.setattr(usage_table, "ROWS", 1)
    lease = await process.lease("known")
    assert await refusal(process, "new") == "1 adapters are in use at once; start more API-server processes"
    lease.release()
    assert await process.request("new") == "new"


async def test_adapter_that_does_not_fit_at_all_removes_no_other_adapter(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = server.process()
    put_adapter(server.uploads / "known", "known")
    await process.request("known")
    with (write_adapter(server.uploads / "large", "large") / "adapter_model.safetensors").open("ab") as file:
        file.truncate(8_000_000)
    monkeypatch.setattr(process.manager.importer, "_validate", lambda *arguments: None)
    await refusal(process, "large")
    for _ in range(3):
        await process.maintain()
    assert await process.request("known") == "known" and len(server.core.loads) == 1


async def test_space_on_a_full_disk_is_freed_for_a_requested_adapter(server: Server, disk: Path) -> None:
    process = server.process()
    for name in ("known", "new"):
        put_adapter(server.uploads / name, name)
    await process.request("known")
    (disk / "filler").write_bytes(bytes(process.manager.importer.snapshots.free_bytes() - 4096))
    await refusal(process, "new")
    await process.maintain_until(lambda: not process.manager.shortages)
    assert await process.request("new") == "new"
