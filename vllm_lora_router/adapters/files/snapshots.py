"""The immutable snapshot store: private copies of adapters, because their sources may change while the engine reads."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import uuid4

from rich.filesize import decimal

from vllm_lora_router.adapters.files.peft_config import CONFIG, MAX_CONFIG_BYTES
from vllm_lora_router.adapters.files.sources import FILES, Signature
from vllm_lora_router.adapters.files.untrusted_file import OutsideBoundaryError, open_regular
from vllm_lora_router.coordination.shortage import describe, free_bytes, shortage_of

# Folders beside the snapshots. A process that is killed leaves the first two; a living one holds the lock meanwhile.
CREATING = ".creating-"
REMOVING = ".removing-"
LOCK = ".lock"

CHUNK_BYTES = 1 << 20
FICLONE = 0x40049409  # from <linux/fs.h>: the copy shares the source's blocks until one of them is written

# File times come from a clock that ticks every 1 to 10 ms: a second change boundary one tick does not change them.
TICK_S = 0.02

# Disk space that copies leave free, for the small files that the server writes while it runs.
RESERVED_BYTES = 1 << 20


class SnapshotError(ValueError):
    """A snapshot cannot be created or used; the message names the folder, the reason and the remedy."""


class UnreadableError(SnapshotError):
    """A file of the adapter is missing, cannot be read, or is not a regular file."""


class SourceChangingError(SnapshotError):
    """The adapter's files are being written; try again when the writer is done."""


class StoreError(SnapshotError):
    """The store cannot be used now, whatever the files of the adapter are: a later attempt may succeed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem  # of the store, without the name of an adapter


class NoSpaceError(StoreError):
    """The snapshot exceeds the limit of the store, or the free space of its file system."""

    def __init__(self, problem: str, source: Path, needed_bytes: int) -> None:
        super().__init__(problem)
        self.args = (f"a copy of {source} needs {decimal(needed_bytes)}, but {problem}",)
        self.needed_bytes = needed_bytes


@dataclass(frozen=True)
class Snapshot:
    """A private copy of an adapter."""

    sha256: str  # of both files, in hex: equal for equal adapters
    folder: Path
    size_bytes: int
    signature: Signature  # of the source files
    made_by: Literal["reflink", "copy"]  # a reflink takes no time, and no disk space until its source changes


class SnapshotStore:
    """A folder of snapshots, which processes may share. Each is a read-only folder named by the hash of its content."""

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        """Create the folder if it does not exist.

        Args:
            max_bytes: limit of the store's size; None sets no limit.

        Raises:
            StoreError: the folder cannot be created.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def set_limit(self, max_gb: float | None, declared: Collection[Path]) -> None:
        """Set the limit of the store's size. Reads the disk.

        Args:
            max_gb: `router.adapters.max_disk_gb`; None sets the default limit.
            declared: the folders of the declared adapters.
        """
        self.max_bytes = default_limit(self, declared) if max_gb is None else int(max_gb * 1e9)

    def create(self, source: Path, boundary: Path | None = None) -> Snapshot:
        """Copy the adapter in the folder `source`. If an equal snapshot exists, keep that one.

        Nothing is left in the store if this raises.

        Args:
            boundary: the folder that the real files must be in. A link that was valid when the source was resolved may
                point elsewhere by now.

        Raises:
            UnreadableError: a file is missing, cannot be read, or is outside of `boundary`.
            SourceChangingError: the files were written while they were copied.
            NoSpaceError: the store or its file system is full.
            StoreError: the store cannot be written.
        """
        with _opened(source, boundary) as (files, signature):
            size_bytes = sum(os.fstat(file.fileno()).st_size for file in files)
            try:
                self._check_space(source, size_bytes)
                _wait_for_clock_tick(signature)
                with self._lock(fcntl.LOCK_SH), self._unfinished() as copy:
                    methods = [_copy(file, copy / name) for file, name in zip(files, FILES, strict=True)]
                    if sum(_sizes(copy).values()) != size_bytes or not _is_unchanged(source, boundary, signature):
                        raise SourceChangingError(
                            f"{source} was written while it was copied; try again when its writer is done"
                        )
                    sha256 = _seal(copy)
                    self._keep(copy, sha256)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise NoSpaceError(describe(error, self.folder), source, size_bytes) from error
                raise self._unusable(error) from error
        return Snapshot(sha256, self.path(sha256), size_bytes, signature, "copy" if "copy" in methods else "reflink")

    def path(self, sha256: str) -> Path:
        """Return the folder of the snapshot with this hash, whether or not it exists."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is not a SHA-256 in hex")
        return self.folder / sha256

    def exists(self, sha256: str) -> bool:
        """Return whether a snapshot with this hash exists, with both files."""
        return all((self.path(sha256) / name).is_file() for name in FILES)

    def digests(self) -> set[str]:
        """Return the hashes of all snapshots, including those that a power cut left incomplete."""
        return {folder.name for folder in self.folder.iterdir() if re.fullmatch("[0-9a-f]{64}", folder.name)}

    def remove(self, sha256: str) -> None:
        """Delete the snapshot with this hash if it exists.

        Raises:
            StoreError: it cannot be deleted.
        """
        removing = self.folder / f"{REMOVING}{uuid4().hex}"
        try:
            # Renamed first, so that the snapshot under its own name is always complete.
            self.path(sha256).rename(removing)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error
        _delete(removing)

    def warm(self, sha256: str) -> int:
        """Read the snapshot into the page cache, where the engine finds it. Return the number of bytes read.

        Raises:
            UnreadableError: there is no such snapshot.
        """
        return read_ahead(self.path(sha256))

    def used_bytes(self) -> int:
        """Return the size of the store in bytes: unfinished copies are included, and reflinks count in full.

        This lists all folders of the store: do not call it on the event loop.
        """
        try:
            return sum(sum(_sizes(folder).values()) for folder in self.folder.iterdir())
        except OSError as error:
            raise self._unusable(error) from error

    def free_bytes(self) -> int:
        """Return the disk space for more snapshots, whatever `max_bytes` is."""
        return max(free_bytes(self.folder) - RESERVED_BYTES, 0)

    def remove_unfinished(self) -> int:
        """Delete the folders that killed processes, or processes without file descriptors, left unfinished.

        Returns:
            The number of deleted folders.

        It has no effect while a process is creating a snapshot.
        """
        try:
            with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as is_locked:
                if not is_locked:
                    return 0
                prefixes = (CREATING, REMOVING)
                unfinished = [folder for folder in self.folder.iterdir() if folder.name.startswith(prefixes)]
                for folder in unfinished:
                    _delete(folder)
                return len(unfinished)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _lock(self, operation: int) -> Iterator[bool]:
        # The kernel releases the lock when a process is killed. On a file system without locks, snapshots are created
        # without one, and unfinished folders are never deleted.
        with (self.folder / LOCK).open("ab") as file:
            try:
                fcntl.flock(file, operation)
                is_locked = True
            except OSError:
                is_locked = False
            yield is_locked

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        folder = self.folder / f"{CREATING}{uuid4().hex}"
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            _delete(folder)

    def _keep(self, copy: Path, sha256: str) -> None:
        target = self.path(sha256)
        if target.exists() and _sizes(target) != _sizes(copy):
            # A power cut or a cleaner of temporary files has left an incomplete snapshot.
            self.remove(sha256)
        try:
            copy.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _check_space(self, source: Path, size_bytes: int) -> None:
        if self.max_bytes is None:
            return
        used_bytes = self.used_bytes()
        if used_bytes + size_bytes > self.max_bytes:
            raise NoSpaceError(
                f"{self.folder} holds {decimal(used_bytes)} of at most {decimal(self.max_bytes)}; raise "
                "router.adapters.max_disk_gb, or remove adapters",
                source,
                size_bytes,
            )

    def _unusable(self, error: OSError) -> StoreError:
        if shortage_of(error):
            return StoreError(f"copies of adapters cannot be stored: {describe(error, self.folder)}")
        return StoreError(
            f"{self.folder} cannot store snapshots ({error}); set router.adapters.run_dir to a folder that this user "
            "may write to"
        )


def read_ahead(folder: Path) -> int:
    """Read the adapter in `folder` into the page cache. Return the number of bytes read.

    Raises:
        UnreadableError: a file is missing or cannot be read.
    """
    read_bytes = 0
    with _opened(folder) as (files, _):
        for file in files:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            read_bytes += sum(len(chunk) for chunk in _chunks(file))
    return read_bytes


def folder_bytes(folder: Path) -> int:
    """Return the size of the adapter in `folder`, which is also the size of a snapshot of it.

    Raises:
        OSError: a file is missing or the file system does not answer.
    """
    return sum((folder / name).stat().st_size for name in FILES)


def default_limit(snapshots: SnapshotStore, declared: Collection[Path]) -> int:
    """Return the size of the store without `max_disk_gb`: copies of all declared adapters, and half of the rest.

    Args:
        declared: the folders of the declared adapters.
    """
    total = copied = 0
    for folder in {folder.resolve() for folder in declared}:
        with suppress(OSError):  # the import reports the error
            size_bytes = folder_bytes(folder)
            total += size_bytes
            copied += 0 if can_reflink(folder, snapshots.folder) else size_bytes
    # Another process of this server may have created snapshots already.
    free = snapshots.free_bytes() + snapshots.used_bytes()
    return total + max(free - copied, 0) // 2


def can_reflink(source: Path, folder: Path) -> bool:
    """Return whether snapshots in `folder` share the disk space of the adapter in `source`."""
    with suppress(OSError), open_regular(source / FILES[0]) as original, tempfile.TemporaryFile(dir=folder) as copy:
        fcntl.ioctl(copy, FICLONE, original.fileno())
        return True
    return False


@contextmanager
def _opened(folder: Path, boundary: Path | None = None) -> Iterator[tuple[list[BinaryIO], Signature]]:
    with ExitStack() as stack:
        files = [stack.enter_context(_open(folder / name, boundary)) for name in FILES]
        yield files, Signature.of(*(os.fstat(file.fileno()) for file in files))


def _open(file: Path, boundary: Path | None) -> BinaryIO:
    try:
        opened = open_regular(file, boundary)
    except FileNotFoundError as error:
        raise UnreadableError(f"{file} is missing; copy all files that PEFT's save_pretrained wrote") from error
    except OutsideBoundaryError as error:
        raise UnreadableError(str(error)) from error
    except OSError as error:
        raise UnreadableError(
            f"{file} cannot be read ({error.strerror}); replace it by a file that this user may read"
        ) from error
    if file.name == CONFIG and (size_bytes := os.fstat(opened.fileno()).st_size) > MAX_CONFIG_BYTES:
        opened.close()
        raise UnreadableError(
            f"{file} has {size_bytes:,} bytes, more than {MAX_CONFIG_BYTES:,}; save the adapter again"
        )
    return opened


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    # Up to the current end of the file: a file that is appended to might never end.
    remaining_bytes = os.fstat(file.fileno()).st_size
    try:
        while remaining_bytes > 0 and (chunk := file.read(min(remaining_bytes, CHUNK_BYTES))):
            remaining_bytes -= len(chunk)
            yield chunk
    except OSError as error:
        # A network file system reports ESTALE for a file that was replaced.
        error_type = SourceChangingError if error.errno == errno.ESTALE else UnreadableError
        raise error_type(f"{file.name} cannot be read ({error.strerror}); copy it there again") from error


def _is_unchanged(source: Path, boundary: Path | None, before: Signature) -> bool:
    # Opens the files again: network file systems guarantee current properties only when a file is opened.
    try:
        with _opened(source, boundary) as (_, now):
            return now == before
    except UnreadableError as error:
        if shortage_of(error):
            raise
        return False


def _wait_for_clock_tick(signature: Signature) -> None:
    age_s = time.time() - signature.changed_at
    if 0 <= age_s < TICK_S:
        time.sleep(TICK_S - age_s)


def _copy(source: BinaryIO, target: Path) -> Literal["reflink", "copy"]:
    with target.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o444)
        # Not all file systems support reflinks, and none to another file system.
        with suppress(OSError):
            fcntl.ioctl(copy, FICLONE, source.fileno())
            return "reflink"
        disk = os.fstatvfs(copy.fileno())
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < os.fstat(source.fileno()).st_size + RESERVED_BYTES:
            # Fail before the copy fills the disk, which would affect other programs and the rest of this one.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for chunk in _chunks(source):
            copy.write(chunk)
    return "copy"


def _seal(copy: Path) -> str:
    # Makes the copy read-only and returns its hash, which includes names and lengths, so that different pairs of files
    # never hash the same stream.
    digest = hashlib.sha256()
    for name in FILES:
        with (copy / name).open("rb") as file:
            digest.update(f"{name}\0{os.fstat(file.fileno()).st_size}\0".encode())
            for chunk in _chunks(file):
                digest.update(chunk)
    copy.chmod(0o555)
    return digest.hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    # Of the files that exist: another process may be deleting the folder.
    sizes = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            sizes[entry.name] = entry.stat().st_size
    return sizes


def _delete(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
