"""The files of the audit log: rotation, a full disk, and files that others move."""

import json
import os
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from vllm_lora_router.observability import audit_files, audit_log
from vllm_lora_router.observability.audit_files import check_folder, create_file

from ..resources import no_descriptors
from .conftest import OpenLog, child, files, lines, numbers, output_of, parse, until

SIZE_LIMIT = """
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

log = AuditLog(folder, max_bytes=20_000, **no_rotation)
limit(10_000)
for n in range(30):
    log.append(partial(dict, n=n, text="x" * 400))
until(lambda: log.problem)
problem, at_limit = log.problem, contents()
until(lambda: log.written == 30)
limit(0)
for n in range(30, 130):
    log.append(partial(dict, n=n, text="x" * 400))
until(lambda: log.lost)
during = contents()
limit(resource.RLIM_INFINITY)
until(lambda: log.problem is None)
log.append(partial(dict, n=130))
log.close()
print(json.dumps([problem, at_limit, during, contents(), log.written, log.lost, log.problem]))
"""


def test_partial_write_leaves_only_complete_lines(folder: Path) -> None:
    problem, at_limit, during, after, written, lost, problem_after = output_of(child(SIZE_LIMIT, folder))
    assert problem.endswith("File too large") and str(folder) in problem
    text = "".join(text for _, text in at_limit)
    assert 8000 < len(text) <= 10000 and numbers(parse(text)) == list(range(len(text.splitlines())))
    # After a second without success the log starts a new file, and it deletes files that stayed empty.
    assert numbers(parse("".join(text for _, text in during))) == list(range(30))
    assert all(text for _, text in after)
    first_lost = 130 - lost
    assert numbers(parse("".join(text for _, text in after))) == [*range(first_lost), ("lost", lost), 130]
    assert 0 < lost < 100
    assert (written, problem_after) == (131 - lost, None)


FULL_DISK = """
if sys.argv[2] == "no truncation":
    def ftruncate(fd, size):
        raise PermissionError(1, "Operation not permitted")
    os.ftruncate = ftruncate
folder.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
filler = folder / ".filler"
filler.write_bytes(b"x" * 48 * 1024)
log = AuditLog(folder, max_bytes=20_000, **no_rotation)
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
def own_mounts() -> list[str]:
    """Return a command prefix that lets a process mount file systems that no other process sees."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    attempt = [*prefix, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(attempt, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount file systems")
    return prefix


def test_full_disk_loses_lines_and_counts_them_when_space_is_free_again(folder: Path, own_mounts: list[str]) -> None:
    problem, lost, during, after = output_of(child(FULL_DISK, folder, "default", prefix=own_mounts))
    assert problem.endswith("No space left on device")
    (text,) = during
    assert 0 < len(text) < 16 * 1024 and numbers(parse(text)) == list(range(len(text.splitlines())))
    (text,) = after
    assert numbers(parse(text)) == [*range(100 - lost), ("lost", lost), 100] and 0 < lost < 100


def test_append_only_file_system_keeps_a_truncated_line_separate(folder: Path, own_mounts: list[str]) -> None:
    _, lost, _, (text,) = output_of(child(FULL_DISK, folder, "no truncation", prefix=own_mounts))
    complete = [line for line in text.split("\n") if line.endswith("}")]
    (truncated,) = [line for line in text.split("\n")[:-1] if not line.endswith("}")]
    assert any(line.startswith(truncated) for line in complete)
    assert numbers([json.loads(line) for line in complete]) == [*range(100 - lost), ("lost", lost), 100]


@pytest.mark.parametrize("action", ["delete the folder", "move the folder", "delete the file"])
def test_moved_or_deleted_file_is_replaced(
    folder: Path, open_log: OpenLog, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_files, "MOVE_CHECK_S", 0.1)
    log = open_log()
    log.append(partial(dict, n=0))
    until(lambda: log.written == 1)
    (file,) = files(folder)
    match action:
        case "delete the folder":
            shutil.rmtree(folder)
        case "move the folder":
            folder.rename(folder.with_name("elsewhere"))
        case _:
            file.unlink()
    time.sleep(0.15)
    log.append(partial(dict, n=1))
    until(lambda: log.written == 2)
    assert [line["n"] for line in lines(folder)] == [1]
    assert files(folder) != [file] and log.problem is None


def test_file_with_a_write_error_is_replaced(folder: Path, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "RETRY_S", 0.1)
    created: list[Path] = []

    def create(path: Path) -> int:
        created.append(path)
        fd = create_file(path)
        if len(created) == 1:
            os.close(fd)
            fd = os.open(path, os.O_RDONLY)
        return fd

    log = open_log(create=create)
    log.append(partial(dict, n=0))
    until(lambda: log.problem)
    assert log.problem == f"{created[0]}: Bad file descriptor"
    until(lambda: log.written == 1)
    assert files(folder) == created[1:] and numbers(lines(folder)) == [0]


def test_existing_file_is_never_written_to(folder: Path, open_log: OpenLog) -> None:
    created: list[Path] = []

    def create(path: Path) -> int:
        created.append(path)
        if len(created) == 1:
            path.write_text("of another process")
        return create_file(path)

    log = open_log(create=create)
    log.append(partial(dict, n=0))
    log.close()
    line = f'{{"schema":2,"run":"{log.run}","seq":1,"n":0}}\n'
    assert [path.read_text() for path in created] == ["of another process", line]


def test_new_file_is_started_at_the_size_limit(folder: Path, open_log: OpenLog) -> None:
    log = open_log(rotate_bytes=10_000)
    log.append(partial(dict, n=0, text="x" * 20_000))
    for n in range(1, 400):
        log.append(partial(dict, n=n, text="x" * 100))
        if n % 50 == 0:
            until(lambda n=n: log.written == n + 1)
    log.close()
    large, *others = files(folder)
    assert large.stat().st_size > 20_000 and numbers(lines(folder)) == list(range(400))
    assert all(file.stat().st_size <= 10_000 for file in others)
    assert len(others) == pytest.approx(400 * 151 / 10_000, abs=4)


def test_lines_that_waited_for_the_disk_respect_the_size_limit(
    folder: Path, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
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
    assert numbers(lines(folder)) == list(range(400))
    assert len(files(folder)) > 1 and all(file.stat().st_size <= 10_000 for file in files(folder))


def test_new_file_is_started_at_the_age_limit(folder: Path, open_log: OpenLog) -> None:
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
    assert numbers(lines(folder)) == [0, 1, 2, 3]


SHARED_FOLDER = """
log = AuditLog(folder, rotate_bytes=10_000, rotate_s=1e9, flush_s=0.01)
for n in range(1000):
    log.append(partial(dict, n=n))
    time.sleep(0.0002)
log.close()
print(json.dumps([log.run, log.written]))
"""


def test_two_processes_write_separate_files_in_one_folder(folder: Path) -> None:
    processes = [child(SHARED_FOLDER, folder) for _ in range(2)]
    runs = dict(map(output_of, processes))
    assert list(runs.values()) == [1000, 1000]
    all_lines = lines(folder)
    for run in runs:
        assert numbers([line for line in all_lines if line["run"] == run]) == list(range(1000))
    for file in files(folder):
        assert len({line["run"] for line in parse(file.read_text())}) == 1


def test_check_creates_the_folder_and_leaves_it_empty(folder: Path) -> None:
    assert check_folder(folder / "deep") is None
    assert files(folder / "deep") == []


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_check_returns_why_the_folder_cannot_be_created(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert check_folder(tmp_path / place) == (
        f"{tmp_path / place}: no file can be written in this folder: Not a directory"
    )


READ_ONLY_DISK = """
folder.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
log = AuditLog(folder, **dict(no_rotation, rotate_bytes=200))
def remount(option):
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)
for n in range(3):
    log.append(partial(dict, n=n, text="x" * 100))
    until(lambda: log.written == n + 1)
log._files.close()
remount("ro")
log.append(partial(dict, n=3))
until(lambda: log.problem)
problem = log.problem
remount("rw")
until(lambda: log.problem is None)
log.close()
print(json.dumps([problem, log.lost, log.written, contents()]))
"""


def test_read_only_file_system_keeps_lines_until_it_can_be_written(folder: Path, own_mounts: list[str]) -> None:
    problem, lost, written, files_after = output_of(child(READ_ONLY_DISK, folder, prefix=own_mounts))
    assert problem.endswith("Read-only file system") and (lost, written) == (0, 4)
    assert set(numbers(parse("".join(text for _, text in files_after)))) == {0, 1, 2, 3}


def test_process_without_file_descriptors_keeps_lines_until_one_is_free(
    folder: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log()
    with no_descriptors():
        log.append(partial(dict, n=0))
        until(lambda: log.problem)
        assert "Too many open files" in str(log.problem)
    until(lambda: log.written == 1)
    assert log.lost == 0 and log.problem is None
    warning = next(message for message in caplog.messages if "writing failed" in message)
    assert "requests are served, and 1 lines wait until this process has a free file descriptor (ulimit -n)" in warning
