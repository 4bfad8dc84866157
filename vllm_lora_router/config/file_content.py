"""Read a configuration file of a limited size, without waiting forever for a pipe."""

import errno
import os
import re
import select
import stat
from pathlib import Path

MAX_BYTES = 32 * 2**20
PIPE_TIMEOUT_S = 10
_KINDS = {stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device", stat.S_IFSOCK: "a socket"}


def read_content(file: Path) -> bytes:
    """Return the content of a configuration file, or what a pipe such as `<(helm template .)` delivers.

    Raises:
        OSError: the file does not exist, cannot be read, is not a file, or is too large. `strerror` gives the reason.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(file)) and not file.exists():
        raise OSError(errno.ENOENT, "a URL is not a file; download the configuration and pass the path of the file")
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if kind in _KINDS:
            raise OSError(errno.EINVAL, f"it is {_KINDS[kind]}, not a file")
        content = bytearray()
        while len(content) <= MAX_BYTES and (chunk := _read_chunk(descriptor, is_pipe=kind == stat.S_IFIFO)):
            content += chunk
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_BYTES // 2**20} MiB")
    return bytes(content)


def _read_chunk(descriptor: int, *, is_pipe: bool) -> bytes:
    if is_pipe and not select.select([descriptor], [], [], PIPE_TIMEOUT_S)[0]:
        raise OSError(errno.ETIMEDOUT, f"the pipe delivered nothing for {PIPE_TIMEOUT_S} s")
    return os.read(descriptor, 1 << 20)
