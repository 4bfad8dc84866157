"""The version log: which content each name serves, its id and its engine name, equal in every process."""

import errno
import json
import os
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime import version_log as module
from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, AdapterContent, AdapterKey, VersionLog
from vllm_lora_router.coordination.run_directory import RunDirectory

from ...processes import kill, other_process, wait_for_line
from ...resources import full, small_disk

MEDICAL = AdapterKey("medical")


def content(digest: str, source_signature: str = "") -> AdapterContent:
    source_signature = source_signature or f"signature of {digest}"
    return AdapterContent(digest, f"/snapshots/{digest}", source_signature, rank=4, size_bytes=100)


A, B, C = content("a" * 64), content("b" * 64), content("c" * 64)


@pytest.fixture
def version_log(run: RunDirectory) -> VersionLog:
    return VersionLog(run)


def file(run: RunDirectory) -> Path:
    return run.folder / "versions.jsonl"


def state(version_log: VersionLog) -> tuple[object, ...]:
    return version_log.sequence, version_log.versions, version_log.serving, version_log.superseded, version_log.retired


def test_ids_do_not_overlap_with_vllms_own_ids(version_log: VersionLog) -> None:
    versions = [version_log.serve(AdapterKey(f"adapter-{number}"), A) for number in range(3)]
    assert [version.id for version in versions] == [2**20, 2**20 + 1, 2**20 + 2]
    assert FIRST_ID + 10**9 < 2**31


def test_first_version_has_plain_engine_name_and_later_versions_append_their_digest(version_log: VersionLog) -> None:
    names = [version_log.serve(MEDICAL, item).engine_name for item in (A, B, C)]
    assert names == ["medical", "medical@bbbbbbbb", "medical@cccccccc"]
    assert all(map(version_log.is_engine_name, names)) and not version_log.is_engine_name("medical@aaaaaaaa")


def test_content_that_served_before_is_the_same_version_again(version_log: VersionLog) -> None:
    first, second, third = (version_log.serve(MEDICAL, item) for item in (A, B, A))
    assert third == first != second
    assert version_log.serving_version(MEDICAL) == first and len(version_log.versions) == 2


def test_equal_content_of_touched_files_keeps_its_version(version_log: VersionLog) -> None:
    first = version_log.serve(MEDICAL, A)
    touched = version_log.serve(MEDICAL, content(A.digest, "touched"))
    assert (touched.id, touched.engine_name, touched.content.folder) == (first.id, "medical", A.folder)
    version = version_log.serving_version(MEDICAL)
    assert version is not None and version.content.source_signature == "touched"


def test_one_content_under_two_names_is_two_versions(version_log: VersionLog) -> None:
    first, second = version_log.serve(MEDICAL, A), version_log.serve(AdapterKey("legal"), A)
    assert first.id != second.id and first.engine_name != second.engine_name


def test_digests_with_equal_prefixes_get_different_engine_names(version_log: VersionLog) -> None:
    similar = [content("0" * 8 + "1" * 56), content("0" * 8 + "2" * 56), content("0" * 8 + "2" * 8 + "3" * 48)]
    names = [version_log.serve(MEDICAL, item).engine_name for item in (A, *similar)]
    last = f"medical@{FIRST_ID + 3}"
    assert names == ["medical", "medical@00000000", "medical@" + "0" * 8 + "2" * 8, last]


@pytest.mark.parametrize("keys", [(AdapterKey("b", "a"), AdapterKey("a/b")), (AdapterKey("a/b"), AdapterKey("b", "a"))])
def test_tenants_adapter_and_declared_adapter_with_equal_full_names_are_two_versions(
    version_log: VersionLog, keys: tuple[AdapterKey, AdapterKey]
) -> None:
    first, second = (version_log.serve(key, A) for key in keys)
    assert (first.engine_name, second.engine_name) == ("a/b", "a/b@aaaaaaaa")
    assert version_log.serving_version(keys[0]) == first and version_log.serving_version(keys[1]) == second


def test_adapter_named_like_another_adapters_version_gets_a_unique_engine_name(version_log: VersionLog) -> None:
    version_log.serve(MEDICAL, A)
    version_log.serve(MEDICAL, B)
    assert version_log.serve(AdapterKey("medical@bbbbbbbb"), C).engine_name == "medical@bbbbbbbb@cccccccc"


def test_version_without_a_name_is_superseded_until_it_serves_again(version_log: VersionLog) -> None:
    first = version_log.serve(MEDICAL, A)
    assert version_log.superseded == {}
    second = version_log.serve(MEDICAL, B)
    assert version_log.superseded == {first.id: version_log.sequence}
    version_log.serve(MEDICAL, A)
    assert version_log.superseded == {second.id: version_log.sequence}
    version_log.deactivate(MEDICAL)
    assert version_log.superseded.keys() == {first.id, second.id} and version_log.serving_version(MEDICAL) is None
    version_log.serve(MEDICAL, B)
    assert version_log.superseded.keys() == {first.id}


def test_version_that_serves_again_is_not_retired(version_log: VersionLog) -> None:
    first = version_log.serve(MEDICAL, A)
    assert not version_log.retire(first.id, version_log.superseded.get(first.id, 0))
    version_log.serve(MEDICAL, B)
    assert version_log.retire(first.id, version_log.superseded.get(first.id, 0)) and version_log.retired == {first.id}
    assert version_log.serve(MEDICAL, A) == first
    assert version_log.retired == set() and not version_log.retire(first.id, version_log.superseded.get(first.id, 0))


def test_previous_version_replaces_a_failed_one_unless_the_name_has_changed_again(version_log: VersionLog) -> None:
    first, failed = version_log.serve(MEDICAL, A), version_log.serve(MEDICAL, B)
    version_log.serve(MEDICAL, A, replacing=failed.id)
    assert version_log.serving_version(MEDICAL) == first
    version_log.serve(MEDICAL, B)
    third = version_log.serve(MEDICAL, C)
    version_log.serve(MEDICAL, A, replacing=failed.id)
    assert version_log.serving_version(MEDICAL) == third
    version_log.deactivate(MEDICAL)  # its files are deleted
    version_log.serve(MEDICAL, A, replacing=failed.id)
    assert version_log.serving_version(MEDICAL) is None


def test_each_process_pops_a_retired_version_once(run: RunDirectory, version_log: VersionLog) -> None:
    other = VersionLog(run)
    first = version_log.serve(MEDICAL, A)
    version_log.serve(MEDICAL, B)
    version_log.retire(first.id, version_log.superseded.get(first.id, 0))
    other.read()
    assert other.pop_retired() == version_log.pop_retired() == [first.id]
    assert other.pop_retired() == []


def test_other_process_reads_equal_state_and_the_changed_names(run: RunDirectory, version_log: VersionLog) -> None:
    other = VersionLog(run)
    assert other.changes() == ([], 0)
    version_log.serve(MEDICAL, A)
    version_log.serve(AdapterKey("legal", "acme"), B)
    assert other.changes() == ([MEDICAL, AdapterKey("legal", "acme")], 4)
    version_log.deactivate(MEDICAL)
    other.serve(MEDICAL, C)
    version_log.retire(FIRST_ID, version_log.superseded[FIRST_ID])
    version_log.read()
    other.read()
    assert state(other) == state(version_log) == state(reopen(run))


def test_reading_for_another_reason_does_not_drop_changes(run: RunDirectory, version_log: VersionLog) -> None:
    other = VersionLog(run)
    version_log.serve(MEDICAL, A)
    other.read()
    version_log.serve(AdapterKey("legal"), B)
    other.serve(AdapterKey("finance"), C)
    assert other.changes()[0] == [MEDICAL, AdapterKey("legal"), AdapterKey("finance")]
    assert other.changes()[0] == []


def test_serving_applies_the_other_processes_changes_first(run: RunDirectory, version_log: VersionLog) -> None:
    other = VersionLog(run)
    first = version_log.serve(MEDICAL, A)
    second = other.serve(MEDICAL, B)
    assert second.id == first.id + 1
    assert version_log.serve(MEDICAL, B) == second  # the other process created it


def reopen(run: RunDirectory) -> VersionLog:
    version_log = VersionLog(run)
    version_log.read()
    return version_log


def test_partial_line_of_killed_process_is_ignored(run: RunDirectory, version_log: VersionLog) -> None:
    other = VersionLog(run)
    version_log.serve(MEDICAL, A)
    with file(run).open("ab") as opened:
        opened.write(b'{"created":{"id":1048577,"name":"medi')
    before = state(version_log)
    version_log.read()
    other.read()
    assert state(version_log) == state(other) == before
    second = other.serve(MEDICAL, B)
    version_log.read()
    assert version_log.serving_version(MEDICAL) == second
    for line in file(run).read_bytes().splitlines():
        json.loads(line)


WRITES_PARTIAL_LINE = """
run = RunDirectory.open("server", parent)
with run.locked("versions"):
    with (run.folder / "versions.jsonl").open("ab", buffering=0) as opened:
        opened.write(b'{"created":{"id":1048577,')
    print("done", flush=True)
    time.sleep(60)
"""


def test_process_killed_during_a_write_does_not_block_others(tmp_path: Path, run: RunDirectory) -> None:
    version_log = VersionLog(run)
    version_log.serve(MEDICAL, A)
    with other_process(tmp_path / "run", WRITES_PARTIAL_LINE) as process:
        kill(process)
    assert version_log.serve(MEDICAL, B).id == FIRST_ID + 1
    assert state(reopen(run)) == state(version_log)


def test_version_of_process_killed_before_serving_it_is_superseded(run: RunDirectory) -> None:
    VersionLog(run).serve(MEDICAL, A)
    created, _ = file(run).read_bytes().splitlines(keepends=True)
    file(run).write_bytes(created)
    version_log = reopen(run)
    assert version_log.serving_version(MEDICAL) is None and version_log.superseded.keys() == {FIRST_ID}
    assert version_log.serve(MEDICAL, A).id == FIRST_ID
    assert version_log.superseded == {}


APPENDS = """
run = RunDirectory.open("server", parent)
version_log, tenant = VersionLog(run), arguments[0]
print("done", flush=True)
while not (parent / "go").exists():
    time.sleep(0.001)
for number in range(50):
    digest = f"{number % 30:064}"
    key = AdapterKey("shared") if number % 2 else AdapterKey("own", tenant)
    version_log.serve(key, AdapterContent(digest, digest, tenant, 4, 100))
"""


def test_two_processes_that_append_at_once_have_equal_state(tmp_path: Path, run: RunDirectory) -> None:
    version_log = VersionLog(run)
    with (
        other_process(tmp_path / "run", APPENDS, "acme") as first,
        other_process(tmp_path / "run", APPENDS, "evil") as second,
    ):
        (tmp_path / "run" / "go").write_text("")
        for process in (first, second):
            assert wait_for_line(process) == b"done\n"
    version_log.read()
    versions = version_log.versions.values()
    assert sorted(version_log.versions) == list(range(FIRST_ID, FIRST_ID + len(versions)))
    assert len({version.engine_name for version in versions}) == len(versions)
    contents = {(version.key, version.content.digest) for version in versions}
    assert len(contents) == len(versions) == 15 * 3  # versions of the shared name are the same in both


FILLS_THE_DISK = """
import json, resource
run = RunDirectory.open("server", parent)
version_log, file = VersionLog(run), run.folder / "versions.jsonl"
version_log.serve(AdapterKey("medical"), AdapterContent("a" * 64, "/a", "a", 4, 100))
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 30, limit[1]))
try:
    version_log.serve(AdapterKey("medical"), AdapterContent("b" * 64, "/b", "b", 4, 100))
    raise SystemExit("the disk was not full")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
assert version_log.serving_version(AdapterKey("medical")).content.digest == "a" * 64
version_log.serve(AdapterKey("medical"), AdapterContent("c" * 64, "/c", "c", 4, 100))
"""


def test_full_disk_keeps_the_version_that_serves(tmp_path: Path, run: RunDirectory) -> None:
    with other_process(tmp_path / "run", FILLS_THE_DISK):
        pass
    version = reopen(run).serving_version(MEDICAL)
    assert version is not None and (version.content.digest, version.id) == ("c" * 64, FIRST_ID + 1)


def test_full_disk_leaves_complete_lines_and_the_log_continues_when_there_is_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        run = RunDirectory.open("server", disk)
        version_log, other = VersionLog(run), VersionLog(run)
        with full(disk):
            with pytest.raises(OSError) as raised:
                for number in range(1000):  # the last block of the file may have space
                    version_log.serve(AdapterKey(f"adapter-{number}"), content(f"{number:064x}"))
            assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(file(run)))
            assert file(run).stat().st_size == 0 or file(run).read_bytes().endswith(b"\n")
            assert all(json.loads(line) for line in file(run).read_bytes().splitlines())
        after = version_log.serve(MEDICAL, A)
        other.read()
        version_log.read()
        assert state(other) == state(version_log) and other.serving_version(MEDICAL) == after
        run.close()


def test_partial_line_is_removed_at_once(
    version_log: VersionLog, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        # The first of two lines is complete.
        patch.setattr(module.os, "write", lambda descriptor, lines: write(descriptor, lines[: lines.index(b"\n") + 9]))
        with pytest.raises(OSError, match="No space left on device"):
            version_log.serve(MEDICAL, A)
    assert file(run).read_bytes().count(b"\n") == 1 and file(run).read_bytes().endswith(b"}\n")
    other = VersionLog(run)
    other.read()
    assert version_log.serve(MEDICAL, A).id == FIRST_ID
    other.read()
    assert state(other) == state(version_log)
