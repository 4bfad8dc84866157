"""Snapshots are complete and immutable, even if their source changes or the copying process is killed."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.snapshots import (
    NoSpaceError,
    SnapshotError,
    SnapshotStore,
    SourceChangingError,
    UnreadableError,
)
from vllm_lora_router.adapters.files.sources import signature

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

MIB = 1 << 20


def adapter(folder: Path, weights: bytes = b"weights", config: bytes = b"{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    return folder


def content(folder: Path) -> tuple[bytes, bytes]:
    return (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()


def sha256(config: bytes, weights: bytes) -> str:
    stream = b"".join(
        b"%s\0%d\0%s" % (name.encode(), len(file), file) for name, file in ((CONFIG, config), (WEIGHTS, weights))
    )
    return hashlib.sha256(stream).hexdigest()


def visible(store: SnapshotStore) -> list[str]:
    return sorted(folder.name for folder in store.folder.iterdir() if not folder.name.startswith("."))


def unfinished(store: SnapshotStore) -> list[Path]:
    return [folder for folder in store.folder.iterdir() if folder.name.startswith(".") and folder.is_dir()]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "store")


def test_snapshot_is_named_by_the_hash_of_its_content(tmp_path: Path, store: SnapshotStore) -> None:
    weights = os.urandom(3 * MIB + 17)
    source = adapter(tmp_path / "medical", weights)
    before = signature(source)
    snapshot = store.create(source)
    assert snapshot.sha256 == sha256(b"{}", weights)
    assert snapshot.folder == store.path(snapshot.sha256) == store.folder / snapshot.sha256
    assert content(snapshot.folder) == (b"{}", weights)
    assert snapshot.size_bytes == len(weights) + 2
    assert snapshot.signature == before
    assert store.exists(snapshot.sha256)


def test_only_the_two_adapter_files_are_copied(tmp_path: Path, store: SnapshotStore) -> None:
    source = adapter(tmp_path / "medical")
    (source / "adapter_model.bin").write_bytes(b"pickle")
    (source / "checkpoint").mkdir()
    assert sorted(file.name for file in store.create(source).folder.iterdir()) == [CONFIG, WEIGHTS]


def test_snapshot_is_read_only_and_the_store_private(tmp_path: Path, store: SnapshotStore) -> None:
    folder = store.create(adapter(tmp_path / "medical")).folder
    assert folder.stat().st_mode & 0o777 == 0o555
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o444}
    assert store.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", ["overwritten", "truncated", "deleted"])
def test_snapshot_does_not_change_with_its_source(tmp_path: Path, store: SnapshotStore, change: str) -> None:
    source = adapter(tmp_path / "medical", b"old weights")
    folder = store.create(source).folder
    if change == "overwritten":
        with (source / WEIGHTS).open("r+b") as opened:
            opened.write(b"new weights")
    elif change == "truncated":
        os.truncate(source / WEIGHTS, 3)
    else:
        shutil.rmtree(source)
    assert content(folder) == (b"{}", b"old weights")


def test_equal_adapters_share_a_snapshot(tmp_path: Path, store: SnapshotStore) -> None:
    first = store.create(adapter(tmp_path / "one"))
    second = store.create(adapter(tmp_path / "two"))
    assert first.folder == second.folder
    assert first.signature != second.signature
    other = store.create(adapter(tmp_path / "other", config=b"{ }"))
    assert visible(store) == sorted({first.sha256, other.sha256})
    assert unfinished(store) == []


def test_moving_bytes_from_one_file_to_the_other_changes_the_hash(tmp_path: Path, store: SnapshotStore) -> None:
    first = store.create(adapter(tmp_path / "one", b"ab", b"c"))
    second = store.create(adapter(tmp_path / "two", b"b", b"ca"))
    assert first.sha256 != second.sha256


def test_links_are_followed_to_their_current_target(tmp_path: Path, store: SnapshotStore) -> None:
    for version in ("a", "b"):
        adapter(tmp_path / version, version.encode())
    (tmp_path / "medical").symlink_to("a")
    old = store.create(tmp_path / "medical")
    (tmp_path / "new-link").symlink_to("b")
    (tmp_path / "new-link").rename(tmp_path / "medical")
    new = store.create(tmp_path / "medical")
    assert [content(snapshot.folder)[1] for snapshot in (old, new)] == [b"a", b"b"]
    assert not (new.folder / WEIGHTS).is_symlink()


def test_snapshot_tells_whether_it_is_a_reflink(tmp_path: Path, store: SnapshotStore) -> None:
    source = adapter(tmp_path / "medical", os.urandom(MIB))
    cloned = subprocess.run(
        ["cp", "--reflink=always", source / WEIGHTS, tmp_path / "clone"], capture_output=True, check=False
    )
    snapshot = store.create(source)
    assert snapshot.made_by == ("copy" if cloned.returncode else "reflink")
    with (source / WEIGHTS).open("r+b") as opened:
        opened.write(b"overwritten")
    assert sha256(*content(snapshot.folder)) == snapshot.sha256


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_missing_file_is_reported_with_the_remedy(tmp_path: Path, store: SnapshotStore, file: str) -> None:
    source = adapter(tmp_path / "medical")
    (source / file).unlink()
    with pytest.raises(
        UnreadableError, match=rf"{source}/{file} is missing; copy all files that PEFT's save_pretrained"
    ):
        store.create(source)
    assert visible(store) == unfinished(store) == []


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_fifo_folder_or_device_is_refused_without_waiting(tmp_path: Path, store: SnapshotStore, kind: str) -> None:
    weights = adapter(tmp_path / "medical") / WEIGHTS
    weights.unlink()
    if kind == "fifo":
        os.mkfifo(weights)
    elif kind == "folder":
        weights.mkdir()
    else:
        weights.symlink_to("/dev/zero")
    with pytest.raises(
        UnreadableError, match=rf"{weights} cannot be read \(.*\); replace it by a file that this user may read"
    ):
        store.create(tmp_path / "medical")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_link_that_was_redirected_outside_of_the_source_is_refused(
    tmp_path: Path, store: SnapshotStore, file: str
) -> None:
    source = adapter(tmp_path / "adapters" / "medical")
    store.create(source, boundary=tmp_path / "adapters")
    (tmp_path / "secret").write_bytes((source / file).read_bytes())
    (source / file).unlink()
    (source / file).symlink_to(tmp_path / "secret")
    with pytest.raises(
        UnreadableError, match=rf"/medical/{file} links to /.*/secret, outside of /.*/adapters; copy the adapter"
    ):
        store.create(source, boundary=tmp_path / "adapters")


def test_links_inside_of_the_source_are_accepted_if_the_source_is_a_link(tmp_path: Path, store: SnapshotStore) -> None:
    adapter(tmp_path / "disk" / "..2026" / "medical")
    (tmp_path / "disk" / "..data").symlink_to("..2026")
    (tmp_path / "disk" / "medical").symlink_to("..data/medical")
    (tmp_path / "adapters").symlink_to("disk")
    store.create(tmp_path / "adapters" / "medical", boundary=tmp_path / "adapters")


OVERWRITE = """
import itertools, os, sys, time

file = os.open(sys.argv[1], os.O_WRONLY)
end = os.fstat(file).st_size - 1
for version in itertools.cycle(range(256)):
    os.pwrite(file, bytes([version]), 0)
    os.pwrite(file, bytes([version]), end)
    time.sleep(version % 3 * 0.03)
"""

REWRITE = """
import itertools, pathlib, sys, time

for version in itertools.cycle(range(256)):
    pathlib.Path(sys.argv[1]).write_bytes(bytes([version]) * 2_000_000)
    time.sleep(version % 3 * 0.03)
"""


def outcomes(store: SnapshotStore, source: Path, writer: str) -> list[bytes]:
    """Return the weights of the snapshots created while `writer` runs, until some attempts were refused too."""
    process = subprocess.Popen([sys.executable, "-c", writer, source / WEIGHTS])
    weights, refused = [], 0
    deadline = time.monotonic() + 20
    try:
        while (len(weights) < 5 or refused < 5) and time.monotonic() < deadline:
            try:
                weights.append((store.create(source).folder / WEIGHTS).read_bytes())
            except SourceChangingError as error:
                assert str(error) == f"{source} was written while it was copied; try again when its writer is done"
                refused += 1
    finally:
        process.kill()
        process.wait()
    assert refused > 0
    assert unfinished(store) == []
    for name in visible(store):
        assert sha256(*content(store.path(name))) == name
    return weights


def test_source_that_is_overwritten_in_place_is_copied_in_a_consistent_state(
    tmp_path: Path, store: SnapshotStore
) -> None:
    # Written in place, so neither inode nor size change. The first byte is written first, so it is never the older one.
    source = adapter(tmp_path / "medical", bytes(4 * MIB))
    for weights in outcomes(store, source, OVERWRITE):
        assert (weights[0] - weights[-1]) % 256 in (0, 1)
    assert content(store.create(source).folder) == content(source)


def test_source_that_is_truncated_and_rewritten_is_copied_in_a_consistent_state(
    tmp_path: Path, store: SnapshotStore
) -> None:
    source = adapter(tmp_path / "medical", bytes(2_000_000))
    for weights in outcomes(store, source, REWRITE):
        assert len(set(weights)) <= 1
    assert content(store.create(source).folder) == content(source)


def test_source_that_is_deleted_and_deployed_repeatedly_gives_complete_snapshots_or_errors(
    tmp_path: Path, store: SnapshotStore
) -> None:
    folders = [adapter(tmp_path / name, name.encode() * MIB) for name in ("a", "b")]
    source = tmp_path / "medical"
    stop = threading.Event()

    def deploy() -> None:
        while not stop.is_set():
            for folder in folders:
                shutil.copytree(folder, source)
                stop.wait(0.03)
                shutil.rmtree(source)

    writer = threading.Thread(target=deploy)
    writer.start()
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                store.create(source)
            except (SourceChangingError, UnreadableError):
                time.sleep(0.001)
    finally:
        stop.set()
        writer.join()
    for name in visible(store):
        assert sha256(*content(store.path(name))) == name
    assert unfinished(store) == []


CREATE = """
import sys
from pathlib import Path
from vllm_lora_router.adapters.files.snapshots import SnapshotStore

store = SnapshotStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    print(store.create(Path(sys.argv[3])).sha256, flush=True)
    if sys.argv[4:]:
        store.remove(store.create(Path(sys.argv[3])).sha256)
"""


def start_process(store: SnapshotStore, times: int, source: Path, *options: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CREATE, str(store.folder), str(times), str(source), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_copy_the_same_adapter_at_once_all_succeed(tmp_path: Path, store: SnapshotStore) -> None:
    weights = os.urandom(MIB)
    source = adapter(tmp_path / "medical", weights)
    processes = [start_process(store, 20, source) for _ in range(4)]
    for process in processes:
        print(file=process.stdin, flush=True)
    expected = sha256(b"{}", weights)
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (set(output.split()), errors) == ({expected}, "")
    assert visible(store) == [expected]
    assert unfinished(store) == []


def test_processes_can_create_and_remove_at_once(tmp_path: Path, store: SnapshotStore) -> None:
    source = adapter(tmp_path / "medical", os.urandom(MIB))
    processes = [start_process(store, 20, source, "and remove") for _ in range(3)]
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    assert visible(store) == unfinished(store) == []


def test_killed_process_leaves_complete_snapshots_and_unfinished_folders_are_removed(
    tmp_path: Path, store: SnapshotStore
) -> None:
    source = adapter(tmp_path / "medical", os.urandom(8 * MIB))
    removed = 0
    for delay_s in (0, 0.002, 0.005, 0.01, 0.02, 0.03):
        process = start_process(store, 1000, source, "and remove")
        print(file=process.stdin, flush=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for name in visible(store):
            assert sha256(*content(store.path(name))) == name
        removed += store.remove_unfinished()
        assert unfinished(store) == []
    assert removed > 0
    assert content(store.create(source).folder) == content(source)


def test_unfinished_folder_of_a_running_process_is_kept(tmp_path: Path, store: SnapshotStore) -> None:
    (store.folder / ".creating-4d7a").mkdir()
    with (store.folder / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert store.remove_unfinished() == 0
        assert len(unfinished(store)) == 1
    assert store.remove_unfinished() == 1
    assert unfinished(store) == []


def test_removing_unfinished_folders_does_not_affect_running_processes(tmp_path: Path, store: SnapshotStore) -> None:
    source = adapter(tmp_path / "medical", os.urandom(MIB))
    process = start_process(store, 40, source, "and remove")
    print(file=process.stdin, flush=True)
    while process.poll() is None:
        store.remove_unfinished()
    assert process.communicate()[1] == ""


def test_finished_snapshot_is_not_removed_as_unfinished(tmp_path: Path, store: SnapshotStore) -> None:
    snapshot = store.create(adapter(tmp_path / "medical"))
    assert store.remove_unfinished() == 0
    assert store.exists(snapshot.sha256)


def test_removed_snapshot_can_be_removed_and_created_again(tmp_path: Path, store: SnapshotStore) -> None:
    snapshot = store.create(adapter(tmp_path / "medical"))
    with (snapshot.folder / WEIGHTS).open("rb") as reader:
        store.remove(snapshot.sha256)
        store.remove(snapshot.sha256)
        assert reader.read() == b"weights"
    assert not store.exists(snapshot.sha256)
    assert store.used_bytes() == 0
    assert visible(store) == unfinished(store) == []
    assert store.create(tmp_path / "medical") == snapshot


@pytest.mark.parametrize("name", ["", ".", "..", "../medical", "A" * 64, "a" * 63])
def test_text_that_is_not_a_hash_is_never_used_as_a_path(store: SnapshotStore, name: str) -> None:
    for method in (store.path, store.exists, store.remove, store.warm):
        with pytest.raises(ValueError, match="is not a SHA-256 in hex"):
            method(name)


@pytest.mark.parametrize("damage", ["a missing file", "a short file", "an empty folder"])
def test_incomplete_snapshot_is_created_again(tmp_path: Path, store: SnapshotStore, damage: str) -> None:
    source = adapter(tmp_path / "medical")
    snapshot = store.create(source)
    snapshot.folder.chmod(0o755)
    if damage == "a short file":
        (snapshot.folder / WEIGHTS).chmod(0o644)
        os.truncate(snapshot.folder / WEIGHTS, 3)
    else:
        (snapshot.folder / WEIGHTS).unlink()
        if damage == "an empty folder":
            (snapshot.folder / CONFIG).unlink()
        assert not store.exists(snapshot.sha256)
    assert content(store.create(source).folder) == content(source)


def test_used_bytes_is_the_size_of_all_snapshots(tmp_path: Path, store: SnapshotStore) -> None:
    assert store.used_bytes() == 0
    sizes = [store.create(adapter(tmp_path / str(size), bytes(size))).size_bytes for size in (10, 1000)]
    assert store.used_bytes() == sum(sizes) == 1014


def test_snapshot_beyond_the_limit_is_refused_with_the_sizes(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store", max_bytes=2_000_000)
    store.create(adapter(tmp_path / "one", bytes(1_500_000)))
    message = (
        rf"^a copy of {tmp_path}/two needs 600.0 kB, but {store.folder} holds 1.5 MB of at most 2.0 MB; raise "
        r"router\.adapters\.max_disk_gb"
    )
    with pytest.raises(NoSpaceError, match=message) as raised:
        store.create(adapter(tmp_path / "two", bytes(600_000)))
    assert raised.value.needed_bytes == 600_002
    assert len(visible(store)) == 1
    assert unfinished(store) == []
    store.remove(visible(store)[0])
    store.create(tmp_path / "two")


FULL_DISK = """
import sys
from pathlib import Path
from vllm_lora_router.adapters.files.snapshots import NoSpaceError, SnapshotStore

store = SnapshotStore(Path(sys.argv[1]))
small = store.create(Path(sys.argv[2]) / "small")
try:
    store.create(Path(sys.argv[2]) / "large")
except NoSpaceError as error:
    print(error)
assert sorted(file.name for file in store.folder.iterdir()) == [".lock", small.sha256]
"""


@pytest.mark.parametrize("full", ["blocks", "inodes"])
def test_full_disk_is_reported_and_no_unfinished_folder_is_left(tmp_path: Path, full: str) -> None:
    # A small disk that only this process sees. With few inodes, it reports free space but cannot store files.
    large = 2 * MIB if full == "blocks" else 10
    adapter(tmp_path / "small")
    adapter(tmp_path / "large", os.urandom(large))
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=2m" if full == "blocks" else "size=2m,nr_inodes=7"
    mounted = f'mount -t tmpfs -o {options} none "$1" && exec "$2" -c "$3" "$1" "$4"'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "sh", disk, sys.executable, FULL_DISK, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip("this user cannot mount file systems")
    assert result.returncode == 0, result.stderr
    needs = "2.1 MB" if full == "blocks" else "12 bytes"
    problem = f"the disk of {disk} is full (2.1 MB free); free some space"
    if full == "inodes":
        problem = f"the file system of {disk} is full (2 inodes free); delete some files"
    assert result.stdout == (
        f"a copy of {tmp_path}/large needs {needs}, but {problem}, or set router.adapters.run_dir to a folder on "
        "another disk and restart the server\n"
    )


def test_warm_reads_the_whole_snapshot(tmp_path: Path, store: SnapshotStore) -> None:
    snapshot = store.create(adapter(tmp_path / "medical", bytes(3 * MIB)))
    assert store.warm(snapshot.sha256) == snapshot.size_bytes
    store.remove(snapshot.sha256)
    with pytest.raises(UnreadableError, match="is missing"):
        store.warm(snapshot.sha256)


def test_store_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SnapshotError, match=r"/file/store cannot store snapshots .*; set router.adapters.run_dir to a folder"
    ):
        SnapshotStore(tmp_path / "file" / "store")


def test_deleted_store_is_reported(tmp_path: Path, store: SnapshotStore) -> None:
    source = adapter(tmp_path / "medical")
    store.folder.rmdir()
    for call in (lambda: store.create(source), store.used_bytes, store.remove_unfinished):
        with pytest.raises(SnapshotError, match="/store cannot store snapshots"):
            call()


def test_large_configuration_is_not_copied(tmp_path: Path) -> None:
    # It may have replaced a small one after that was checked.
    adapter(tmp_path / "source")
    os.truncate(tmp_path / "source" / CONFIG, 1_000_000_000)
    store = SnapshotStore(tmp_path / "store")
    with pytest.raises(UnreadableError, match=r"adapter_config.json has 1,000,000,000 bytes, more than 1,000,000"):
        store.create(tmp_path / "source")
    assert store.used_bytes() == 0
