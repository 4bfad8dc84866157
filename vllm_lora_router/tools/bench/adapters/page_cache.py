"""Read files into the kernel's page cache, drop them from it, and measure how much of them it contains."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def read_into_cache(files: Iterable[Path]) -> None:
    """Read files into the page cache."""
    for file in files:
        file.read_bytes()


def drop_from_cache(files: Iterable[Path]) -> None:
    """Drop files from the page cache; no privileges are needed.

    Pages that a process has mapped stay, and so do files on file systems without a disk: check `cached_share`.
    """
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # dirty pages would stay
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(files: Iterable[Path]) -> float:
    """Return the share of the files that is in the page cache, between 0 and 1."""
    cached, pages = 0, 0
    for file in files:
        resident = _resident_pages(file)
        cached, pages = cached + sum(resident), pages + len(resident)
    return cached / pages if pages else 0.0


def _resident_pages(file: Path) -> list[bool]:
    """Return for each page whether it is in memory, by mincore(2)."""
    size = file.stat().st_size
    if not size:
        return []
    flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # ACCESS_COPY only gives access to the address; nothing is written.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(size), flags)
        del start  # the map cannot be closed while this reference exists
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    return [bool(page & 1) for page in flags]
