"""The files of the audit log: naming, rotation, and recovery from a full disk."""

import contextlib
import errno
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger("vllm_lora_router.observability")

MOVE_CHECK_S = 1.0  # time between two checks that the current file still exists under its name

# After these errors, freeing disk space is enough. After any other error the log starts a new file.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def create_file(path: Path) -> int:
    """Create a file and open it for appending.

    Raises:
        FileExistsError: the file exists already.
    """
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o640)


class AuditFiles:
    """A sequence of files in one folder. Lines are appended to the newest file, which this process created."""

    def __init__(self, folder: Path, rotate_bytes: int, rotate_s: float, create: Callable[[Path], int]) -> None:
        """Set the rotation limits. No file is created before the first line is appended.

        Args:
            rotate_bytes: start a new file rather than let the current one grow beyond this size.
            rotate_s: start a new file if the current one is at least this old.
            create: opens a new file for appending.
        """
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._rotate_s = rotate_s
        self._create = create
        self._file: _File | None = None
        self._checked_s = 0.0  # `time.monotonic()` of the last check that the file still exists

    def append(self, lines: bytes | bytearray) -> tuple[int, OSError | None]:
        """Write lines. Return how many bytes of complete lines were written, and the error that stopped the rest."""
        try:
            file = self._open(len(lines))
        except OSError as error:
            return 0, error
        written, error = file.append(lines)
        if error is not None and error.errno not in _DISK_FULL:
            self.close()
        return written, error

    def close(self) -> None:
        """Close the current file. The next line starts a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, size: int) -> "_File":
        file, now = self._file, time.monotonic()
        if file is not None:
            is_moved = False
            if now - self._checked_s >= MOVE_CHECK_S:
                self._checked_s = now
                is_moved = file.is_moved()
            is_full = file.size and file.size + size > self._rotate_bytes
            if not (is_moved or is_full or now - file.opened_s >= self._rotate_s):
                return file
            self.close()
        _make_folder(self._folder)
        while True:
            path = self._folder / _file_name()
            # A container with the same host name and process id may create the same name at the same time.
            with contextlib.suppress(FileExistsError):
                self._file = _File(path, self._create(path))
                self._checked_s = now
                return self._file


class _File:
    def __init__(self, path: Path, fd: int) -> None:
        self.opened_s = time.monotonic()
        self.size = 0
        self._path = path
        self._fd = fd
        self._ends_mid_line = False

    def append(self, lines: bytes | bytearray) -> tuple[int, OSError | None]:
        written, failure = 0, None
        try:
            if self._ends_mid_line:
                self.size += os.write(self._fd, b"\n")
                self._ends_mid_line = False
            while written < len(lines):
                written += os.write(self._fd, lines[written:] if written else lines)
        except OSError as error:
            failure = OSError(error.errno, error.strerror, str(self._path))
        complete = written if failure is None else lines.rfind(b"\n", 0, written) + 1
        if complete < written:
            try:
                os.ftruncate(self._fd, self.size + complete)
                written = complete
            except OSError:
                self._ends_mid_line = True
        self.size += written
        return complete, failure

    def is_moved(self) -> bool:
        """Return whether the file was deleted or moved: readers of the folder would not see new lines in it."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # the next write reports the problem

    def close(self) -> None:
        try:
            os.close(self._fd)
        except OSError as error:
            logger.warning(
                "audit log %s: closing failed (%s); its last lines may be missing", self._path, error.strerror
            )
        if not self.size:
            with contextlib.suppress(OSError):
                self._path.unlink()


def check_folder(folder: Path) -> str | None:
    """Create the folder if it is missing. Return why no file can be written in it, or None if files can be written."""
    try:
        _make_folder(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"\n")
            probe.flush()
    except OSError as error:
        return f"{folder}: no file can be written in this folder: {error.strerror}"
    return None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(0o750, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _file_name() -> str:
    host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)
    return f"{host}-{os.getpid()}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"
