"""Resources of the machine that can run out while the server runs: disk space, inodes, quotas, file descriptors."""

import errno
import os
import resource
from pathlib import Path

from rich.filesize import decimal

RUN_DIR_REMEDY = "set router.adapters.run_dir to a folder on another disk and restart the server"

# Several files are written together, and some of them may be deleted again before the number is read.
FEW_INODES = 8

# These errors say nothing about the files that are read or written, and they end when the resource is available again.
_SHORTAGES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK}
)


def shortage_of(error: BaseException | None) -> OSError | None:
    """Return the error of a resource that has run out: `error` itself or one of its causes. None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            return error
        error = error.__cause__
    return None


def describe(error: OSError, folder: Path, remedy: str = RUN_DIR_REMEDY) -> str:
    """Return why `folder` cannot be used and what to do, in one line.

    Args:
        error: the error of an operation on a file in `folder`.
        remedy: an alternative to making the resource available.
    """
    match error.errno:
        case errno.ENOSPC if (inodes := free_inodes(folder)) is not None and inodes < FEW_INODES:
            return f"the file system of {folder} is full ({inodes} inodes free); delete some files, or {remedy}"
        case errno.ENOSPC:
            return f"the disk of {folder} is full ({decimal(free_bytes(folder))} free); free some space, or {remedy}"
        case errno.EDQUOT:
            return f"this user's disk quota for {folder} is used up; free some space, or {remedy}"
        case errno.EROFS:
            return f"{folder} is on a read-only file system; mount it for writing, or {remedy}"
        case errno.EIO:
            return f"the disk of {folder} reports input/output errors; check the disk, or {remedy}"
        case errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return f"all {limit} file descriptors of this process are in use; raise the limit (ulimit -n) and restart"
        case errno.ENFILE:
            return "all file descriptors of this machine are in use; raise fs.file-max"
        case errno.ENOMEM:
            return "this machine or container has no free memory; free some memory"
        case errno.ENOLCK:
            return f"the file system of {folder} has no free locks; raise its limit, or {remedy}"
    return f"{folder} cannot be used ({error}); {remedy}"


def free_bytes(folder: Path) -> int:
    """Return the disk space that this user may still use in `folder`; 0 if it cannot be read."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


def free_inodes(folder: Path) -> int | None:
    """Return the number of files that can still be created; None if the file system sets no limit."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_favail if disk.f_files else None
