"""The audit log: lines of JSON in a folder, written off the event loop."""

import contextlib
import errno
import json
import logging
import math
import os
import queue
import re
import secrets
import socket
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from vllm_lora_router.record.lines import rfc3339

logger = logging.getLogger("vllm_lora_router.record")

RETRY_S = 1.0  # between two tries to write what the disk refused
LOOK_S = 1.0  # between two looks whether the file is still where it was made
STUCK_S = 5.0  # a disk that has not answered by then is a problem, though it said nothing
SAID_AGAIN_S = 60.0
WRITE_BYTES = 1 << 20
# Python's interpreter lock is let go of after so long, for so long: the event loop would wait for it as long as a
# whole batch takes.
HELD_S, PAUSE_S = 0.0003, 0.0001

# What room on the disk can mend; after anything else the file itself is not to be trusted any more.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def create_file(path: Path) -> int:
    """Opens a file that was not there for appending; raises `FileExistsError` when it was."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o640)


class AuditLog:
    """Lines of JSON in files of this process's own, which nobody who appends ever waits for.

    Each line begins with `run`, which tells the processes apart, and `seq`, which counts 1, 2, 3 within the run: what
    is missing shows. Where there is no room for more, the newest lines are dropped: they are counted in `lost`, and a
    line `{"run", "seq", "type": "lost", "at", "lines"}` stands where they would have been.

    What was written survives the process, even a kill -9. It is not forced to the disk (fsync): only a machine that
    crashes could lose it, and every line would wait for the disk instead of for the system's memory.

    The thread ends with `close`, and keeps nobody from ending the process without it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rotate_bytes: int,
        rotate_s: float,
        flush_s: float = 0.1,
        most_bytes: int = 32 << 20,
        most_lines: int = 50_000,
        counted: Callable[[int, int], None] = lambda written, lost: None,
        create: Callable[[Path], int] = create_file,
    ) -> None:
        """Nothing is made in `folder` until there is a line to write.

        Args:
            rotate_bytes: a file that would grow beyond it is left for a new one.
            rotate_s: so is a file that is older, once there is something to write.
            flush_s: how long lines are gathered for one write.
            most_bytes: of lines that the disk has not taken yet.
            most_lines: that wait to be built, while the disk does not answer.
            counted: called on the log's thread with how many more lines were written, and how many more were lost.
            create: opens a file that is not there yet, for appending.
        """
        self.run = secrets.token_hex(4)
        self._folder = folder
        self._flush_s = flush_s
        self._most_bytes = most_bytes
        self._room = most_lines  # none once this is closed
        self._counted = counted
        self._files = _Files(folder, rotate_bytes, rotate_s, create)
        self._write_bytes = min(WRITE_BYTES, rotate_bytes, most_bytes)

        # Each with how many had been refused before it, so that the refused are told of in their place.
        self._lines: deque[tuple[int, Callable[[], dict[str, Any]]]] = deque()
        self._refused = 0
        self._refusing = threading.Lock()  # the log's thread never takes it
        self._idle = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._deadline: float | None = None  # `time.monotonic()`, once this is closed

        # Only the log's thread writes these.
        self._encoded = _Encoded(self.run)
        self._refused_told = 0
        self._dropped = 0
        self._failure: str | None = None
        self._failure_said = False
        self._asked: float | None = None  # `time.monotonic()`, while the disk has not answered
        self._reported = (0, 0)
        self._said: dict[object, float] = {}
        self._thread = threading.Thread(target=self._run, name="lora-router-audit-log", daemon=True)
        self._thread.start()

    def append(self, line: Callable[[], dict[str, Any]]) -> None:
        """Takes a line, to be built by calling `line` on the log's thread; never waits, from whatever thread.

        It gives what msgspec can encode. One that raises is counted as lost.
        """
        if len(self._lines) >= self._room:
            with self._refusing:
                self._refused += 1
            return
        self._lines.append((self._refused, line))
        if self._idle:
            self._idle = False
            self._wake.put(None)

    def close(self, timeout_s: float = 2.0) -> None:
        """Writes what is left, and waits for that at most so long; lines that come later are counted as lost.

        What has not been written by then still is, while the process lives and the disk takes it.
        """
        self._room = 0
        if self._deadline is None:
            self._deadline = time.monotonic() + timeout_s
            self._wake.put(None)
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if timeout_s and self._thread.is_alive():
            left = self._encoded.lines + len(self._lines)
            self._warn("close", "its last %d lines are not written after %g s", left, timeout_s)

    @property
    def written(self) -> int:
        return self._encoded.written

    @property
    def lost(self) -> int:
        # Whoever was in the middle of `append` when the thread ended has left a line that nobody will write.
        return self._refused + self._dropped + (0 if self._thread.is_alive() else len(self._lines))

    @property
    def problem(self) -> str | None:
        """What the disk said last, or that it says nothing; None while it takes what it is given."""
        asked = self._asked
        waits_s = 0.0 if asked is None else time.monotonic() - asked
        return f"{self._folder} has not answered for {waits_s:.0f} s" if waits_s > STUCK_S else self._failure

    def _run(self) -> None:
        while not self._over():
            self._rest()
            try:
                self._flush()
            except Exception as error:
                self._warn("flush", "%s", _what(error))
                time.sleep(RETRY_S)
        self._files.close()
        if left := self._encoded.lines + len(self._lines):
            self._lines.clear()
            self._dropped += left
            self._warn("end", "%d lines were never written", left)
        self._report()

    def _over(self) -> bool:
        if self._deadline is None:
            return False
        if self._failure is not None and time.monotonic() + RETRY_S > self._deadline:
            return True
        return not self._lines and not self._encoded.data

    def _rest(self) -> None:
        """Until there is something to write, and a little longer for what comes with it."""
        if not self._lines and not self._encoded.data:
            self._idle = True
            if not self._lines:  # what came before `_idle` was set woke nobody
                self._wake.get()
            self._idle = False
        failing = self._failure is not None
        if failing or self._deadline is None:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=RETRY_S if failing else self._flush_s)

    def _flush(self) -> None:
        since = time.monotonic()
        for _ in range(len(self._lines)):
            self._encode(*self._lines.popleft())
            if time.monotonic() - since > HELD_S:
                time.sleep(PAUSE_S)
                since = time.monotonic()
            if len(self._encoded.data) >= self._write_bytes and self._failure is None:
                self._write()
        if not self._lines:
            self._tell_refused(self._refused)
        self._write()
        if self._encoded.gap and self._failure is None:
            self._encoded.tell_gap()
            self._write()
        self._report()

    def _encode(self, refused: int, line: Callable[[], dict[str, Any]]) -> None:
        self._tell_refused(refused)
        if len(self._encoded.data) >= self._most_bytes:
            self._drop()
            return
        try:
            self._encoded.add(line())
        except Exception as error:
            self._drop()
            self._warn("build", "a line could not be built: %s", _what(error))

    def _drop(self) -> None:
        self._dropped += 1
        self._encoded.gap += 1

    def _tell_refused(self, refused: int) -> None:
        if refused > self._refused_told:
            self._encoded.gap += refused - self._refused_told
            self._refused_told = refused
            self._warn("refused", "lines came faster than they were taken")

    def _write(self) -> None:
        data = self._encoded.data
        while data:
            end = data.rfind(b"\n", 0, self._write_bytes) + 1 or data.find(b"\n") + 1
            self._asked = time.monotonic()
            taken, error = self._files.append(data[:end])
            self._asked = None
            self._encoded.taken(taken)
            if error is not None:
                self._failure = f"{error.filename or self._folder}: {error.strerror}"
                said = self._warn(error.errno, "%s; %d lines wait", self._failure, self._encoded.lines)
                self._failure_said = self._failure_said or said
                return
        self._failure = None
        if self._failure_said:
            self._failure_said = False
            logger.info("The audit log in %s is written again; %d lines were lost so far", self._folder, self.lost)

    def _report(self) -> None:
        now = self.written, self.lost
        written, lost = (new - old for new, old in zip(now, self._reported, strict=True))
        self._reported = now
        try:
            if written or lost:
                self._counted(written, lost)
        except Exception as error:
            self._warn("count", "its lines could not be counted: %s", _what(error))

    def _warn(self, about: object, message: str, *values: object) -> bool:
        """Says each thing at most once a minute; whether it said it now."""
        now = time.monotonic()
        if now - self._said.get(about, -math.inf) < SAID_AGAIN_S:
            return False
        self._said[about] = now
        logger.warning(f"The audit log in %s: {message}; %d lines were lost so far", self._folder, *values, self.lost)
        return True


class _Encoded:
    """Lines on their way to the disk, each with its number."""

    def __init__(self, run: str) -> None:
        self.data = bytearray()
        self.written = 0
        self.gap = 0  # lines that were lost since the last one here
        self._run = run
        self._seq = 0  # of the last line here
        self._on_disk = 0  # the number of the last line there
        self._gaps: deque[int] = deque()  # the numbers of lines here that tell of a gap

    @property
    def lines(self) -> int:
        return self._seq - self._on_disk - len(self._gaps)

    def add(self, line: dict[str, Any]) -> None:
        """Raises what encoding raises; then nothing was added."""
        seq = self._seq + (2 if self.gap else 1)
        numbered = {"run": self._run, "seq": seq}
        encoded = _encode({**numbered, **line, **numbered})
        if self.gap:
            self.tell_gap()
        self.data += encoded
        self._seq = seq

    def tell_gap(self) -> None:
        lost, self.gap = self.gap, 0
        self.add({"type": "lost", "at": rfc3339(time.time()), "lines": lost})
        self._gaps.append(self._seq)

    def taken(self, size: int) -> None:
        """The first `size` bytes are on the disk."""
        lines = self.data.count(b"\n", 0, size)
        del self.data[:size]
        self._on_disk += lines
        while self._gaps and self._gaps[0] <= self._on_disk:
            self._gaps.popleft()
            lines -= 1
        self.written += lines


class _Files:
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


_ENCODER = msgspec.json.Encoder(order=None)


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(line) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which a client can send
        text = json.dumps(msgspec.to_builtins(line, str_keys=True))
        # As msgspec writes what JSON has no number for: null.
        return json.dumps(json.loads(text, parse_constant=lambda _: None)).encode() + b"\n"


def _what(error: Exception) -> str:
    """What went wrong and where, and none of the user's words, which an error's own may hold."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {at.filename}:{at.lineno}"
