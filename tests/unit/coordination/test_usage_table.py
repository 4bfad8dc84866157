"""Usage tables: each process reads which adapters the other processes use."""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_lora_router.coordination import usage_table as module
from vllm_lora_router.coordination.run_directory import RunDirectory, RunDirectoryError
from vllm_lora_router.coordination.usage_table import ROWS, TABLE_BYTES, UsageTable, Use

from ..processes import kill, other_process
from ..resources import full, small_disk

VERSION = 2**20


@pytest.fixture
def tables(run: RunDirectory) -> Iterator[tuple[UsageTable, UsageTable]]:
    tables = UsageTable(run, 1), UsageTable(run, 2)
    for table in tables:
        table.refresh()
    yield tables
    for table in tables:
        table.close()


def set_use(table: UsageTable, version: int = VERSION, **values: float) -> None:
    use = table.use(version)
    for name, value in values.items():
        setattr(use, name, value)
    table.write(version)


def uses_of_others(table: UsageTable) -> dict[int, Use]:
    """Return the uses of the other processes that `table` reads."""
    return {version: use for process in table.other_processes() for version, use in process.uses}


def test_each_process_reads_the_uses_of_the_others(tables: tuple[UsageTable, UsageTable]) -> None:
    first, second = tables
    set_use(first, leases=2, running=1, running_since=5.0, waiting_since=7.0)
    set_use(second, VERSION + 1, leases=1)
    assert uses_of_others(second) == {VERSION: Use(2, 1, 5.0, 7.0)} and uses_of_others(first) == {VERSION + 1: Use(1)}
    assert [len(process.uses) for process in second.all_processes()] == [1, 1]
    assert not first.is_only_process and not second.is_only_process


def test_ended_use_is_removed(tables: tuple[UsageTable, UsageTable]) -> None:
    first, second = tables
    set_use(first, leases=1)
    set_use(first, leases=0)
    assert uses_of_others(second) == {} and first.uses == {}


def test_changing_uses_do_not_affect_other_uses(tables: tuple[UsageTable, UsageTable]) -> None:
    first, second = tables
    for version in range(VERSION, VERSION + 4):
        set_use(first, version, leases=version - VERSION + 1)
    for ended, started in ((VERSION + 1, VERSION + 4), (VERSION, VERSION + 5), (VERSION + 4, VERSION + 6)):
        set_use(first, ended, leases=0)
        set_use(first, started, leases=started - VERSION + 1)
    assert uses_of_others(second) == {VERSION + offset: Use(offset + 1) for offset in (2, 3, 5, 6)}


def test_request_with_unknown_adapters_is_visible_until_it_ends(tables: tuple[UsageTable, UsageTable]) -> None:
    first, second = tables

    def since() -> float:
        return next(second.other_processes()).unknown_since

    with first.track_unknown_use():
        start = since()
        with first.track_unknown_use():
            assert since() == start > 0
        inner = first.track_unknown_use()
        inner.__enter__()
    assert since() > start
    inner.__exit__(None, None, None)
    assert since() == 0


def test_published_version_log_line_is_visible(tables: tuple[UsageTable, UsageTable]) -> None:
    first, second = tables
    first.publish(17)
    set_use(first, leases=1)
    with first.track_unknown_use():
        assert [process.sequence for process in second.other_processes()] == [17]
    assert [process.sequence for process in first.all_processes()] == [17, 0]


def test_rows_of_ended_uses_are_reused(tables: tuple[UsageTable, UsageTable]) -> None:
    first, second = tables
    for version in range(VERSION, VERSION + 3 * ROWS):
        set_use(first, version, leases=1)
        set_use(first, version, leases=0)
    for version in range(VERSION, VERSION + ROWS):
        set_use(first, version, leases=1)
    assert uses_of_others(second).keys() == set(range(VERSION, VERSION + ROWS))
    with pytest.raises(OverflowError, match="8192 adapters are in use at once"):
        first.use(VERSION + ROWS)


def test_process_that_ended_has_no_uses(tables: tuple[UsageTable, UsageTable], run: RunDirectory) -> None:
    _, second = tables
    third = UsageTable(run, 3)
    second.refresh()
    set_use(third, leases=1)
    assert uses_of_others(second).keys() == {VERSION}
    third.close()
    second.refresh()
    assert uses_of_others(second) == {} and len(list(second.other_processes())) == 1


USES = """
table = UsageTable(RunDirectory.open("server", parent), int(arguments[0]))
use = table.use(2**20)
use.leases, use.running, use.running_since = 1, 1, time.monotonic()
table.write(2**20)
"""


def test_killed_process_has_no_uses(tmp_path: Path, run: RunDirectory) -> None:
    table = UsageTable(run, 1)
    with other_process(tmp_path / "run", USES, "2") as process:
        table.refresh()
        (use,) = uses_of_others(table).values()
        assert (use.leases, use.running) == (1, 1) and use.running_since > 0 and not table.is_only_process
        kill(process)
        table.refresh()
        assert uses_of_others(table) == {} and table.is_only_process
        reused = UsageTable(run, 2)  # process ids are reused
        table.refresh()
        assert uses_of_others(table) == {} and not table.is_only_process
        reused.close()
    table.close()


def test_dead_process_does_not_look_alive_while_another_process_checks_it(
    tables: tuple[UsageTable, UsageTable], run: RunDirectory
) -> None:
    first, _ = tables
    dead = run.folder / "processes" / "77"
    dead.write_bytes(bytes(4096))
    with dead.open("rb") as checked:
        fcntl.flock(checked, fcntl.LOCK_SH)
        first.refresh()
    assert len(list(first.other_processes())) == 1


WRITES = """
table = UsageTable(RunDirectory.open("server", parent), 2)
table.publish(17)
use = table.use(2**20)
use.leases, use.running, use.running_since = 1, 1, 5.0
table.write(2**20)
print('done', flush=True)
while True:
    table.write(2**20)
"""


def test_table_is_consistent_at_every_read(tmp_path: Path, run: RunDirectory) -> None:
    table = UsageTable(run, 1)
    with other_process(tmp_path / "run", WRITES):
        table.refresh()
        reads = [next(table.other_processes()) for _ in range(20_000)]
    assert {process.sequence for process in reads} == {17}
    assert all(process.uses == [(VERSION, Use(1, 1, 5.0))] for process in reads)
    table.close()


FILLS_THE_DISK = """
table = UsageTable(RunDirectory.open("server", parent), 1)
try:
    (parent / "filler").write_bytes(bytes(1 << 20))
except OSError:
    pass
for version in range(8192):
    table.use(version).leases = 1
    table.write(version)
"""


def test_table_needs_no_disk_space_after_it_was_created(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "500k") as disk, other_process(disk, FILLS_THE_DISK) as process:
        assert process.poll() is None


def test_full_disk_is_reported_and_leaves_no_table(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "200k") as disk:
        run = RunDirectory.open("server", disk)
        with pytest.raises(RunDirectoryError) as raised:
            UsageTable(run, 1)
        assert str(raised.value).startswith(
            f"the usage table {run.folder}/processes/1 needs 327.7 kB: the disk of {run.folder} is full ("
        )
        assert str(raised.value).endswith(
            "or set router.adapters.run_dir to a folder on another disk and restart the server"
        )
        assert list((run.folder / "processes").iterdir()) == []
        run.close()


def test_process_that_starts_on_a_full_disk_does_not_affect_the_others(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        run = RunDirectory.open("server", disk)
        table = UsageTable(run, 1)
        with full(disk):
            with pytest.raises(RunDirectoryError):
                UsageTable(run, 2)
            table.refresh()
            assert list(table.other_processes()) == []
        second = UsageTable(run, 2)
        table.refresh()
        assert len(list(table.other_processes())) == 1
        second.close()
        table.close()
        run.close()


def test_table_is_not_visible_before_it_is_complete(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    table = UsageTable(run, 1)

    def allocate(descriptor: int, offset: int, size: int) -> None:
        table.refresh()
        assert table.is_only_process

    monkeypatch.setattr(module.os, "posix_fallocate", allocate)
    second = UsageTable(run, 2)
    table.refresh()
    assert not table.is_only_process
    assert (run.folder / "processes" / "2").stat().st_size == TABLE_BYTES
    second.close()
    table.close()
