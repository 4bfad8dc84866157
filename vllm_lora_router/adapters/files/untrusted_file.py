"""Open and read files that other users may have written, and may replace at any time.

Such a file may be a link to anywhere, a FIFO, a device, or as large as the disk.
"""

import errno
import os
import reprlib
import stat
from pathlib import Path
from typing import BinaryIO

# Values from such a file are shortened in messages.
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlevel = 3


class OutsideBoundaryError(OSError):
    """The file links to a place outside of the folder that its owner may use; the message names both."""


def open_regular(file: Path, boundary: Path | None = None) -> BinaryIO:
    """Open `file`, or the file that it links to, for reading. Never waits for a writer.

    Args:
        boundary: the folder that the real file must be in; None allows all.

    Raises:
        OutsideBoundaryError: the real file is outside of `boundary`.
        OSError: the file cannot be opened or is not a regular file.
    """

    def opener(path: str, flags: int) -> int:
        # O_PATH finds the file without opening it: to open a FIFO may block, and to open a device may have effects.
        # The second open is of the same file, even if the path leads elsewhere by now.
        located = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            mode = os.fstat(located).st_mode
            if not stat.S_ISREG(mode):
                number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
                raise OSError(number, "Is a directory" if stat.S_ISDIR(mode) else "not a regular file", path)
            proc = Path(f"/proc/self/fd/{located}")
            if boundary is not None and not (real := proc.readlink()).is_relative_to(os.path.realpath(boundary)):
                raise OutsideBoundaryError(
                    f"{file} links to {real}, outside of {boundary}; copy the adapter into the source"
                )
            return os.open(proc, flags | os.O_NONBLOCK)
        finally:
            os.close(located)

    return open(file, "rb", opener=opener)


def read_regular(file: Path, max_bytes: int, boundary: Path | None = None) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises:
        OutsideBoundaryError: the real file is outside of `boundary`.
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    with open_regular(file, boundary) as opened:
        # Not until the end: a file that is appended to may have none. The kernel's pseudo files have a size of 0.
        size_bytes = os.fstat(opened.fileno()).st_size
        if size_bytes > max_bytes:
            raise OSError(errno.EFBIG, f"it has {size_bytes:,} bytes, more than {max_bytes:,}", str(file))
        return opened.read(size_bytes)


def check_json_size(encoded: bytes, max_containers: int, max_members: int) -> None:
    """Refuse a JSON document of many values before it is parsed: a value takes up to 20 times the memory of its text.

    Characters in strings count too, so the limits must leave room for them.

    Args:
        max_containers: the limit of objects and lists.
        max_members: the limit of the members of all objects and lists.

    Raises:
        ValueError: the document exceeds a limit.
    """
    if encoded.count(b"{") + encoded.count(b"[") > max_containers or encoded.count(b",") > max_members:
        raise ValueError(f"it has more than {max_containers:,} objects and lists, or {max_members:,} members")


def short_repr(value: object) -> str:
    """Return a `repr` of bounded length for messages."""
    return _short.repr(value)
