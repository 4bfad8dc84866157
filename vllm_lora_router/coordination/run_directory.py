"""The directory that all API-server processes of one server share; the last process to end removes it."""

import fcntl
import multiprocessing
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vllm_lora_router.coordination import liveness
from vllm_lora_router.coordination.shortage import describe, shortage_of
from vllm_lora_router.file_access import check_trusted

ALIVE = ".vllm-lora-router"  # every living process of the server holds a shared lock on this file


class RunDirectoryError(RuntimeError):
    """The run directory cannot be created or used; the message names the place and the remedy."""


def server_name(port: int) -> str:
    """Return a name that is the same in all API-server processes of one server: their parent process and the port."""
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent is not None and parent.pid else os.getpid()
    # Process ids are reused, and every container numbers its processes alike, so the start time is included.
    return f"{pid}-{_start_ticks(pid)}-{port}"


def _start_ticks(pid: int) -> int:
    """Return the time at which a process started, in clock ticks since the machine started.

    `psutil` returns a time of day, which changes for the same process when the clock is set.
    """
    # See proc_pid_stat(5): field 22. The second field is the command in parentheses and may contain spaces.
    return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])


def run_folder(server: str, parent: Path | None = None) -> Path:
    """Return the path of the run directory of `server`, whether or not it exists.

    Raises:
        RunDirectoryError: `parent` is not given, and the system has no temporary folder that can be written.
    """
    return (parent or _default_parent()) / server


def prepare_parent(parent: Path | None = None) -> Path:
    """Create the folder of all run directories if it is missing, and remove the directories of servers that have ended.

    Returns:
        The folder, in which this user can create files.

    Raises:
        RunDirectoryError: the folder cannot be used, belongs to another user, or its disk is full.
    """
    parent = parent or _default_parent()
    with _usable(parent):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(parent)
        with _opened(parent / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_dead(parent)
        # A file that is open for writing can exist on a read-only file system, so create a new one.
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".probe-"):
            pass
    return parent


@dataclass(frozen=True)
class RunDirectory:
    """One server's directory: the version log, one usage table per process, snapshots, configuration votes."""

    folder: Path
    _locks: tuple[int, ...] = field(repr=False)
    _opened_locks: list[int] = field(default_factory=list, repr=False)

    @classmethod
    def open(cls, server: str, parent: Path | None = None) -> "RunDirectory":
        """Open or create the directory of `server`, and remove the directories of servers that have ended.

        Args:
            server: a name that tells servers apart, in characters that a file name may have. All processes of one
                server use the same name.
            parent: where to create the directory (default: a folder of this user in the system's temporary folder).

        Raises:
            RunDirectoryError: the place is not writable, or belongs to another user.
        """
        folder = run_folder(server, parent)
        parent = folder.parent
        with _usable(parent):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(parent)
            # Creating a directory and locking it is one step under this lock, so that no other process takes the new
            # directory for one of an ended server.
            with _opened(parent / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _remove_dead(parent, current=server)
                folder.mkdir(mode=0o700, exist_ok=True)
                _check_owner(folder)
                alive = liveness.hold(folder / ALIVE, shared=True)
                # systemd's cleaner of temporary files skips locked folders. Not all file systems can lock a folder.
                whole = os.open(folder, os.O_RDONLY)
                with suppress(OSError):
                    fcntl.flock(whole, fcntl.LOCK_SH)
        return cls(folder, (alive, whole))

    def close(self) -> None:
        """Close the directory, and remove it if no other process uses it."""
        # Under the lock of `open`: a process that starts now must not get a directory that is being removed.
        with suppress(OSError), _opened(self.folder.parent / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if liveness.is_only_holder(self._locks[0]):
                _remove(self.folder)
        for descriptor in (*self._locks, *self._opened_locks):
            os.close(descriptor)
        self._opened_locks.clear()

    @contextmanager
    def locked(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock `name` across all processes. The kernel releases it when its holder ends."""
        with self.opened(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield

    def open_lock(self, name: str) -> int:
        """Open the file of the lock `name` until `close`, for code that must not fail when no descriptor is free.

        Returns:
            The descriptor, for `fcntl.flock`. Threads that use the same descriptor do not wait for each other.
        """
        descriptor = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._opened_locks.append(descriptor)
        return descriptor

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Open the file of the lock `name` without locking it, for code that must not wait here.

        The file is closed at the end of the block, which releases the lock.
        """
        with _opened(self.folder / f"{name}.lock") as lock:
            yield lock


@contextmanager
def _usable(parent: Path) -> Iterator[None]:
    """Raise errors of the disk as `RunDirectoryError`."""
    try:
        yield
    except OSError as error:
        if shortage_of(error):
            raise RunDirectoryError(f"the run directory cannot be created: {describe(error, parent)}") from error
        raise RunDirectoryError(
            f"the run directory {parent} cannot be used ({error}); set router.adapters.run_dir to a folder that "
            "this user may write to"
        ) from error


def _default_parent() -> Path:
    try:
        return Path(tempfile.gettempdir()) / f"vllm-lora-router-{os.getuid()}"
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"there is no temporary folder for the run directory ({error.strerror}); set router.adapters.run_dir, or "
            "the environment variable TMPDIR, to a folder that this user may write to"
        ) from error


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_owner(folder: Path) -> None:
    # All users share the temporary folder: another user may have created this one to read or change its files.
    properties = folder.lstat()
    if not stat.S_ISDIR(properties.st_mode) or properties.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    check_trusted(folder)


def _remove_dead(parent: Path, current: str | None = None) -> None:
    for folder in parent.iterdir():
        alive = folder / ALIVE
        with suppress(OSError):  # a folder that this user may not read is not one of ours
            if folder.name != current and alive.is_file() and not liveness.is_held(alive, shared=True):
                _remove(folder)


def _remove(folder: Path) -> None:
    # Snapshots and their folders are read-only.
    for root, folders, _ in os.walk(folder):
        for name in folders:
            Path(root, name).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
