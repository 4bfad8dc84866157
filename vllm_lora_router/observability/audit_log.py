"""The audit log: lines of JSON in a folder, written off the event loop."""

import contextlib
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

from vllm_lora_router.observability.audit_encoding import Encoded
from vllm_lora_router.observability.audit_files import Files, create_file

logger = logging.getLogger("vllm_lora_router.record")

RETRY_S = 1.0  # between two tries to write what the disk refused
STUCK_S = 5.0  # a disk that has not answered by then is a problem, though it said nothing
SAID_AGAIN_S = 60.0
WRITE_BYTES = 1 << 20
# Python's interpreter lock is let go of after so long, for so long: the event loop would wait for it as long as a
# whole batch takes.
HELD_S, PAUSE_S = 0.0003, 0.0001


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
        self._files = Files(folder, rotate_bytes, rotate_s, create)
        self._write_bytes = min(WRITE_BYTES, rotate_bytes, most_bytes)

        # Each with how many had been refused before it, so that the refused are told of in their place.
        self._lines: deque[tuple[int, Callable[[], dict[str, Any]]]] = deque()
        self._refused = 0
        self._refusing = threading.Lock()  # the log's thread never takes it
        self._idle = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._deadline: float | None = None  # `time.monotonic()`, once this is closed

        # Only the log's thread writes these.
        self._encoded = Encoded(self.run)
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


def _what(error: Exception) -> str:
    """What went wrong and where, and none of the user's words, which an error's own may hold."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {at.filename}:{at.lineno}"
