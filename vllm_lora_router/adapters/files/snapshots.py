"""Private copies of adapters: the engine reads these alone, since their sources may change under it at any time."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import uuid4

from vllm_lora_router.adapters.files.safetensors_header import open_regular
from vllm_lora_router.adapters.files.sources import FILES, Signature

# Beside the finished copies: what a killed process leaves behind, and what tells that a living one is at work.
TAKING = ".taking-"
REMOVING = ".removing-"
LOCK = ".lock"

CHUNK_BYTES = 1 << 20
FICLONE = 0x40049409  # of <linux/fs.h>: the copy shares the source's blocks until either is written to

# File times come from a clock that ticks every 1 to 10 ms: of two changes within a tick, only the first shows.
TICK_S = 0.02

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class SnapshotError(ValueError):
    """A copy that cannot be made or used. The message says which, why, and what to do."""


class Unreadable(SnapshotError):
    """A file of the adapter is missing, cannot be read, or is no file."""


class Changing(SnapshotError):
    """The adapter was written to while it was copied: to be tried again when it has been quiet."""


class NoRoom(SnapshotError):
    """The copy would be more than the store may hold, or than its file system has left."""


@dataclass(frozen=True)
class Snapshot:
    """A private copy of an adapter."""

    sha256: str  # in hex, of both files: equal for equal adapters
    folder: Path
    size_bytes: int
    signature: Signature  # of the source, whose content this is
    made_by: Literal["reflink", "copy"]  # a reflink takes neither time nor, until its source changes, room


class Snapshots:
    """A folder of private copies, each in a read-only folder called by its content. Processes may share it."""

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        """Makes the folder if it is not there. Raises SnapshotError if it cannot be made."""
        self.folder = folder
        self.max_bytes = max_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def take(self, source: Path, within: Path | None = None) -> Snapshot:
        """Copies the adapter in the folder `source`. If an equal copy is there already, that is the one that stays.

        `within` is the folder that its files must really be in, wherever links lead: one that was sound when the
        source was found may have been turned since. Raises Unreadable, Changing, NoRoom, or SnapshotError itself when
        the store cannot be written to; nothing is left behind then.
        """
        with _opened(source, within) as (files, signature):
            size_bytes = sum(os.fstat(file.fileno()).st_size for file in files)
            try:
                self._check_room(source, size_bytes)
                _let_the_clock_tick(signature)
                with self._lock(fcntl.LOCK_SH), self._unfinished() as copy:
                    ways = [_copy(file, copy / name) for file, name in zip(files, FILES, strict=True)]
                    if sum(_sizes(copy).values()) != size_bytes or not _is_unchanged(source, within, signature):
                        raise Changing(
                            f"{source} was written to while it was copied; try again when its writer is done"
                        )
                    sha256 = _seal(copy)
                    self._keep(copy, sha256)
            except OSError as error:
                if error.errno in FULL:
                    raise NoRoom(
                        f"{source} needs {_mb(size_bytes)}, and the file system of {self.folder} is full; free some, "
                        "or keep the snapshots elsewhere"
                    ) from error
                raise self._unusable(error) from error
        return Snapshot(sha256, self.path(sha256), size_bytes, signature, "copy" if "copy" in ways else "reflink")

    def path(self, sha256: str) -> Path:
        """The folder of the copy with this content, whether or not it is there."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is not a SHA-256 in hex")
        return self.folder / sha256

    def exists(self, sha256: str) -> bool:
        """Whether a copy with this content is there, with both its files."""
        return all((self.path(sha256) / name).is_file() for name in FILES)

    def contents(self) -> set[str]:
        """The contents of which there is a copy, or what a power cut left of one."""
        return {folder.name for folder in self.folder.iterdir() if re.fullmatch("[0-9a-f]{64}", folder.name)}

    def remove(self, sha256: str) -> None:
        """Deletes the copy with this content, if there is one. Raises SnapshotError if that cannot be done."""
        leaving = self.folder / f"{REMOVING}{uuid4().hex}"
        try:
            # Renamed first, so that under its name it is either whole or gone.
            self.path(sha256).rename(leaving)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error
        _delete(leaving)

    def warm(self, sha256: str) -> int:
        """Reads the copy once, so that the engine finds it in memory. Returns how many bytes that was.

        Raises Unreadable if there is no such copy.
        """
        read_bytes = 0
        with _opened(self.path(sha256)) as (files, _):
            for file in files:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
                read_bytes += sum(len(chunk) for chunk in _chunks(file))
        return read_bytes

    def used_bytes(self) -> int:
        """How much the store holds now: unfinished copies counted, reflinks as if they were none."""
        try:
            return sum(sum(_sizes(folder).values()) for folder in self.folder.iterdir())
        except OSError as error:
            raise self._unusable(error) from error

    def clean(self) -> int:
        """Deletes what killed processes left unfinished, and returns how many folders that was. For the start.

        Does nothing while any process is taking a copy.
        """
        try:
            with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
                left = [folder for folder in self.folder.iterdir() if folder.name.startswith((TAKING, REMOVING))]
                for folder in left if held else ():
                    _delete(folder)
                return len(left) if held else 0
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _lock(self, how: int) -> Iterator[bool]:
        # By the kernel, which takes it back when a process is killed. Where a file system has no locks, copies are
        # taken all the same, and nothing is ever cleaned.
        with (self.folder / LOCK).open("ab") as file:
            try:
                fcntl.flock(file, how)
                held = True
            except OSError:
                held = False
            yield held

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        folder = self.folder / f"{TAKING}{uuid4().hex}"
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            _delete(folder)

    def _keep(self, copy: Path, sha256: str) -> None:
        kept = self.path(sha256)
        if kept.exists() and _sizes(kept) != _sizes(copy):
            # A power cut, or a cleaner of old temporary files, has left a part of it.
            self.remove(sha256)
        try:
            copy.rename(kept)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _check_room(self, source: Path, size_bytes: int) -> None:
        if self.max_bytes is None:
            return
        used_bytes = self.used_bytes()
        if used_bytes + size_bytes > self.max_bytes:
            raise NoRoom(
                f"{source} needs {_mb(size_bytes)}, and {self.folder} holds {_mb(used_bytes)} of at most "
                f"{_mb(self.max_bytes)}; allow it more, or unload adapters"
            )

    def _unusable(self, error: OSError) -> SnapshotError:
        return SnapshotError(
            f"{self.folder} cannot keep snapshots ({error}); name a folder that this user may write to"
        )


@contextmanager
def _opened(folder: Path, within: Path | None = None) -> Iterator[tuple[list[BinaryIO], Signature]]:
    with ExitStack() as stack:
        files = [stack.enter_context(_open(folder / name, within)) for name in FILES]
        yield files, Signature.of(*(os.fstat(file.fileno()) for file in files))


def _open(file: Path, within: Path | None) -> BinaryIO:
    try:
        opened = open_regular(file)
    except FileNotFoundError as error:
        raise Unreadable(f"{file} is missing; copy all files that PEFT's save_pretrained wrote") from error
    except OSError as error:
        raise Unreadable(
            f"{file} cannot be read ({error.strerror}); put a file there that this user may read"
        ) from error
    if within is not None:
        real = Path(f"/proc/self/fd/{opened.fileno()}").readlink()
        if not real.is_relative_to(os.path.realpath(within)):
            opened.close()
            raise Unreadable(f"{file} leads to {real}, out of {within}; copy the adapter into the source")
    return opened


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    # Up to its present end: one that is appended to would never end.
    left_bytes = os.fstat(file.fileno()).st_size
    try:
        while left_bytes > 0 and (chunk := file.read(min(left_bytes, CHUNK_BYTES))):
            left_bytes -= len(chunk)
            yield chunk
    except OSError as error:
        # Stale: a network file system's word for a file that was replaced.
        kind = Changing if error.errno == errno.ESTALE else Unreadable
        raise kind(f"{file.name} cannot be read ({error.strerror}); copy it there again") from error


def _is_unchanged(source: Path, within: Path | None, before: Signature) -> bool:
    # Opened again, not only looked at: network file systems promise the true properties at opening alone.
    try:
        with _opened(source, within) as (_, now):
            return now == before
    except Unreadable:
        return False


def _let_the_clock_tick(signature: Signature) -> None:
    age_s = time.time() - signature.changed_at
    if 0 <= age_s < TICK_S:
        time.sleep(TICK_S - age_s)


def _copy(source: BinaryIO, target: Path) -> Literal["reflink", "copy"]:
    with target.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o444)
        # Not every file system can, and none to another.
        with suppress(OSError):
            fcntl.ioctl(copy, FICLONE, source.fileno())
            return "reflink"
        room = os.fstatvfs(copy.fileno())
        if room.f_blocks and room.f_bavail * room.f_frsize < os.fstat(source.fileno()).st_size:
            # Rather than fill the disk to the brim first, which hurts others.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for chunk in _chunks(source):
            copy.write(chunk)
    return "copy"


def _seal(copy: Path) -> str:
    # The content's hash. Names and lengths are in it, so that no two pairs of files make the same stream.
    digest = hashlib.sha256()
    for name in FILES:
        with (copy / name).open("rb") as file:
            digest.update(f"{name}\0{os.fstat(file.fileno()).st_size}\0".encode())
            for chunk in _chunks(file):
                digest.update(chunk)
    copy.chmod(0o555)
    return digest.hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    # Of what is there: somebody else may be deleting it.
    found = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            found[entry.name] = entry.stat().st_size
    return found


def _delete(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
