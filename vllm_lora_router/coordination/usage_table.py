"""Adapter usage of each API-server process, in a table in shared memory that the other processes read."""

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from vllm_lora_router.coordination import liveness
from vllm_lora_router.coordination.run_directory import RunDirectory, RunDirectoryError
from vllm_lora_router.coordination.shortage import describe

ROWS = 8192  # adapters that one process may use at once

# Version-log lines applied, number of rows that may be filled, start of the longest request with unknown adapters.
_HEAD = struct.Struct("=qqd")
_ROW = struct.Struct("=qqqdd")

TABLE_BYTES = _HEAD.size + ROWS * _ROW.size  # size of one process's table on disk

CREATING = "."  # prefix of a table that is not complete yet


@dataclass(slots=True)
class Use:
    """One process's use of one version. Times are `time.monotonic()`, which all processes of a machine share."""

    leases: int = 0
    running: int = 0  # leases whose request is in the engine
    running_since: float = 0.0
    waiting_since: float = 0.0  # when the first of its requests began to wait for a slot; 0 if none waits


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """The contents of one process's table."""

    sequence: int  # the process has released all versions that were superseded up to this line of the version log
    unknown_since: float  # start of its longest request with unknown adapters; 0 if there is none
    uses: list[tuple[int, Use]]


class UsageTable:
    """This process's table, and read access to the tables of the others.

    Writing a row takes a microsecond and no lock.
    """

    def __init__(self, run: RunDirectory, process: int | None = None) -> None:
        """Create the table of this process.

        Raises:
            RunDirectoryError: the disk has no space for the table.
        """
        self._folder = run.folder / "processes"
        self._file = self._folder / str(process or os.getpid())
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._descriptor, self._map = _create(self._file)
        except OSError as error:
            raise RunDirectoryError(
                f"the usage table {self._file} needs {decimal(TABLE_BYTES)}: {describe(error, run.folder)}"
            ) from error
        self._rows: dict[int, int] = {}  # row by version id
        self._free: list[int] = []
        self._others: dict[str, mmap.mmap] = {}
        self._sequence = 0
        self._filled = 0  # the number of rows that was last published
        self._unknown: dict[object, float] = {}
        self.uses: dict[int, Use] = {}
        self.publish(0)

    def publish(self, sequence: int) -> None:
        """Publish that this process has released all versions superseded up to line `sequence` of the version log."""
        self._sequence = sequence
        self._filled = len(self._rows) + len(self._free)
        unknown_since = next(iter(self._unknown.values()), 0.0)
        self._put(0, _HEAD.pack(sequence, self._filled, unknown_since))

    @contextmanager
    def track_unknown_use(self) -> Iterator[None]:
        """Mark that a request with unknown adapters is running: it may use any adapter that is registered in vLLM."""
        token = object()
        self._unknown[token] = time.monotonic()
        self.publish(self._sequence)
        try:
            yield
        finally:
            del self._unknown[token]
            self.publish(self._sequence)

    def use(self, identifier: int) -> Use:
        """Return this process's use of a version. After changing it, call `write` to publish it.

        Raises:
            OverflowError: the process uses `ROWS` versions already.
        """
        use = self.uses.get(identifier)
        if use is None:
            if len(self.uses) >= ROWS:
                raise OverflowError(f"{ROWS} adapters are in use at once")
            use = self.uses[identifier] = Use()
            self._rows[identifier] = self._free.pop() if self._free else len(self._rows)
        return use

    def write(self, identifier: int) -> None:
        """Publish this process's use of a version; remove the row if the version is no longer used."""
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

    def _put(self, offset: int, packed: bytes) -> None:
        # Not `pack_into`: it writes zeros first, and other processes would read that no adapter is in use.
        self._map[offset : offset + len(packed)] = packed

    def other_processes(self) -> Iterator[ProcessUsage]:
        """Yield the tables of the other processes."""
        for table in self._others.values():
            sequence, filled, unknown_since = _HEAD.unpack_from(table, 0)
            rows = memoryview(table)[_HEAD.size : _HEAD.size + filled * _ROW.size]
            uses = [(row[0], Use(*row[1:])) for row in _ROW.iter_unpack(rows) if row[0]]
            yield ProcessUsage(sequence, unknown_since, uses)

    def all_processes(self) -> Iterator[ProcessUsage]:
        """Yield the table of this process and those of the others."""
        yield ProcessUsage(self._sequence, next(iter(self._unknown.values()), 0.0), list(self.uses.items()))
        yield from self.other_processes()

    @property
    def is_only_process(self) -> bool:
        """Return whether the last `refresh` saw no other process."""
        return not self._others

    def refresh(self) -> None:
        """Add the tables of processes that have started, and drop those of processes that have ended.

        This lists a folder, so do not call it for every request.
        """
        tables = (path for path in self._folder.iterdir() if path != self._file and not path.name.startswith(CREATING))
        alive = {path.name for path in tables if liveness.is_held(path)}
        for name in self._others.keys() - alive:
            del self._others[name]
        for name in alive - self._others.keys():
            with suppress(FileNotFoundError), (self._folder / name).open("rb") as file:  # the process may have ended
                self._others[name] = mmap.mmap(file.fileno(), TABLE_BYTES, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Remove this process's table."""
        self._others.clear()
        self._file.unlink(missing_ok=True)
        self._map.close()  # the mapping also keeps the lock
        os.close(self._descriptor)


def _create(file: Path) -> tuple[int, mmap.mmap]:
    """Create an empty table. Return its descriptor, which holds the lock that shows that this process is alive."""
    # Other processes map the file as soon as it has its name, so it gets the name last.
    new = file.with_name(f"{CREATING}{file.name}")
    descriptor = liveness.hold(new)
    try:
        os.ftruncate(descriptor, TABLE_BYTES)
        # A file with holes would need disk space when a mapped page is used for the first time: if the disk is full by
        # then, the kernel ends the process with SIGBUS.
        os.posix_fallocate(descriptor, 0, TABLE_BYTES)
        table = mmap.mmap(descriptor, TABLE_BYTES)
        table[:] = bytes(TABLE_BYTES)
        new.rename(file)
    except OSError:
        with suppress(OSError):
            new.unlink()
        os.close(descriptor)
        raise
    return descriptor, table
