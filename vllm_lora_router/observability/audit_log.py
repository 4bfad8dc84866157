"""The audit log: JSON lines in a folder, written by a thread of their own so that the event loop never waits."""

import contextlib
import errno
import logging
import math
import queue
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_lora_router.observability.audit_encoding import LineBuffer
from vllm_lora_router.observability.audit_files import AuditFiles, create_file

logger = logging.getLogger("vllm_lora_router.observability")

RETRY_S = 1.0  # time between two attempts after a failed write
STUCK_S = 5.0  # a write that takes longer is reported as a problem, even without an error
WARNING_INTERVAL_S = 60.0
WRITE_BYTES = 1 << 20
# While it builds a batch, the thread pauses for PAUSE_S after every MAX_BUSY_S. Otherwise the event loop would wait for
# Python's interpreter lock until the whole batch is built.
MAX_BUSY_S, PAUSE_S = 0.0003, 0.0001

# What ends a write error; until then the lines wait.
_REMEDIES = {
    errno.ENOSPC: "the disk has free space",
    errno.EDQUOT: "the quota of this user is not used up",
    errno.EROFS: "the file system can be written",
    errno.EMFILE: "this process has a free file descriptor (ulimit -n)",
}


class AuditLog:
    """An append-only log of JSON lines, in files that belong to this process. Appending never blocks.

    Each line begins with `schema`, `run` and `seq`. `run` identifies the process, and `seq` counts 1, 2, 3 within the
    run, so that missing lines can be detected. If memory for waiting lines is used up, the newest lines are dropped:
    they are counted in `lost`, and a line `{"schema", "run", "seq", "type": "lost", "at", "lines"}` takes their place.

    Written lines survive the end of the process, including `kill -9`. They are not forced to disk with fsync, so a
    crash of the machine can lose them; with fsync every line would wait for the disk instead of the page cache.

    The thread ends with `close`. It is a daemon thread, so the process can exit without `close`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rotate_bytes: int,
        rotate_s: float,
        flush_s: float = 0.1,
        max_bytes: int = 32 << 20,
        max_lines: int = 50_000,
        report: Callable[[int, int], None] = lambda written, lost: None,
        create: Callable[[Path], int] = create_file,
    ) -> None:
        """Start the thread. Nothing is created in `folder` before the first line is written.

        Args:
            rotate_bytes: start a new file rather than let the current one grow beyond this size.
            rotate_s: start a new file if the current one is at least this old when a line is written.
            flush_s: how long lines are collected for one write.
            max_bytes: maximum size of the encoded lines that are not yet on disk.
            max_lines: maximum number of lines that wait to be built, for example while the disk does not respond.
            report: called on the log's thread with the numbers of newly written and newly lost lines.
            create: opens a new file for appending.
        """
        self.run = secrets.token_hex(4)
        self._folder = folder
        self._flush_s = flush_s
        self._max_bytes = max_bytes
        self._capacity = max_lines  # 0 after `close`
        self._report_counts = report
        self._files = AuditFiles(folder, rotate_bytes, rotate_s, create)
        self._write_bytes = min(WRITE_BYTES, rotate_bytes, max_bytes)

        # Each line with the number of lines refused before it, so that the `lost` line gets the right place.
        self._pending: deque[tuple[int, Callable[[], dict[str, Any]]]] = deque()
        self._refused = 0
        self._refused_lock = threading.Lock()  # the log's thread never takes it
        self._idle = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._deadline: float | None = None  # `time.monotonic()`; set by `close`

        # Only the log's thread writes these.
        self._buffer = LineBuffer(self.run)
        self._refused_reported = 0
        self._dropped = 0
        self._failure: str | None = None
        self._logged_error: int | None = None  # `errno` of the failure that was logged last and lasts
        self._write_began: float | None = None  # `time.monotonic()` during a write
        self._reported = (0, 0)
        self._warned: dict[object, float] = {}
        self._thread = threading.Thread(target=self._run, name="lora-router-audit-log", daemon=True)
        self._thread.start()

    def append(self, line: Callable[[], dict[str, Any]]) -> None:
        """Queue a line. Can be called from any thread and never blocks.

        Args:
            line: called on the log's thread; returns an object that msgspec can encode. If it raises, the line is
                counted as lost.
        """
        if len(self._pending) >= self._capacity:
            with self._refused_lock:
                self._refused += 1
            return
        self._pending.append((self._refused, line))
        if self._idle:
            self._idle = False
            self._wake.put(None)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write the queued lines, and wait for that at most `timeout_s`. Lines appended later are counted as lost.

        Lines that are not written within `timeout_s` are still written while the process runs and the disk responds.
        """
        self._capacity = 0
        if self._deadline is None:
            self._deadline = time.monotonic() + timeout_s
            self._wake.put(None)
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if timeout_s and self._thread.is_alive():
            unwritten = self._buffer.lines + len(self._pending)
            self._warn("close", "closing timed out after %g s with %d lines not written", timeout_s, unwritten)

    @property
    def written(self) -> int:
        """The number of lines on disk."""
        return self._buffer.written

    @property
    def lost(self) -> int:
        """The number of lines that were dropped, refused or could not be built."""
        # A call of `append` that was running when the thread ended can leave a line that is never written.
        return self._refused + self._dropped + (0 if self._thread.is_alive() else len(self._pending))

    @property
    def problem(self) -> str | None:
        """The last write error, or that the disk does not respond. None while writing works."""
        write_began = self._write_began
        waits_s = 0.0 if write_began is None else time.monotonic() - write_began
        return f"{self._folder} has not responded for {waits_s:.0f} s" if waits_s > STUCK_S else self._failure

    def _run(self) -> None:
        while not self._is_done():
            self._wait()
            try:
                self._flush()
            except Exception as error:
                self._warn("flush", "writing failed (%s)", _describe(error))
                time.sleep(RETRY_S)
        self._files.close()
        if unwritten := self._buffer.lines + len(self._pending):
            self._pending.clear()
            self._dropped += unwritten
            self._warn("end", "closed with %d lines never written", unwritten)
        self._report()

    def _is_done(self) -> bool:
        if self._deadline is None:
            return False
        if self._failure is not None and time.monotonic() + RETRY_S > self._deadline:
            return True
        return not self._pending and not self._buffer.data

    def _wait(self) -> None:
        """Wait for a line, then for the lines that follow within `flush_s`."""
        if not self._pending and not self._buffer.data:
            self._idle = True
            if not self._pending:  # a line that was appended before `_idle` was set did not wake the thread
                self._wake.get()
            self._idle = False
        is_failing = self._failure is not None
        if is_failing or self._deadline is None:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=RETRY_S if is_failing else self._flush_s)

    def _flush(self) -> None:
        since = time.monotonic()
        for _ in range(len(self._pending)):
            self._encode(*self._pending.popleft())
            if time.monotonic() - since > MAX_BUSY_S:
                time.sleep(PAUSE_S)
                since = time.monotonic()
            if len(self._buffer.data) >= self._write_bytes and self._failure is None:
                self._write()
        if not self._pending:
            self._add_refused(self._refused)
        self._write()
        if self._buffer.gap and self._failure is None:
            self._buffer.add_gap()
            self._write()
        self._report()

    def _encode(self, refused: int, line: Callable[[], dict[str, Any]]) -> None:
        self._add_refused(refused)
        if len(self._buffer.data) >= self._max_bytes:
            self._drop()
            return
        try:
            self._buffer.add(line())
        except Exception as error:
            self._drop()
            self._warn("build", "a line could not be built (%s) and is dropped", _describe(error))

    def _drop(self) -> None:
        self._dropped += 1
        self._buffer.gap += 1

    def _add_refused(self, refused: int) -> None:
        if refused > self._refused_reported:
            self._buffer.gap += refused - self._refused_reported
            self._refused_reported = refused
            self._warn("refused", "the queue is full, new lines are dropped")

    def _write(self) -> None:
        data = self._buffer.data
        while data:
            end = data.rfind(b"\n", 0, self._write_bytes) + 1 or data.find(b"\n") + 1
            self._write_began = time.monotonic()
            size, error = self._files.append(data[:end])
            self._write_began = None
            self._buffer.discard(size)
            if error is not None:
                self._failure = f"{error.filename or self._folder}: {error.strerror}"
                if error.errno != self._logged_error and self._warn(
                    error.errno,
                    "writing failed (%s); requests are served, and %d lines wait until %s",
                    self._failure,
                    self._buffer.lines,
                    _REMEDIES.get(error.errno or 0, "the problem is solved"),
                ):
                    self._logged_error = error.errno
                return
        self._failure = None
        if self._logged_error is not None:
            self._logged_error = None
            logger.info("audit log %s: writing works again; %d lines lost so far", self._folder, self.lost)

    def _report(self) -> None:
        now = self.written, self.lost
        written, lost = (new - old for new, old in zip(now, self._reported, strict=True))
        self._reported = now
        try:
            if written or lost:
                self._report_counts(written, lost)
        except Exception as error:
            self._warn("count", "lines could not be counted in metrics (%s)", _describe(error))

    def _warn(self, topic: object, message: str, *values: object) -> bool:
        """Log a warning, at most once a minute for each topic. Return whether it was logged."""
        now = time.monotonic()
        if now - self._warned.get(topic, -math.inf) < WARNING_INTERVAL_S:
            return False
        self._warned[topic] = now
        logger.warning(f"audit log %s: {message}; %d lines lost so far", self._folder, *values, self.lost)
        return True


def _describe(error: Exception) -> str:
    """Return an error's type and place. Its message may contain user text and is left out."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
