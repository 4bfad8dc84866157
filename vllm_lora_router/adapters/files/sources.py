"""Where adapters are looked for by name: folders that others write to while the server runs."""

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vllm_lora_router.adapters.files.lora_tensors import WEIGHTS
from vllm_lora_router.adapters.files.peft_config import CONFIG
from vllm_lora_router.adapters.files.vllm_limits import UNPRINTABLE

FILES = (CONFIG, WEIGHTS)  # all that makes an adapter

NAME = "{name}"
TENANT = "{tenant}"

LONGEST_NAME_BYTES = 255  # of Linux's file systems

# What says that nothing is there. Any other error, such as a network file system's that is away, says nothing.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class NotAllowed(ValueError):
    """A name or a folder that no adapter may be taken by. The message says why, and what to do."""


@dataclass(frozen=True)
class Signature:
    """Of an adapter's two files: equal while nobody has changed them."""

    files: tuple[tuple[int, ...], ...]  # of each: device, inode, size in bytes, mtime and ctime in ns

    @classmethod
    def of(cls, *files: os.stat_result) -> "Signature":
        """The signature of files with these properties, in the order of FILES."""
        return cls(tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in files))

    @property
    def changed_at(self) -> float:
        """When a file was last changed, in seconds since the epoch by the file system's clock."""
        # Every change sets the ctime. The mtime adds none, and may be anything, since copying tools set it back or,
        # from a machine whose clock is ahead, into the future.
        return max(ctime_ns for *_, ctime_ns in self.files) / 1e9


def signature(folder: Path) -> Signature | None:
    """The signature of the adapter in `folder`, links followed; None if one of its files is missing.

    Raises OSError where that cannot be said.
    """
    found = [properties for name in FILES if (properties := _stat(folder / name))]
    return Signature.of(*found) if len(found) == len(FILES) else None


@dataclass(frozen=True)
class Source:
    """A place with a folder for every adapter, or for every tenant's adapter."""

    root: Path  # the fixed part: nothing outside it is an adapter of this source
    parts: tuple[str, ...]  # what follows, `{name}` and `{tenant}` among it
    immutable: bool = False  # whether its folders stay as they are once they are there

    @classmethod
    def parse(cls, text: str, immutable: bool = False, base: Path | None = None) -> "Source":
        """The source that `text` means: a folder, or a template such as `/adapters/{tenant}/{name}/current`.

        A relative one begins at `base`. Raises ValueError for a text that means no source.
        """
        parts = PurePosixPath(text).parts
        if not any("{" in part or "}" in part for part in parts):
            parts = (*parts, NAME)
        if problem := _template_problem(text, parts):
            raise ValueError(f"source {text!r} {problem}")
        first = min(parts.index(placeholder) for placeholder in (NAME, TENANT) if placeholder in parts)
        root = Path(*parts[:first])
        if not root.is_absolute():
            if base is None:
                raise ValueError(f"source {text!r} is relative; write the whole path, from '/' on")
            root = base / root
        return cls(root, parts[first:], immutable)

    def __str__(self) -> str:
        return str(self.root.joinpath(*self.parts))

    @property
    def by_tenant(self) -> bool:
        """Whether every tenant has adapters of its own here."""
        return TENANT in self.parts

    def find(self, name: str, tenant: str | None = None) -> Path | None:
        """The folder for `name`, and for `tenant` where every tenant has its own; None if there is none.

        The path is not resolved, since where it leads may change; whether an adapter is in it is not looked at.
        Raises NotAllowed for a name or a tenant that is no plain file name, for what leads out of the root, and for a
        device or a FIFO in place of a file; OSError where nothing can be said, as when a file system is away.
        """
        if problem := _name_problem(name):
            raise NotAllowed(f"adapter name {name[:LONGEST_NAME_BYTES]!r} {problem}")
        if self.by_tenant:
            if tenant is None:
                return None
            if problem := _name_problem(tenant):
                raise NotAllowed(f"tenant {tenant[:LONGEST_NAME_BYTES]!r} {problem}")
        below = self._below(self.parts, name, tenant)
        folder = self.root / below
        # All by the same real root: a link that leads to it, such as git-sync's, may be turned meanwhile.
        root = Path(os.path.realpath(self.root))
        inside = [root, *([self._limit(root, name, tenant)] if self.by_tenant else [])]
        for path in (below, *(below / file for file in FILES)):
            real = Path(os.path.realpath(root / path))
            if not all(map(real.is_relative_to, inside)):
                raise NotAllowed(
                    f"{self.root / path} leads to {real}, out of {inside[-1]}; copy the adapter into the source"
                )
        found = _stat(root / below)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return None
        for file in FILES:
            if (found := _stat(root / below / file)) and not stat.S_ISREG(found.st_mode):
                raise NotAllowed(f"{folder / file} is not a regular file; put the adapter's own there")
        return folder

    def limit(self, name: str, tenant: str | None) -> Path:
        """The folder that the files of an adapter must really be in, wherever links lead."""
        return self._limit(Path(os.path.realpath(self.root)), name, tenant) if self.by_tenant else self.root

    def _limit(self, root: Path, name: str, tenant: str | None) -> Path:
        # A tenant that writes its own folder could link to its neighbour's.
        return Path(os.path.realpath(root / self._below(self.parts[: self.parts.index(TENANT) + 1], name, tenant)))

    def names(self, tenant: str | None = None) -> list[str]:
        """The adapters that can be found now, for `tenant` where every tenant has its own; sorted.

        What is refused, hidden or cannot be read is left out.
        """
        if self.by_tenant and (tenant is None or _name_problem(tenant)):
            return []
        above = self.root / self._below(self.parts[: self.parts.index(NAME)], "", tenant)
        try:
            return sorted(entry.name for entry in above.iterdir() if self.has(entry.name, tenant))
        except OSError:
            return []

    def tenants(self, name: str) -> Iterator[str]:
        """The tenants that have an adapter of this name here, in no order; none where no tenant has its own.

        What is refused, hidden or cannot be read is left out.
        """
        if not self.by_tenant or _name_problem(name):
            return
        place = self.parts.index(TENANT)
        above = self.root / self._below(self.parts[:place], name, None)
        file = str(self._below(self.parts[place + 1 :], name, None) / CONFIG)
        try:
            opened = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        try:
            with os.scandir(opened) as entries:
                for tenant in (entry.name for entry in entries):
                    # Of most of thousands one cheap question, from the open folder on.
                    if os.access(f"{tenant}/{file}", os.F_OK, dir_fd=opened) and self.has(name, tenant):
                        yield tenant
        except OSError:
            return
        finally:
            os.close(opened)

    def has(self, name: str, tenant: str | None) -> bool:
        """Whether there is an adapter of this name, for `tenant` where every tenant has its own.

        What is refused, hidden or cannot be read is none.
        """
        try:
            folder = self.find(name, tenant)
            return folder is not None and (folder / CONFIG).exists()
        except (NotAllowed, OSError):
            return False

    def _below(self, parts: tuple[str, ...], name: str, tenant: str | None) -> Path:
        filled = {NAME: name, TENANT: tenant or ""}
        return Path(*(filled.get(part, part) for part in parts))


def _template_problem(text: str, parts: tuple[str, ...]) -> str | None:
    if not text.strip():
        return "is empty; write a folder"
    if "\0" in text:
        return "contains a NUL character; take it out"
    for part in parts:
        if part not in (NAME, TENANT) and ("{" in part or "}" in part):
            return f"has {part!r}; between two slashes stands {NAME}, {TENANT} or a name without braces"
    if parts.count(NAME) != 1:
        return f"must say {NAME} once, such as {text.rstrip('/')}/{NAME}" if NAME not in parts else f"says {NAME} twice"
    if parts.count(TENANT) > 1:
        return f"says {TENANT} twice; once is enough"
    first = min(parts.index(placeholder) for placeholder in (NAME, TENANT) if placeholder in parts)
    if parts[:first] in (("/",), ("//",)):
        return "begins with no folder, so that it means the whole disk; write one, such as /adapters/{name}"
    if ".." in parts[first:]:
        return "has '..' after a placeholder; write the path without it"
    return None


def _name_problem(name: str) -> str | None:
    if not name:
        return "is empty; give one"
    if name.startswith("."):
        return "begins with '.', which is for hidden files; call it otherwise"
    if "/" in name or "\\" in name:
        return "contains a slash or a backslash; call it otherwise"
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        return "contains a control character; take it out"
    if len(name.encode()) > LONGEST_NAME_BYTES:
        return f"has more than {LONGEST_NAME_BYTES} bytes; call it shorter"
    return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
