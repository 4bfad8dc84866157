"""The files that lines go to: their names, when another one begins, and what a full disk leaves whole."""

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

logger = logging.getLogger("vllm_lora_router.record")

LOOK_S = 1.0  # between two looks whether the file is still where it was made

# What room on the disk can mend; after anything else the file itself is not to be trusted any more.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def create_file(path: Path) -> int:
    """Opens a file that was not there for appending; raises `FileExistsError` when it was."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o640)


class Files:
    """Where the lines go: one file at a time, which was not there before."""

    def __init__(self, folder: Path, rotate_bytes: int, rotate_s: float, create: Callable[[Path], int]) -> None:
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._rotate_s = rotate_s
        self._create = create
        self._file: _File | None = None
        self._looked = 0.0

    def append(self, lines: bytes | bytearray) -> tuple[int, OSError | None]:
        """How many bytes of whole lines the disk took, and what it said instead of taking the rest."""
        try:
            file = self._open(len(lines))
        except OSError as error:
            return 0, error
        taken, error = file.append(lines)
        if error is not None and error.errno not in _FULL:
            self.close()
        return taken, error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, size: int) -> "_File":
        file, now = self._file, time.monotonic()
        if file is not None:
            moved = False
            if now - self._looked >= LOOK_S:
                self._looked = now
                moved = file.moved()
            grown = file.size and file.size + size > self._rotate_bytes
            if not (moved or grown or now - file.opened >= self._rotate_s):
                return file
            self.close()
        _make_folder(self._folder)
        while True:
            path = self._folder / _name()
            # Another container with this host's name and this process's number may have been as quick.
            with contextlib.suppress(FileExistsError):
                self._file = _File(path, self._create(path))
                self._looked = now
                return self._file


class _File:
    def __init__(self, path: Path, fd: int) -> None:
        self.opened = time.monotonic()
        self.size = 0
        self._path = path
        self._fd = fd
        self._torn = False  # it ends within a line

    def append(self, lines: bytes | bytearray) -> tuple[int, OSError | None]:
        written, failure = 0, None
        try:
            if self._torn:
                self.size += os.write(self._fd, b"\n")
                self._torn = False
            while written < len(lines):
                written += os.write(self._fd, lines[written:] if written else lines)
        except OSError as error:
            failure = OSError(error.errno, error.strerror, str(self._path))
        whole = written if failure is None else lines.rfind(b"\n", 0, written) + 1
        if whole < written:
            try:
                os.ftruncate(self._fd, self.size + whole)
                written = whole
            except OSError:
                self._torn = True
        self.size += written
        return whole, failure

    def moved(self) -> bool:
        """Whether it is not where it was made any more: nobody would look for its lines there."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # writing will tell

    def close(self) -> None:
        try:
            os.close(self._fd)
        except OSError as error:
            logger.warning("%s: %s: its last lines may be missing", self._path, error.strerror)
        if not self.size:
            with contextlib.suppress(OSError):
                self._path.unlink()


def check_folder(folder: Path) -> str | None:
    """What keeps lines from being written in the folder, which is made when it is missing; None when nothing does."""
    try:
        _make_folder(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"\n")
            probe.flush()
    except OSError as error:
        return f"{folder}: no file can be written there: {error.strerror}"
    return None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(0o750, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _name() -> str:
    host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)
    return f"{host}-{os.getpid()}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"
