"""The run directory: private, shared by the processes of a server, and removed by the last of them."""

import fcntl
import multiprocessing
import os
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from vllm_lora_router.coordination.run_directory import (
    RunDirectory,
    RunDirectoryError,
    prepare_parent,
    run_folder,
    server_name,
)

from ..processes import kill, other_process
from ..resources import no_descriptors, read_only, small_disk

OPEN = "run = RunDirectory.open(arguments[0], parent)\n"


def snapshot(folder: Path) -> None:
    """Create a read-only file in a read-only folder."""
    copy = folder / "snapshots" / "0123"
    copy.mkdir(parents=True)
    (copy / "adapter_config.json").write_text("{}")
    (copy / "adapter_config.json").chmod(0o444)
    copy.chmod(0o555)


def test_processes_of_a_server_share_a_private_folder(tmp_path: Path) -> None:
    first, second = (RunDirectory.open("a", tmp_path / "run") for _ in range(2))
    assert first.folder == second.folder
    assert first.folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    first.close()
    second.close()


def test_last_process_to_close_removes_the_folder(tmp_path: Path) -> None:
    first, second = (RunDirectory.open("a", tmp_path / "run") for _ in range(2))
    snapshot(first.folder)
    first.close()
    assert second.folder.exists()
    second.close()
    assert not second.folder.exists()


def test_next_server_removes_the_folder_of_a_killed_server_but_not_of_a_living_one(tmp_path: Path) -> None:
    parent = tmp_path / "run"
    with other_process(parent, OPEN, "killed") as killed, other_process(parent, OPEN, "living"):
        snapshot(parent / "killed")
        snapshot(parent / "living")
        before = RunDirectory.open("c", parent)
        assert (parent / "killed").exists()
        kill(killed)
        after = RunDirectory.open("d", parent)
        assert not (parent / "killed").exists()
        assert (parent / "living" / "snapshots" / "0123" / "adapter_config.json").exists()
        before.close()
        after.close()


def test_folder_is_kept_while_one_of_its_processes_lives(tmp_path: Path) -> None:
    parent = tmp_path / "run"
    with other_process(parent, OPEN, "a") as first, other_process(parent, OPEN, "a"):
        kill(first)
        RunDirectory.open("b", parent).close()
        assert (parent / "a").exists()


def test_folders_that_are_not_run_directories_are_kept(tmp_path: Path) -> None:
    for name in ("photos", "work/alive"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "alive").write_text("a file of the user")
    (tmp_path / "notes.txt").write_text("as is")
    (tmp_path / "dangling").symlink_to("nowhere")
    RunDirectory.open("a", tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} >= {"photos", "work", "notes.txt", "dangling"}
    assert (tmp_path / "photos" / "alive").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root can read every folder")
def test_unreadable_folder_beside_it_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0)
    RunDirectory.open("a", tmp_path).close()


def test_closing_waits_while_another_process_opens_the_folder(tmp_path: Path) -> None:
    run = RunDirectory.open("a", tmp_path)
    with (tmp_path / ".lock").open("ab") as opening:
        fcntl.flock(opening, fcntl.LOCK_EX)  # as a process does while it opens the folder
        closing = threading.Thread(target=run.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive() and run.folder.exists()
    closing.join(5)
    assert not run.folder.exists()


def test_link_or_file_in_place_of_the_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")  # any user can create it in the shared temporary folder
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(RunDirectoryError, match=r"set router\.adapters\.run_dir to a folder that this user may"):
            RunDirectory.open("a", tmp_path / name)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the owner of a folder")
@pytest.mark.parametrize("given", ["run", "run/a"])
def test_folder_of_another_user_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / given).mkdir(parents=True)
    os.chown(tmp_path / given, 12345, 12345)
    with pytest.raises(RunDirectoryError, match="is not a folder of this user"):
        RunDirectory.open("a", tmp_path / "run")


@pytest.mark.parametrize("mode", [0o770, 0o707], ids=["group", "others"])
@pytest.mark.parametrize("place", ["", "run", "run/a"])
def test_folder_that_other_users_can_write_is_refused_with_the_remedy(tmp_path: Path, place: str, mode: int) -> None:
    (tmp_path / "run" / "a").mkdir(parents=True)
    if mode == 0o770:
        try:
            os.chown(tmp_path / place, -1, 12345)
        except PermissionError:
            pytest.skip("only root can give a folder to another group")
    (tmp_path / place).chmod(mode)
    with pytest.raises(RunDirectoryError, match=rf"can change {tmp_path / place}; run `chmod go-w {tmp_path / place}`"):
        RunDirectory.open("a", tmp_path / "run")


def test_cleaner_of_temporary_files_cannot_lock_the_folder(tmp_path: Path) -> None:
    run = RunDirectory.open("a", tmp_path)
    cleaner = os.open(run.folder, os.O_RDONLY)  # systemd-tmpfiles skips what it cannot lock
    with pytest.raises(BlockingIOError):
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(cleaner)
    run.close()


def test_lock_excludes_other_processes_and_is_released_by_kill(tmp_path: Path) -> None:
    run = RunDirectory.open("a", tmp_path)
    lock = "opened = run.opened('load')\nimport fcntl\nfcntl.flock(opened.__enter__(), fcntl.LOCK_EX)\n"
    with other_process(tmp_path, OPEN + lock, "a") as process, run.opened("load") as descriptor:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with run.locked("versions"):
            pass  # another lock
        kill(process)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with run.locked("load", shared=True), run.locked("load", shared=True):
        pass
    run.close()


def test_all_processes_of_a_server_use_the_same_name() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as children:
        assert children.apply(server_name, (8000,)) == server_name(8000) != server_name(8001)


def test_name_of_a_server_does_not_change_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent process and a child that starts later must agree, or a SIGHUP to the parent reaches no server."""
    before = server_name(8000)
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 3600)
    assert server_name(8000) == before
    ticks = (psutil.Process().create_time() - 3600 - psutil.boot_time()) * os.sysconf("SC_CLK_TCK")
    assert abs(int(before.split("-")[1]) - ticks) <= 2 * os.sysconf("SC_CLK_TCK")


def test_preparing_the_parent_creates_it_and_removes_the_folders_of_servers_that_ended(tmp_path: Path) -> None:
    parent = tmp_path / "deep" / "run"
    assert prepare_parent(parent) == parent and parent.stat().st_mode & 0o777 == 0o700
    with other_process(parent, OPEN, "killed") as killed, other_process(parent, OPEN, "living"):
        kill(killed)
        prepare_parent(parent)
        assert {folder.name for folder in parent.iterdir()} == {".lock", "living"}


@pytest.mark.parametrize("open_directory", [prepare_parent, lambda parent: RunDirectory.open("a", parent)])
def test_read_only_file_system_is_reported(tmp_path: Path, open_directory) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        parent = disk / "run"
        prepare_parent(parent)
        with read_only(disk), pytest.raises(RunDirectoryError) as raised:
            open_directory(parent)
    assert str(raised.value) == (
        f"the run directory cannot be created: {parent} is on a read-only file system; mount it for writing, or set "
        "router.adapters.run_dir to a folder on another disk and restart the server"
    )


def test_process_without_file_descriptors_is_reported(tmp_path: Path) -> None:
    with (
        no_descriptors(),
        pytest.raises(RunDirectoryError, match=r"cannot be created: all \d+ file d"),
    ):
        RunDirectory.open("a", tmp_path / "run")


def test_missing_temporary_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    for call in (lambda: run_folder("a"), prepare_parent, lambda: RunDirectory.open("a")):
        with pytest.raises(RunDirectoryError, match=r"there is no temporary folder .*; set router\.adapters\.run_dir"):
            call()
