"""Which of a file the kernel has in memory, its page cache: to bring it there, and to take it out again."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def keep(files: Iterable[Path]) -> None:
    """Reads files, so that the next to do so need not wait for a disk."""
    for file in files:
        file.read_bytes()


def drop(files: Iterable[Path]) -> None:
    """Takes files out of the page cache, which needs no rights.

    What a process has mapped stays, and so does what lies in a file system that has no disk: `kept_share` tells.
    """
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # pages that are not on the disk yet would stay
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def kept_share(files: Iterable[Path]) -> float:
    """How much of the files is in the page cache, between 0 and 1."""
    kept, pages = 0, 0
    for file in files:
        found = _in_memory(file)
        kept, pages = kept + sum(found), pages + len(found)
    return kept / pages if pages else 0.0


def _in_memory(file: Path) -> list[bool]:
    """Of each page whether it is in memory, by mincore(2)."""
    size = file.stat().st_size
    if not size:
        return []
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # Not to be written to: only so that its address can be had.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(size), found)
        del start  # else it cannot be unmapped
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    return [bool(page & 1) for page in found]
