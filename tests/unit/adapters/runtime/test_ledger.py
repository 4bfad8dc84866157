"""What a name stands for, the same in every process, and under which id and name the engine knows it."""

import json
from pathlib import Path

import pytest

from vllm_lora_router.adapters.runtime.version_log import FIRST_ID, Content, Key, Ledger
from vllm_lora_router.coordination.run_directory import RunDirectory

from .conftest import beside

MEDICAL = Key("medical")


def content(says: str, source: str = "") -> Content:
    """`says` stands for the digest, too: the first 8 and 16 characters of it go into names."""
    return Content(says, f"/snapshots/{says}", source or f"source of {says}", rank=4, size_bytes=100)


A, B, C = content("a" * 64), content("b" * 64), content("c" * 64)


@pytest.fixture
def ledger(run: RunDirectory) -> Ledger:
    return Ledger(run)


def file(run: RunDirectory) -> Path:
    return run.folder / "ledger.jsonl"


def state(ledger: Ledger) -> tuple[object, ...]:
    return ledger.sequence, ledger.versions, ledger.serving, ledger.superseded, ledger.retired


def test_ids_begin_where_vllm_has_none_of_its_own(ledger: Ledger) -> None:
    versions = [ledger.serve(Key(f"adapter-{number}"), A) for number in range(3)]
    assert [version.id for version in versions] == [2**20, 2**20 + 1, 2**20 + 2]
    assert FIRST_ID + 10**9 < 2**31


def test_the_first_version_has_the_plain_name_and_later_ones_their_contents(ledger: Ledger) -> None:
    names = [ledger.serve(MEDICAL, each).engine_name for each in (A, B, C)]
    assert names == ["medical", "medical@bbbbbbbb", "medical@cccccccc"]
    assert all(map(ledger.is_engine_name, names)) and not ledger.is_engine_name("medical@aaaaaaaa")


def test_the_same_content_again_is_the_same_version(ledger: Ledger) -> None:
    first, second, again = (ledger.serve(MEDICAL, each) for each in (A, B, A))
    assert again == first != second
    assert ledger.serving_version(MEDICAL) == first and len(ledger.versions) == 2


def test_the_same_content_of_touched_files_stays_the_version_it_was(ledger: Ledger) -> None:
    first = ledger.serve(MEDICAL, A)
    touched = ledger.serve(MEDICAL, content(A.digest, "touched"))
    assert (touched.id, touched.engine_name, touched.content.folder) == (first.id, "medical", A.folder)
    found = ledger.serving_version(MEDICAL)
    assert found is not None and found.content.source == "touched"


def test_two_names_with_one_content_are_two_versions(ledger: Ledger) -> None:
    one, two = ledger.serve(MEDICAL, A), ledger.serve(Key("legal"), A)
    assert one.id != two.id and one.engine_name != two.engine_name


def test_contents_whose_hashes_begin_alike_have_different_names(ledger: Ledger) -> None:
    alike = [content("0" * 8 + "1" * 56), content("0" * 8 + "2" * 56), content("0" * 8 + "2" * 8 + "3" * 48)]
    names = [ledger.serve(MEDICAL, each).engine_name for each in (A, *alike)]
    last = f"medical@{FIRST_ID + 3}"
    assert names == ["medical", "medical@00000000", "medical@" + "0" * 8 + "2" * 8, last]


@pytest.mark.parametrize("keys", [(Key("b", "a"), Key("a/b")), (Key("a/b"), Key("b", "a"))])
def test_a_tenants_adapter_and_one_that_is_declared_under_both_names_are_two(
    ledger: Ledger, keys: tuple[Key, Key]
) -> None:
    one, two = (ledger.serve(key, A) for key in keys)
    assert (one.engine_name, two.engine_name) == ("a/b", "a/b@aaaaaaaa")
    assert ledger.serving_version(keys[0]) == one and ledger.serving_version(keys[1]) == two


def test_an_adapter_that_is_called_like_anothers_version_gets_a_name_of_its_own(ledger: Ledger) -> None:
    ledger.serve(MEDICAL, A)
    ledger.serve(MEDICAL, B)
    assert ledger.serve(Key("medical@bbbbbbbb"), C).engine_name == "medical@bbbbbbbb@cccccccc"


def test_what_no_name_stands_for_any_more_is_superseded_until_it_serves_again(ledger: Ledger) -> None:
    first = ledger.serve(MEDICAL, A)
    assert ledger.superseded == {}
    second = ledger.serve(MEDICAL, B)
    assert ledger.superseded == {first.id: ledger.sequence}
    ledger.serve(MEDICAL, A)
    assert ledger.superseded == {second.id: ledger.sequence}
    ledger.rest(MEDICAL)
    assert ledger.superseded.keys() == {first.id, second.id} and ledger.serving_version(MEDICAL) is None
    ledger.serve(MEDICAL, B)
    assert ledger.superseded.keys() == {first.id}


def test_a_version_is_retired_unless_it_serves_again(ledger: Ledger) -> None:
    first = ledger.serve(MEDICAL, A)
    assert not ledger.retire(first.id, ledger.superseded.get(first.id, 0))
    ledger.serve(MEDICAL, B)
    assert ledger.retire(first.id, ledger.superseded.get(first.id, 0)) and ledger.retired == {first.id}
    assert ledger.serve(MEDICAL, A) == first
    assert ledger.retired == set() and not ledger.retire(first.id, ledger.superseded.get(first.id, 0))


def test_what_failed_gives_way_to_what_served_before_unless_another_has_taken_its_place(ledger: Ledger) -> None:
    first, failed = ledger.serve(MEDICAL, A), ledger.serve(MEDICAL, B)
    ledger.serve(MEDICAL, A, instead_of=failed.id)
    assert ledger.serving_version(MEDICAL) == first
    ledger.serve(MEDICAL, B)
    third = ledger.serve(MEDICAL, C)
    ledger.serve(MEDICAL, A, instead_of=failed.id)
    assert ledger.serving_version(MEDICAL) == third
    ledger.rest(MEDICAL)  # its files are gone
    ledger.serve(MEDICAL, A, instead_of=failed.id)
    assert ledger.serving_version(MEDICAL) is None


def test_every_process_is_told_once_of_what_was_retired(run: RunDirectory, ledger: Ledger) -> None:
    other = Ledger(run)
    first = ledger.serve(MEDICAL, A)
    ledger.serve(MEDICAL, B)
    ledger.retire(first.id, ledger.superseded.get(first.id, 0))
    other.read()
    assert other.take_retired() == ledger.take_retired() == [first.id]
    assert other.take_retired() == []


def test_another_process_reads_the_same_and_is_told_what_changed(run: RunDirectory, ledger: Ledger) -> None:
    other = Ledger(run)
    assert other.changes() == ([], 0)
    ledger.serve(MEDICAL, A)
    ledger.serve(Key("legal", "acme"), B)
    assert other.changes() == ([MEDICAL, Key("legal", "acme")], 4)
    ledger.rest(MEDICAL)
    other.serve(MEDICAL, C)
    ledger.retire(FIRST_ID, ledger.superseded[FIRST_ID])
    ledger.read()
    other.read()
    assert state(other) == state(ledger) == state(read_anew(run))


def test_no_change_is_lost_to_who_reads_for_another_reason(run: RunDirectory, ledger: Ledger) -> None:
    other = Ledger(run)
    ledger.serve(MEDICAL, A)
    other.read()
    ledger.serve(Key("legal"), B)
    other.serve(Key("finance"), C)
    assert other.changes()[0] == [MEDICAL, Key("legal"), Key("finance")]
    assert other.changes()[0] == []


def test_who_swaps_against_another_gets_the_state_of_both(run: RunDirectory, ledger: Ledger) -> None:
    other = Ledger(run)
    first = ledger.serve(MEDICAL, A)
    second = other.serve(MEDICAL, B)
    assert second.id == first.id + 1
    assert ledger.serve(MEDICAL, B) == second  # what the other made is known here


def read_anew(run: RunDirectory) -> Ledger:
    ledger = Ledger(run)
    ledger.read()
    return ledger


def test_half_a_line_of_a_killed_process_is_as_if_it_had_not_been(run: RunDirectory, ledger: Ledger) -> None:
    other = Ledger(run)
    ledger.serve(MEDICAL, A)
    with file(run).open("ab") as opened:
        opened.write(b'{"made":{"id":1048577,"name":"medi')
    before = state(ledger)
    ledger.read()
    other.read()
    assert state(ledger) == state(other) == before
    second = other.serve(MEDICAL, B)
    ledger.read()
    assert ledger.serving_version(MEDICAL) == second
    for line in file(run).read_bytes().splitlines():
        json.loads(line)


WRITES_HALF = """
run = RunDirectory.open("server", parent)
with run.locked("ledger"):
    with (run.folder / "ledger.jsonl").open("ab", buffering=0) as opened:
        opened.write(b'{"made":{"id":1048577,')
    print("done", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_while_it_writes_holds_nobody_up(tmp_path: Path, run: RunDirectory) -> None:
    ledger = Ledger(run)
    ledger.serve(MEDICAL, A)
    with beside(tmp_path / "run", WRITES_HALF) as process:
        process.kill()
        process.wait()
    assert ledger.serve(MEDICAL, B).id == FIRST_ID + 1
    assert state(read_anew(run)) == state(ledger)


def test_a_version_whose_maker_was_killed_before_it_served_it_can_be_retired(run: RunDirectory) -> None:
    Ledger(run).serve(MEDICAL, A)
    made, _ = file(run).read_bytes().splitlines(keepends=True)
    file(run).write_bytes(made)
    ledger = read_anew(run)
    assert ledger.serving_version(MEDICAL) is None and ledger.superseded.keys() == {FIRST_ID}
    assert ledger.serve(MEDICAL, A).id == FIRST_ID
    assert ledger.superseded == {}


APPENDS = """
run = RunDirectory.open("server", parent)
ledger, who = Ledger(run), arguments[0]
print("done", flush=True)
while not (parent / "go").exists():
    time.sleep(0.001)
for number in range(50):
    digest = f"{number % 30:064}"
    key = Key("shared") if number % 2 else Key("own", who)
    ledger.serve(key, Content(digest, digest, who, 4, 100))
"""


def test_two_processes_that_append_at_once_agree_on_everything(tmp_path: Path, run: RunDirectory) -> None:
    ledger = Ledger(run)
    with beside(tmp_path / "run", APPENDS, "one") as one, beside(tmp_path / "run", APPENDS, "two") as two:
        (tmp_path / "run" / "go").write_text("")
        for process in (one, two):
            assert process.stdout is not None and process.stdout.readline() == b"done\n"
    ledger.read()
    versions = ledger.versions.values()
    assert sorted(ledger.versions) == list(range(FIRST_ID, FIRST_ID + len(versions)))
    assert len({version.engine_name for version in versions}) == len(versions)
    contents = {(version.key, version.content.digest) for version in versions}
    assert len(contents) == len(versions) == 15 * 3  # the shared name's are the same for both


FILLS_THE_DISK = """
import json, resource
run = RunDirectory.open("server", parent)
ledger, file = Ledger(run), run.folder / "ledger.jsonl"
ledger.serve(Key("medical"), Content("a" * 64, "/a", "a", 4, 100))
whole = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 30, whole[1]))
try:
    ledger.serve(Key("medical"), Content("b" * 64, "/b", "b", 4, 100))
    raise SystemExit("the disk was not full")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, whole)
assert ledger.serving_version(Key("medical")).content.digest == "a" * 64
ledger.serve(Key("medical"), Content("c" * 64, "/c", "c", 4, 100))
"""


def test_a_full_disk_leaves_what_was_served(tmp_path: Path, run: RunDirectory) -> None:
    with beside(tmp_path / "run", FILLS_THE_DISK):
        pass
    found = read_anew(run).serving_version(MEDICAL)
    assert found is not None and (found.content.digest, found.id) == ("c" * 64, FIRST_ID + 1)
