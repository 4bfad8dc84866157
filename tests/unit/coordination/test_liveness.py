"""A file lock shows whether a process is alive."""

import fcntl
import os
from pathlib import Path

from vllm_lora_router.coordination.liveness import hold, is_held, is_only_holder

from ..processes import kill, other_process

HOLDS = """
from vllm_lora_router.coordination.liveness import hold
hold(parent / "alive", shared=arguments[0] == "shared")
"""


def test_file_of_living_process_is_held(tmp_path: Path) -> None:
    with other_process(tmp_path, HOLDS, "exclusive"):
        assert is_held(tmp_path / "alive")


def test_file_is_not_held_after_process_is_killed(tmp_path: Path) -> None:
    with other_process(tmp_path, HOLDS, "exclusive") as process:
        kill(process)
        assert (tmp_path / "alive").exists() and not is_held(tmp_path / "alive")


def test_missing_file_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "alive") and not is_held(tmp_path / "alive", shared=True)


def test_file_that_cannot_be_opened_counts_as_held(tmp_path: Path) -> None:
    assert is_held(tmp_path)  # a folder cannot be opened for writing


def test_closing_the_descriptor_releases_the_file(tmp_path: Path) -> None:
    descriptor = hold(tmp_path / "alive")
    assert is_held(tmp_path / "alive")
    os.close(descriptor)
    assert not is_held(tmp_path / "alive")


def test_shared_file_is_held_until_its_last_process_is_killed(tmp_path: Path) -> None:
    with other_process(tmp_path, HOLDS, "shared") as first, other_process(tmp_path, HOLDS, "shared") as second:
        kill(first)
        assert is_held(tmp_path / "alive", shared=True)
        kill(second)
        assert not is_held(tmp_path / "alive", shared=True)


def test_processes_that_check_at_once_do_not_see_each_other(tmp_path: Path) -> None:
    with (tmp_path / "alive").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another process does during its check
        assert not is_held(tmp_path / "alive")


def test_only_holder_is_recognized(tmp_path: Path) -> None:
    descriptor = hold(tmp_path / "alive", shared=True)
    assert is_only_holder(descriptor)
    os.close(descriptor)
    descriptor = hold(tmp_path / "alive", shared=True)
    with other_process(tmp_path, HOLDS, "shared"):
        assert not is_only_holder(descriptor)
    os.close(descriptor)
