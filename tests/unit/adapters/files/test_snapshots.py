"""What the engine gets to read: private copies that are whole, whatever happens to their source and to their makers."""

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

from vllm_lora_router.adapters.files.snapshots import Changing, NoRoom, SnapshotError, Snapshots, Unreadable
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
        b"%s\0%d\0%s" % (name.encode(), len(of), of) for name, of in ((CONFIG, config), (WEIGHTS, weights))
    )
    return hashlib.sha256(stream).hexdigest()


def visible(store: Snapshots) -> list[str]:
    return sorted(folder.name for folder in store.folder.iterdir() if not folder.name.startswith("."))


def unfinished(store: Snapshots) -> list[Path]:
    return [folder for folder in store.folder.iterdir() if folder.name.startswith(".") and folder.is_dir()]


@pytest.fixture
def store(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "store")


def test_a_copy_is_called_by_its_content(tmp_path: Path, store: Snapshots) -> None:
    weights = os.urandom(3 * MIB + 17)
    source = adapter(tmp_path / "medical", weights)
    before = signature(source)
    taken = store.take(source)
    assert taken.sha256 == sha256(b"{}", weights)
    assert taken.folder == store.path(taken.sha256) == store.folder / taken.sha256
    assert content(taken.folder) == (b"{}", weights)
    assert taken.size_bytes == len(weights) + 2
    assert taken.signature == before
    assert store.exists(taken.sha256)


def test_only_the_two_files_are_copied(tmp_path: Path, store: Snapshots) -> None:
    source = adapter(tmp_path / "medical")
    (source / "adapter_model.bin").write_bytes(b"pickle")
    (source / "checkpoint").mkdir()
    assert sorted(file.name for file in store.take(source).folder.iterdir()) == [CONFIG, WEIGHTS]


def test_a_copy_is_read_only_and_the_store_private(tmp_path: Path, store: Snapshots) -> None:
    folder = store.take(adapter(tmp_path / "medical")).folder
    assert folder.stat().st_mode & 0o777 == 0o555
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o444}
    assert store.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", ["overwritten", "truncated", "deleted"])
def test_a_copy_stays_when_its_source_does_not(tmp_path: Path, store: Snapshots, change: str) -> None:
    source = adapter(tmp_path / "medical", b"old weights")
    folder = store.take(source).folder
    if change == "overwritten":
        with (source / WEIGHTS).open("r+b") as opened:
            opened.write(b"new weights")
    elif change == "truncated":
        os.truncate(source / WEIGHTS, 3)
    else:
        shutil.rmtree(source)
    assert content(folder) == (b"{}", b"old weights")


def test_equal_adapters_share_a_copy_and_others_do_not(tmp_path: Path, store: Snapshots) -> None:
    one = store.take(adapter(tmp_path / "one"))
    two = store.take(adapter(tmp_path / "two"))
    assert one.folder == two.folder
    assert one.signature != two.signature
    other = store.take(adapter(tmp_path / "other", config=b"{ }"))
    assert visible(store) == sorted({one.sha256, other.sha256})
    assert unfinished(store) == []


def test_bytes_that_move_from_one_file_to_the_other_make_another_adapter(tmp_path: Path, store: Snapshots) -> None:
    one = store.take(adapter(tmp_path / "one", b"ab", b"c"))
    two = store.take(adapter(tmp_path / "two", b"b", b"ca"))
    assert one.sha256 != two.sha256


def test_links_are_followed_to_what_they_lead_to_now(tmp_path: Path, store: Snapshots) -> None:
    for version in ("a", "b"):
        adapter(tmp_path / version, version.encode())
    (tmp_path / "medical").symlink_to("a")
    old = store.take(tmp_path / "medical")
    (tmp_path / "turning").symlink_to("b")
    (tmp_path / "turning").rename(tmp_path / "medical")
    new = store.take(tmp_path / "medical")
    assert [content(one.folder)[1] for one in (old, new)] == [b"a", b"b"]
    assert not (new.folder / WEIGHTS).is_symlink()


def test_it_is_said_whether_the_file_system_shared_the_blocks(tmp_path: Path, store: Snapshots) -> None:
    source = adapter(tmp_path / "medical", os.urandom(MIB))
    cloned = subprocess.run(
        ["cp", "--reflink=always", source / WEIGHTS, tmp_path / "clone"], capture_output=True, check=False
    )
    taken = store.take(source)
    assert taken.made_by == ("copy" if cloned.returncode else "reflink")
    with (source / WEIGHTS).open("r+b") as opened:
        opened.write(b"written over")
    assert sha256(*content(taken.folder)) == taken.sha256


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path, store: Snapshots, file: str) -> None:
    source = adapter(tmp_path / "medical")
    (source / file).unlink()
    with pytest.raises(Unreadable, match=rf"{source}/{file} is missing; copy all files that PEFT's save_pretrained"):
        store.take(source)
    assert visible(store) == unfinished(store) == []


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, store: Snapshots, kind: str) -> None:
    weights = adapter(tmp_path / "medical") / WEIGHTS
    weights.unlink()
    if kind == "fifo":
        os.mkfifo(weights)
    elif kind == "folder":
        weights.mkdir()
    else:
        weights.symlink_to("/dev/zero")
    with pytest.raises(Unreadable, match=rf"{weights} cannot be read \(.*\); put a file there that this user may read"):
        store.take(tmp_path / "medical")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_link_that_was_turned_out_of_the_source_after_it_was_found_is_refused(
    tmp_path: Path, store: Snapshots, file: str
) -> None:
    source = adapter(tmp_path / "adapters" / "medical")
    store.take(source, within=tmp_path / "adapters")
    (tmp_path / "secret").write_bytes((source / file).read_bytes())
    (source / file).unlink()
    (source / file).symlink_to(tmp_path / "secret")
    with pytest.raises(
        Unreadable, match=rf"/medical/{file} leads to /.*/secret, out of /.*/adapters; copy the adapter"
    ):
        store.take(source, within=tmp_path / "adapters")


def test_links_inside_the_source_are_no_way_out_even_when_the_source_is_itself_a_link(
    tmp_path: Path, store: Snapshots
) -> None:
    adapter(tmp_path / "disk" / "..2026" / "medical")
    (tmp_path / "disk" / "..data").symlink_to("..2026")
    (tmp_path / "disk" / "medical").symlink_to("..data/medical")
    (tmp_path / "adapters").symlink_to("disk")
    store.take(tmp_path / "adapters" / "medical", within=tmp_path / "adapters")


OVERWRITE = """
import itertools, os, sys, time

file = os.open(sys.argv[1], os.O_WRONLY)
end = os.fstat(file).st_size - 1
for version in itertools.cycle(range(256)):
    os.pwrite(file, bytes([version]), 0)
    os.pwrite(file, bytes([version]), end)
    time.sleep(version % 3 * 0.03)
"""

WRITE_ANEW = """
import itertools, pathlib, sys, time

for version in itertools.cycle(range(256)):
    pathlib.Path(sys.argv[1]).write_bytes(bytes([version]) * 2_000_000)
    time.sleep(version % 3 * 0.03)
"""


def outcomes(store: Snapshots, source: Path, writer: str) -> list[bytes]:
    """The weights in the copies that were got while `writer` was at work; it goes on until some were refused, too."""
    process = subprocess.Popen([sys.executable, "-c", writer, source / WEIGHTS])
    got, refused = [], 0
    until = time.monotonic() + 20
    try:
        while (len(got) < 5 or refused < 5) and time.monotonic() < until:
            try:
                got.append((store.take(source).folder / WEIGHTS).read_bytes())
            except Changing as error:
                assert str(error) == f"{source} was written to while it was copied; try again when its writer is done"
                refused += 1
    finally:
        process.kill()
        process.wait()
    assert refused > 0
    assert unfinished(store) == []
    for name in visible(store):
        assert sha256(*content(store.path(name))) == name
    return got


def test_a_source_that_is_overwritten_all_the_time_is_copied_as_it_was_at_one_moment(
    tmp_path: Path, store: Snapshots
) -> None:
    # In place, so that neither inode nor size tell. The beginning is written first: at no moment was it the older one.
    source = adapter(tmp_path / "medical", bytes(4 * MIB))
    for weights in outcomes(store, source, OVERWRITE):
        assert (weights[0] - weights[-1]) % 256 in (0, 1)
    assert content(store.take(source).folder) == content(source)


def test_a_source_that_is_truncated_and_written_anew_all_the_time_is_copied_as_it_was_at_one_moment(
    tmp_path: Path, store: Snapshots
) -> None:
    source = adapter(tmp_path / "medical", bytes(2_000_000))
    for weights in outcomes(store, source, WRITE_ANEW):
        assert len(set(weights)) <= 1
    assert content(store.take(source).folder) == content(source)


def test_a_source_that_is_deleted_and_deployed_all_the_time_gives_a_whole_copy_or_says_why(
    tmp_path: Path, store: Snapshots
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
        until = time.monotonic() + 1
        while time.monotonic() < until:
            try:
                store.take(source)
            except (Changing, Unreadable):
                time.sleep(0.001)
    finally:
        stop.set()
        writer.join()
    for name in visible(store):
        assert sha256(*content(store.path(name))) == name
    assert unfinished(store) == []


TAKE = """
import sys
from pathlib import Path
from vllm_lora_router.adapters.files.snapshots import Snapshots

store = Snapshots(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    print(store.take(Path(sys.argv[3])).sha256, flush=True)
    if sys.argv[4:]:
        store.remove(store.take(Path(sys.argv[3])).sha256)
"""


def taker(store: Snapshots, times: int, source: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(store.folder), str(times), str(source), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_take_the_same_adapter_at_once_all_get_it(tmp_path: Path, store: Snapshots) -> None:
    weights = os.urandom(MIB)
    source = adapter(tmp_path / "medical", weights)
    processes = [taker(store, 20, source) for _ in range(4)]
    for process in processes:
        print(file=process.stdin, flush=True)
    expected = sha256(b"{}", weights)
    for process in processes:
        told, complaint = process.communicate(timeout=60)
        assert (set(told.split()), complaint) == ({expected}, "")
    assert visible(store) == [expected]
    assert unfinished(store) == []


def test_processes_may_take_and_remove_at_once(tmp_path: Path, store: Snapshots) -> None:
    source = adapter(tmp_path / "medical", os.urandom(MIB))
    processes = [taker(store, 20, source, "and remove") for _ in range(3)]
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    assert visible(store) == unfinished(store) == []


def test_a_killed_process_leaves_whole_copies_and_what_is_cleaned_at_the_next_start(
    tmp_path: Path, store: Snapshots
) -> None:
    source = adapter(tmp_path / "medical", os.urandom(8 * MIB))
    cleaned = 0
    for after_s in (0, 0.002, 0.005, 0.01, 0.02, 0.03):
        process = taker(store, 1000, source, "and remove")
        print(file=process.stdin, flush=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for name in visible(store):
            assert sha256(*content(store.path(name))) == name
        cleaned += store.clean()
        assert unfinished(store) == []
    assert cleaned > 0
    assert content(store.take(source).folder) == content(source)


def test_cleaning_leaves_what_another_process_is_at(tmp_path: Path, store: Snapshots) -> None:
    (store.folder / ".taking-4d7a").mkdir()
    with (store.folder / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert store.clean() == 0
        assert len(unfinished(store)) == 1
    assert store.clean() == 1
    assert unfinished(store) == []


def test_a_process_that_starts_and_cleans_does_not_disturb_those_that_take(tmp_path: Path, store: Snapshots) -> None:
    source = adapter(tmp_path / "medical", os.urandom(MIB))
    process = taker(store, 40, source, "and remove")
    print(file=process.stdin, flush=True)
    while process.poll() is None:
        store.clean()
    assert process.communicate()[1] == ""


def test_cleaning_leaves_finished_copies(tmp_path: Path, store: Snapshots) -> None:
    taken = store.take(adapter(tmp_path / "medical"))
    assert store.clean() == 0
    assert store.exists(taken.sha256)


def test_what_was_removed_is_gone_and_may_be_removed_again(tmp_path: Path, store: Snapshots) -> None:
    taken = store.take(adapter(tmp_path / "medical"))
    with (taken.folder / WEIGHTS).open("rb") as reader:
        store.remove(taken.sha256)
        store.remove(taken.sha256)
        assert reader.read() == b"weights"
    assert not store.exists(taken.sha256)
    assert store.used_bytes() == 0
    assert visible(store) == unfinished(store) == []
    assert store.take(tmp_path / "medical") == taken


@pytest.mark.parametrize("name", ["", ".", "..", "../medical", "A" * 64, "a" * 63])
def test_what_is_no_hash_is_never_a_path(store: Snapshots, name: str) -> None:
    for method in (store.path, store.exists, store.remove, store.warm):
        with pytest.raises(ValueError, match="is not a SHA-256 in hex"):
            method(name)


@pytest.mark.parametrize("damage", ["a missing file", "a short file", "an empty folder"])
def test_a_copy_that_lost_a_part_is_made_anew(tmp_path: Path, store: Snapshots, damage: str) -> None:
    source = adapter(tmp_path / "medical")
    taken = store.take(source)
    taken.folder.chmod(0o755)
    if damage == "a short file":
        (taken.folder / WEIGHTS).chmod(0o644)
        os.truncate(taken.folder / WEIGHTS, 3)
    else:
        (taken.folder / WEIGHTS).unlink()
        if damage == "an empty folder":
            (taken.folder / CONFIG).unlink()
        assert not store.exists(taken.sha256)
    assert content(store.take(source).folder) == content(source)


def test_the_store_says_how_much_it_holds(tmp_path: Path, store: Snapshots) -> None:
    assert store.used_bytes() == 0
    sizes = [store.take(adapter(tmp_path / str(size), bytes(size))).size_bytes for size in (10, 1000)]
    assert store.used_bytes() == sum(sizes) == 1014


def test_a_store_that_would_grow_beyond_its_limit_refuses_and_says_by_how_much(tmp_path: Path) -> None:
    store = Snapshots(tmp_path / "store", max_bytes=2_000_000)
    store.take(adapter(tmp_path / "one", bytes(1_500_000)))
    said = rf"^{tmp_path}/two needs 0.6 MB, and {store.folder} holds 1.5 MB of at most 2.0 MB; allow it more, or unload"
    with pytest.raises(NoRoom, match=said):
        store.take(adapter(tmp_path / "two", bytes(600_000)))
    assert len(visible(store)) == 1
    assert unfinished(store) == []
    store.remove(visible(store)[0])
    store.take(tmp_path / "two")


FULL_DISK = """
import sys
from pathlib import Path
from vllm_lora_router.adapters.files.snapshots import NoRoom, Snapshots

store = Snapshots(Path(sys.argv[1]))
small = store.take(Path(sys.argv[2]) / "small")
try:
    store.take(Path(sys.argv[2]) / "large")
except NoRoom as error:
    print(error)
assert sorted(file.name for file in store.folder.iterdir()) == [".lock", small.sha256]
"""


@pytest.mark.parametrize("free", ["none", "it says enough"])
def test_a_full_disk_is_said_and_nothing_is_left_on_it(tmp_path: Path, free: str) -> None:
    # A disk of one megabyte, seen by this process alone. With few inodes it has room, as far as it says, and then not.
    large = 2 * MIB if free == "none" else 10
    adapter(tmp_path / "small")
    adapter(tmp_path / "large", os.urandom(large))
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=1m" if free == "none" else "size=1m,nr_inodes=7"
    mounted = f'mount -t tmpfs -o {options} none "$1" && exec "$2" -c "$3" "$1" "$4"'
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, "sh", disk, sys.executable, FULL_DISK, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip("this user may not mount")
    assert ran.returncode == 0, ran.stderr
    needs = "2.1 MB" if free == "none" else "0.0 MB"
    assert ran.stdout == (
        f"{tmp_path}/large needs {needs}, and the file system of {disk} is full; free some, or keep the snapshots "
        "elsewhere\n"
    )


def test_a_copy_is_read_into_memory(tmp_path: Path, store: Snapshots) -> None:
    taken = store.take(adapter(tmp_path / "medical", bytes(3 * MIB)))
    assert store.warm(taken.sha256) == taken.size_bytes
    store.remove(taken.sha256)
    with pytest.raises(Unreadable, match="is missing"):
        store.warm(taken.sha256)


def test_a_store_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match=r"/file/store cannot keep snapshots .*; name a folder that this user may"):
        Snapshots(tmp_path / "file" / "store")


def test_a_store_that_was_deleted_is_said(tmp_path: Path, store: Snapshots) -> None:
    source = adapter(tmp_path / "medical")
    store.folder.rmdir()
    for use in (lambda: store.take(source), store.used_bytes, store.clean):
        with pytest.raises(SnapshotError, match="/store cannot keep snapshots"):
            use()
