"""The folder that all API-server processes of one server share, and that goes when the last of them is gone."""

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

import psutil

ALIVE = ".vllm-lora-router"  # a shared lock on it says that a process of the server lives


class RunDirectoryError(RuntimeError):
    """No folder for this server can be made; the message says where and what to do."""


def server_name(port: int) -> str:
    """What all API-server processes of one server agree on: the process that started them, and the port."""
    parent = multiprocessing.parent_process()
    main = psutil.Process(parent.pid if parent is not None and parent.pid else None)
    # A process's number is used again, and is the same in every container.
    return f"{main.pid}-{main.create_time():.2f}-{port}"


def run_folder(server: str, parent: Path | None = None) -> Path:
    """Where the folder of `server` is, or will be."""
    return (parent or Path(tempfile.gettempdir()) / f"vllm-lora-router-{os.getuid()}") / server


@dataclass(frozen=True)
class RunDirectory:
    """One server's folder: the ledger, a board a process, snapshots, configurations."""

    folder: Path
    _locks: tuple[int, ...] = field(repr=False)

    @classmethod
    def open(cls, server: str, parent: Path | None = None) -> "RunDirectory":
        """The folder of `server`, the same for each of its processes; those of servers that are gone are removed.

        Args:
            server: tells servers apart, in letters that a file name may have.
            parent: where to make it; a folder of the user's own under the system's temporary one unless given.

        Raises:
            RunDirectoryError: the place cannot be written to, or belongs to somebody else.
        """
        folder = run_folder(server, parent)
        parent = folder.parent
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(parent)
            # A folder is made and its lock taken in one step, so that nobody takes it for a dead one in between.
            with _opened(parent / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _remove_dead(parent, but=server)
                folder.mkdir(mode=0o700, exist_ok=True)
                _check_owner(folder)
                alive = os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(alive, fcntl.LOCK_SH)
                # systemd's cleaner of old temporary files leaves locked folders alone; not all file systems lock them.
                whole = os.open(folder, os.O_RDONLY)
                with suppress(OSError):
                    fcntl.flock(whole, fcntl.LOCK_SH)
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {parent} cannot be used ({error}); set router.adapters.run_dir to a folder that "
                "this user may write to"
            ) from error
        return cls(folder, (alive, whole))

    def close(self) -> None:
        """Lets go of the folder, and removes it when no other process has it."""
        # Under the lock of `open`: one that comes now must not get a folder that goes.
        with suppress(OSError), _opened(self.folder.parent / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fcntl.flock(self._locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(self.folder)
        for descriptor in self._locks:
            os.close(descriptor)

    @contextmanager
    def locked(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Holds the lock `name` over all processes. The kernel lets go of it when its holder dies."""
        with self.opened(name) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """The lock's file, for those who must not wait for it here; closing lets go of the lock."""
        with _opened(self.folder / f"{name}.lock") as lock:
            yield lock


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_owner(folder: Path) -> None:
    # The temporary folder is everybody's: another user may have made ours, to read or to change what lies in it.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")


def _remove_dead(parent: Path, but: str) -> None:
    for folder in parent.iterdir():
        # Not ours, or the lock is held.
        with suppress(OSError), (folder / ALIVE).open("r+b") as alive:
            if folder.name != but:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)


def _remove(folder: Path) -> None:
    # Snapshots are read-only, and so are their folders.
    for root, folders, _ in os.walk(folder):
        for name in folders:
            Path(root, name).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
