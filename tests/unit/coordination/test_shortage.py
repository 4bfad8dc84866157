"""The text for a resource that has run out names the folder, the reason and the remedy."""

import errno
import os
from pathlib import Path

import pytest

from vllm_lora_router.coordination.shortage import describe, shortage_of

from ..resources import full, no_descriptors, small_disk


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, full(disk):
        with pytest.raises(OSError) as raised:
            (disk / "file").write_bytes(bytes(8192))
        assert describe(raised.value, disk) == (
            f"the disk of {disk} is full (0 bytes free); free some space, or set router.adapters.run_dir to a folder "
            "on another disk and restart the server"
        )


def test_no_inodes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m", "nr_inodes=2") as disk:
        (disk / "file").touch()
        with pytest.raises(OSError) as raised:
            (disk / "second").touch()
        assert describe(raised.value, disk).startswith(f"the file system of {disk} is full (0 inodes free); delete")


def test_no_file_descriptors(tmp_path: Path) -> None:
    with no_descriptors(), pytest.raises(OSError) as raised:
        (tmp_path / "file").touch()
    assert raised.value.errno == errno.EMFILE
    assert "file descriptors of this process are in use; raise the limit (ulimit -n)" in describe(
        raised.value, tmp_path
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EDQUOT, "disk quota for {folder} is used up; free some space, or set router.adapters.run_dir"),
        (errno.EROFS, "{folder} is on a read-only file system; mount it for writing, or set router.adapters.run_dir"),
        (errno.EIO, "the disk of {folder} reports input/output errors; check the disk, or set router.adapters.run_dir"),
        (errno.ENFILE, "raise fs.file-max"),
        (errno.ENOMEM, "no free memory; free some memory"),
    ],
)
def test_other_shortages(tmp_path: Path, number: int, text: str) -> None:
    assert text.format(folder=tmp_path) in describe(error(number), tmp_path)
    assert shortage_of(error(number)) is not None


def test_causes_of_an_error_are_searched() -> None:
    try:
        try:
            raise error(errno.EMFILE)
        except OSError as cause:
            raise ValueError("cannot be read") from cause
    except ValueError as raised:
        shortage = shortage_of(raised)
        assert shortage is not None and shortage.errno == errno.EMFILE
    assert shortage_of(error(errno.ENOENT)) is None and shortage_of(ValueError()) is None and shortage_of(None) is None
