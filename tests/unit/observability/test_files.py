"""The audit log's files: when another one begins, and what a full disk leaves whole."""

import json
import os
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from vllm_lora_router.observability import audit_files as module
from vllm_lora_router.observability import audit_log
from vllm_lora_router.observability.audit_files import check_folder, create_file

from .conftest import Open, child, files, lines, parsed, said_by, told, until

LIMITED = """
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

log = AuditLog(folder, most_bytes=20_000, **plenty)
limit(10_000)
for n in range(30):
    log.append(partial(dict, n=n, text="x" * 400))
until(lambda: log.problem)
problem, torn = log.problem, found()
until(lambda: log.written == 30)
limit(0)
for n in range(30, 130):
    log.append(partial(dict, n=n, text="x" * 400))
until(lambda: log.lost)
during = found()
limit(resource.RLIM_INFINITY)
until(lambda: log.problem is None)
log.append(partial(dict, n=130))
log.close()
print(json.dumps([problem, torn, during, found(), log.written, log.lost, log.problem]))
"""


def test_a_write_of_which_the_disk_took_a_part_breaks_no_line(folder: Path) -> None:
    problem, torn, during, found, written, lost, problem_now = said_by(child(LIMITED, folder))
    assert problem.endswith("File too large") and str(folder) in problem
    texts = "".join(text for _, text in torn)
    assert 8000 < len(texts) <= 10000 and told(parsed(texts)) == list(range(len(texts.splitlines())))
    # What found no room for a whole second is left for a new file; one that stayed empty is not left behind.
    assert told(parsed("".join(text for _, text in during))) == list(range(30))
    assert all(text for _, text in found)
    kept = told(parsed("".join(text for _, text in found)))
    after = 130 - lost
    assert kept == [*range(after), ("lost", lost), 130] and 0 < lost < 100
    assert (written, problem_now) == (131 - lost, None)


FULL = """
if sys.argv[2] == "appending only":
    def ftruncate(fd, size):
        raise PermissionError(1, "Operation not permitted")
    os.ftruncate = ftruncate
folder.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
filler = folder / ".filler"
filler.write_bytes(b"x" * 48 * 1024)
log = AuditLog(folder, most_bytes=20_000, **plenty)
for n in range(100):
    log.append(partial(dict, n=n, text="x" * 600))
until(lambda: log.lost)
problem = log.problem
during = [path.read_text() for path in folder.glob("*.jsonl")]
filler.unlink()
until(lambda: log.problem is None)
log.append(partial(dict, n=100))
log.close()
print(json.dumps([problem, log.lost, during, [path.read_text() for path in folder.glob("*.jsonl")]]))
"""


@pytest.fixture
def alone() -> list[str]:
    """What runs a command that may mount file systems, which nobody else sees."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    allowed = [*alone, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(allowed, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    return alone


def test_a_full_disk_gets_what_was_kept_and_how_many_were_lost_when_there_is_room_again(
    folder: Path, alone: list[str]
) -> None:
    problem, lost, during, found = said_by(child(FULL, folder, "as usual", before=alone))
    assert problem.endswith("No space left on device")
    (text,) = during
    assert 0 < len(text) < 16 * 1024 and told(parsed(text)) == list(range(len(text.splitlines())))
    (text,) = found
    assert told(parsed(text)) == [*range(100 - lost), ("lost", lost), 100] and 0 < lost < 100


def test_where_files_can_only_grow_what_a_full_disk_broke_is_a_line_of_its_own(folder: Path, alone: list[str]) -> None:
    _, lost, _, (text,) = said_by(child(FULL, folder, "appending only", before=alone))
    whole = [line for line in text.split("\n") if line.endswith("}")]
    (broken,) = [line for line in text.split("\n")[:-1] if not line.endswith("}")]
    assert any(line.startswith(broken) for line in whole)
    assert told([json.loads(line) for line in whole]) == [*range(100 - lost), ("lost", lost), 100]


@pytest.mark.parametrize("what", ["the folder deleted", "the folder moved", "the file deleted"])
def test_a_file_that_is_taken_away_is_followed_by_a_new_one(
    folder: Path, open_log: Open, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    log = open_log()
    log.append(partial(dict, n=0))
    until(lambda: log.written == 1)
    (file,) = files(folder)
    match what:
        case "the folder deleted":
            shutil.rmtree(folder)
        case "the folder moved":
            folder.rename(folder.with_name("elsewhere"))
        case _:
            file.unlink()
    time.sleep(0.15)
    log.append(partial(dict, n=1))
    until(lambda: log.written == 2)
    assert [line["n"] for line in lines(folder)] == [1]
    assert files(folder) != [file] and log.problem is None


def test_a_file_that_cannot_be_written_any_more_is_left_for_a_new_one(
    folder: Path, open_log: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "RETRY_S", 0.1)
    made: list[Path] = []

    def create(path: Path) -> int:
        made.append(path)
        fd = create_file(path)
        if len(made) == 1:
            os.close(fd)
            fd = os.open(path, os.O_RDONLY)
        return fd

    log = open_log(create=create)
    log.append(partial(dict, n=0))
    until(lambda: log.problem)
    assert log.problem == f"{made[0]}: Bad file descriptor"
    until(lambda: log.written == 1)
    assert files(folder) == made[1:] and told(lines(folder)) == [0]


def test_a_name_that_is_taken_is_not_written_to(folder: Path, open_log: Open) -> None:
    made: list[Path] = []

    def create(path: Path) -> int:
        made.append(path)
        if len(made) == 1:
            path.write_text("another's")
        return create_file(path)

    log = open_log(create=create)
    log.append(partial(dict, n=0))
    log.close()
    assert [path.read_text() for path in made] == ["another's", f'{{"run":"{log.run}","seq":1,"n":0}}\n']


def test_a_file_that_would_grow_too_large_is_left_for_a_new_one(folder: Path, open_log: Open) -> None:
    log = open_log(rotate_bytes=10_000)
    log.append(partial(dict, n=0, text="x" * 20_000))
    for n in range(1, 400):
        log.append(partial(dict, n=n, text="x" * 100))
        if n % 50 == 0:
            until(lambda n=n: log.written == n + 1)
    log.close()
    large, *others = files(folder)
    assert large.stat().st_size > 20_000 and told(lines(folder)) == list(range(400))
    assert all(file.stat().st_size <= 10_000 for file in others)
    assert len(others) == pytest.approx(400 * 140 / 10_000, abs=4)


def test_lines_that_waited_for_the_disk_do_not_make_a_file_too_large_either(
    folder: Path, open_log: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "RETRY_S", 0.1)
    folder.write_text("")
    log = open_log(rotate_bytes=10_000)
    for n in range(400):
        log.append(partial(dict, n=n, text="x" * 100))
    until(lambda: log.problem)
    time.sleep(0.15)
    folder.unlink()
    until(lambda: log.written == 400)
    assert told(lines(folder)) == list(range(400))
    assert len(files(folder)) > 1 and all(file.stat().st_size <= 10_000 for file in files(folder))


def test_a_file_that_is_old_is_left_for_a_new_one(folder: Path, open_log: Open) -> None:
    log = open_log(rotate_s=0.3)
    for n in range(3):
        log.append(partial(dict, n=n))
        until(lambda n=n: log.written == n + 1)
        time.sleep(0.05)
    assert len(files(folder)) == 1
    time.sleep(0.3)
    log.append(partial(dict, n=3))
    log.close()
    assert [len(file.read_text().splitlines()) for file in files(folder)] == [3, 1]
    assert told(lines(folder)) == [0, 1, 2, 3]


SHARING = """
log = AuditLog(folder, rotate_bytes=10_000, rotate_s=1e9, flush_s=0.01)
for n in range(1000):
    log.append(partial(dict, n=n))
    time.sleep(0.0002)
log.close()
print(json.dumps([log.run, log.written]))
"""


def test_two_processes_share_a_folder(folder: Path) -> None:
    running = [child(SHARING, folder) for _ in range(2)]
    runs = dict(map(said_by, running))
    assert list(runs.values()) == [1000, 1000]
    found = lines(folder)
    for run in runs:
        assert told([line for line in found if line["run"] == run]) == list(range(1000))
    for file in files(folder):
        assert len({line["run"] for line in parsed(file.read_text())}) == 1


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(folder: Path) -> None:
    assert check_folder(folder / "deep") is None
    assert files(folder / "deep") == []


@pytest.mark.parametrize(
    ("where", "why"), [("file", "Not a directory"), ("file/below", "Not a directory"), ("link", "Not a directory")]
)
def test_a_folder_that_cannot_be_made_is_named_with_the_reason(tmp_path: Path, where: str, why: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert check_folder(tmp_path / where) == f"{tmp_path / where}: no file can be written there: {why}"
