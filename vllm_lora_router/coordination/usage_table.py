"""What each process uses now, where the others can read it: a table of numbers a process, in shared memory."""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vllm_lora_router.coordination.run_directory import RunDirectory

ROWS = 8192  # adapters that one process may use at once

_HEAD = struct.Struct("=qqd")  # ledger lines taken in, rows that may be filled, since when an unread request runs
_ROW = struct.Struct("=qqqdd")


@dataclass(slots=True)
class Use:
    """How one process uses one version. Moments are `time.monotonic()`, which all processes of a machine share."""

    leases: int = 0
    running: int = 0  # of them handed to the engine
    running_since: float = 0.0
    waiting_since: float = 0.0  # since the first of them waits for a slot; 0 when none does


@dataclass(frozen=True, slots=True)
class Report:
    """One process's table as it was read."""

    sequence: int  # up to which line of the ledger it has let go of what was superseded
    unread_since: float  # since when its longest request of unknown adapters runs; 0 without one
    uses: list[tuple[int, Use]]


class Board:
    """This process's table, and those of the others. Writing a row takes a microsecond and no lock."""

    def __init__(self, run: RunDirectory, process: int | None = None) -> None:
        self._folder = run.folder / "processes"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._file = self._folder / str(process or os.getpid())
        size = _HEAD.size + ROWS * _ROW.size
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        os.ftruncate(self._descriptor, size)
        self._map = mmap.mmap(self._descriptor, size)
        self._map[:] = bytes(size)
        self._rows: dict[int, int] = {}  # version -> row
        self._free: list[int] = []
        self._others: dict[str, mmap.mmap] = {}
        self._sequence = 0
        self._filled = 0  # rows, as the others were told last
        self._unread: dict[object, float] = {}
        self.uses: dict[int, Use] = {}
        self.publish(0)

    def publish(self, sequence: int) -> None:
        """Says up to which line of the ledger this process has let go of what was superseded."""
        self._sequence = sequence
        self._filled = len(self._rows) + len(self._free)
        unread = next(iter(self._unread.values()), 0.0)
        self._put(0, _HEAD.pack(sequence, self._filled, unread))

    @contextmanager
    def unread(self) -> Iterator[None]:
        """While a request runs of which nobody knows which adapters it uses: all that are registered, perhaps."""
        token = object()
        self._unread[token] = time.monotonic()
        self.publish(self._sequence)
        try:
            yield
        finally:
            del self._unread[token]
            self.publish(self._sequence)

    def use(self, identifier: int) -> Use:
        """This process's use of a version; `write` shows it to the others once it was changed."""
        found = self.uses.get(identifier)
        if found is None:
            if len(self.uses) >= ROWS:
                raise OverflowError(f"{ROWS} adapters are in use at once")
            found = self.uses[identifier] = Use()
            self._rows[identifier] = self._free.pop() if self._free else len(self._rows)
        return found

    def write(self, identifier: int) -> None:
        use = self.uses[identifier]
        row = self._rows[identifier]
        used = use.leases or use.running or use.waiting_since
        values = (identifier, use.leases, use.running, use.running_since, use.waiting_since)
        self._put(_HEAD.size + row * _ROW.size, _ROW.pack(*values) if used else bytes(_ROW.size))
        if not used:
            del self.uses[identifier]
            self._free.append(self._rows.pop(identifier))
        if self._filled != len(self._rows) + len(self._free):
            self.publish(self._sequence)

    def _put(self, place: int, packed: bytes) -> None:
        # Not by `pack_into`, which begins with zeros: others would read that nothing is in use.
        self._map[place : place + len(packed)] = packed

    def others(self) -> Iterator["Report"]:
        """What the other processes say."""
        for table in self._others.values():
            sequence, filled, unread_since = _HEAD.unpack_from(table, 0)
            rows = memoryview(table)[_HEAD.size : _HEAD.size + filled * _ROW.size]
            uses = [(row[0], Use(*row[1:])) for row in _ROW.iter_unpack(rows) if row[0]]
            yield Report(sequence, unread_since, uses)

    def all(self) -> Iterator["Report"]:
        """What this process and the others say."""
        yield Report(self._sequence, next(iter(self._unread.values()), 0.0), list(self.uses.items()))
        yield from self.others()

    @property
    def alone(self) -> bool:
        return not self._others

    def look_around(self) -> None:
        """Finds processes that came, and forgets those that are gone. Not for every request: it lists a folder."""
        alive = {path.name for path in self._folder.iterdir() if path != self._file and _is_held(path)}
        for name in self._others.keys() - alive:
            del self._others[name]
        for name in alive - self._others.keys():
            # One that was held a moment ago may have gone, or have written nothing yet.
            with suppress(FileNotFoundError), (self._folder / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size:
                    self._others[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def close(self) -> None:
        self._others.clear()
        self._file.unlink(missing_ok=True)
        self._map.close()  # it keeps the lock, too
        os.close(self._descriptor)


def _is_held(file: "os.PathLike[str]") -> bool:
    """Whether the process that made the table lives: the kernel drops its lock when it does not."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who look do not see each other
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
