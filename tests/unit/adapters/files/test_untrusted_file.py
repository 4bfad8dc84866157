"""Files that are not regular, too large, or outside of their boundary are refused at once."""

import os
import socket
from pathlib import Path

import pytest

from vllm_lora_router.adapters.files.untrusted_file import OutsideBoundaryError, open_regular, read_regular, short_repr


def test_regular_file_is_read_also_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("real")
    assert read_regular(tmp_path / "link", 2, tmp_path) == b"{}"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
def test_file_that_is_not_regular_is_refused_without_opening_it(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(file))
        case "device":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        open_regular(file)


def test_file_that_links_out_of_the_boundary_is_refused_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"{}")
    (tmp_path / "tenant").mkdir()
    (tmp_path / "tenant/file").symlink_to(tmp_path / "secret")
    with pytest.raises(OutsideBoundaryError, match=r"tenant/file links to .*/secret, outside of .*/tenant; copy the"):
        read_regular(tmp_path / "tenant/file", 10, tmp_path / "tenant")


def test_large_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 1_000_000_000)
    with pytest.raises(OSError, match="it has 1,000,000,000 bytes, more than 1,000,000"):
        read_regular(tmp_path / "file", 1_000_000)


def test_pseudo_file_of_the_kernel_counts_as_empty() -> None:
    assert read_regular(Path("/proc/self/status"), 1_000_000) == b""


def test_descriptors_are_closed_after_a_refusal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / "fifo")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "value", ["a" * 10_000, ["a" * 10_000] * 100, {str(number): 1 for number in range(1000)}, 10**4000]
)
def test_repr_in_messages_is_short(value: object) -> None:
    assert len(short_repr(value)) < 2000
