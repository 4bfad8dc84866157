"""The folder that a server's processes share: theirs alone, and gone when they are."""

import fcntl
import multiprocessing
import os
import subprocess
import threading
from pathlib import Path

import pytest

from vllm_lora_router.coordination.run_directory import RunDirectory, RunDirectoryError, server_name

from .conftest import beside

OPEN = "run = RunDirectory.open(arguments[0], parent)\n"


def snapshot(folder: Path) -> None:
    """Something read-only in a read-only folder."""
    copy = folder / "snapshots" / "0123"
    copy.mkdir(parents=True)
    (copy / "adapter_config.json").write_text("{}")
    (copy / "adapter_config.json").chmod(0o444)
    copy.chmod(0o555)


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def test_the_processes_of_a_server_share_a_folder_that_nobody_else_reads(tmp_path: Path) -> None:
    one, two = (RunDirectory.open("a", tmp_path / "run") for _ in range(2))
    assert one.folder == two.folder
    assert one.folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    one.close()
    two.close()


def test_the_last_process_that_ends_removes_the_folder(tmp_path: Path) -> None:
    one, two = (RunDirectory.open("a", tmp_path / "run") for _ in range(2))
    snapshot(one.folder)
    one.close()
    assert two.folder.exists()
    two.close()
    assert not two.folder.exists()


def test_what_a_killed_server_left_is_removed_by_the_next_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    parent = tmp_path / "run"
    with beside(parent, OPEN, "killed") as killed, beside(parent, OPEN, "living"):
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


def test_a_folder_lives_as_long_as_one_of_its_processes(tmp_path: Path) -> None:
    parent = tmp_path / "run"
    with beside(parent, OPEN, "a") as one, beside(parent, OPEN, "a"):
        kill(one)
        RunDirectory.open("b", parent).close()
        assert (parent / "a").exists()


def test_what_is_not_a_servers_folder_stays(tmp_path: Path) -> None:
    for name in ("photos", "work/alive"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "alive").write_text("a file of somebody's")
    (tmp_path / "notes.txt").write_text("as is")
    (tmp_path / "dangling").symlink_to("nowhere")
    RunDirectory.open("a", tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} >= {"photos", "work", "notes.txt", "dangling"}
    assert (tmp_path / "photos" / "alive").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_beside_it_that_cannot_be_read_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0)
    RunDirectory.open("a", tmp_path).close()


def test_nobody_gets_a_folder_that_is_being_removed(tmp_path: Path) -> None:
    run = RunDirectory.open("a", tmp_path)
    with (tmp_path / ".lock").open("ab") as opening:
        fcntl.flock(opening, fcntl.LOCK_EX)  # as a process does while it opens the folder
        closing = threading.Thread(target=run.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive() and run.folder.exists()
    closing.join(5)
    assert not run.folder.exists()


def test_another_users_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")  # in everybody's temporary folder, anybody may have made it
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(RunDirectoryError, match=r"set router\.adapters\.run_dir to a folder that this user may"):
            RunDirectory.open("a", tmp_path / name)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away")
@pytest.mark.parametrize("given", ["run", "run/a"])
def test_a_folder_that_another_user_owns_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / given).mkdir(parents=True)
    os.chown(tmp_path / given, 12345, 12345)
    with pytest.raises(RunDirectoryError, match="is not a folder of this user"):
        RunDirectory.open("a", tmp_path / "run")


def test_a_cleaner_of_old_temporary_files_keeps_away(tmp_path: Path) -> None:
    run = RunDirectory.open("a", tmp_path)
    cleaner = os.open(run.folder, os.O_RDONLY)  # systemd-tmpfiles skips what it cannot lock
    with pytest.raises(BlockingIOError):
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(cleaner)
    run.close()


def test_a_lock_is_one_for_all_processes_and_a_killed_one_lets_go_of_it(tmp_path: Path) -> None:
    run = RunDirectory.open("a", tmp_path)
    take = "held = run.opened('load')\nlock = held.__enter__()\nimport fcntl\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
    with beside(tmp_path, OPEN + take, "a") as process, run.opened("load") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with run.locked("ledger"):
            pass  # another lock
        kill(process)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with run.locked("load", shared=True), run.locked("load", shared=True):
        pass
    run.close()


def test_all_processes_of_a_server_call_it_the_same() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as children:
        assert children.apply(server_name, (8000,)) == server_name(8000) != server_name(8001)
