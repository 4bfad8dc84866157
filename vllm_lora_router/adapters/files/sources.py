"""Adapter sources: folders in which adapters are found by name, and which change while the server runs."""

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vllm_lora_router.adapters.files.lora_tensors import WEIGHTS
from vllm_lora_router.adapters.files.peft_config import CONFIG
from vllm_lora_router.config.names import UNPRINTABLE

FILES = (CONFIG, WEIGHTS)  # the files of an adapter

NAME = "{name}"
TENANT = "{tenant}"

LONGEST_NAME_BYTES = 255  # the limit of Linux's file systems

# Errors that mean that a file does not exist. Any other error, such as that of a network file system that does not
# answer, leaves it unknown.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class NotAllowedError(ValueError):
    """The name or the folder is not allowed for an adapter; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Signature:
    """The properties of an adapter's two files. They are equal as long as the files have not changed."""

    files: tuple[tuple[int, ...], ...]  # of each file: device, inode, size in bytes, mtime and ctime in ns

    @classmethod
    def of(cls, *files: os.stat_result) -> "Signature":
        """Return the signature of files with these properties, in the order of FILES."""
        return cls(
            tuple((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files)
        )

    @property
    def changed_at(self) -> float:
        """The time of the last change, in seconds since the epoch by the file system's clock."""
        # Every change sets the ctime. The mtime is not reliable: copying tools set it to the original's time, which may
        # be in the future if it comes from a machine with another clock.
        return max(ctime_ns for *_, ctime_ns in self.files) / 1e9


def signature(folder: Path) -> Signature | None:
    """Return the signature of the adapter in `folder`, following links; None if one of its files is missing.

    Raises:
        OSError: the file system does not answer.
    """
    existing = [properties for name in FILES if (properties := _stat(folder / name))]
    return Signature.of(*existing) if len(existing) == len(FILES) else None


def has_files(folder: Path) -> bool:
    """Return whether at least one of an adapter's files exists in `folder`, following links.

    Raises:
        OSError: the file system does not answer.
    """
    return any(_stat(folder / name) is not None for name in FILES)


@dataclass(frozen=True)
class Source:
    """A folder or template that gives the folder of each adapter, or of each tenant's adapters."""

    root: Path  # the path before the first placeholder: all adapters of this source are inside it
    parts: tuple[str, ...]  # the path after it, with `{name}` and perhaps `{tenant}`
    immutable: bool = False  # its folders never change once they exist

    @classmethod
    def parse(cls, text: str, immutable: bool = False, base: Path | None = None) -> "Source":
        """Parse a folder, or a template such as `/adapters/{tenant}/{name}/current`.

        Args:
            base: the folder that a relative `text` starts from; None refuses relative texts.

        Raises:
            ValueError: `text` is not a valid source.
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
                raise ValueError(f"source {text!r} is relative; use an absolute path")
            root = base / root
        return cls(root, parts[first:], immutable)

    def __str__(self) -> str:
        return str(self.root.joinpath(*self.parts))

    @property
    def by_tenant(self) -> bool:
        """Whether each tenant has its own adapters in this source."""
        return TENANT in self.parts

    def find(self, name: str, tenant: str | None = None) -> Path | None:
        """Return the folder for `name`, and for `tenant` if each tenant has its own; None if it does not exist.

        The path is not resolved, because links in it may change. The folder may be empty.

        Raises:
            NotAllowedError: the name or the tenant is not a plain file name, or the path links to a place outside of
                the root, or a file is a device or a FIFO.
            OSError: the file system does not answer.
        """
        check_folder_name(name)
        if self.by_tenant:
            if tenant is None:
                return None
            if problem := folder_name_problem(tenant):
                raise NotAllowedError(f"tenant {tenant[:LONGEST_NAME_BYTES]!r} {problem}")
        below = self._below(self.parts, name, tenant)
        folder = self.root / below
        # Resolve the root once: a link to it, such as git-sync's, may be replaced meanwhile.
        root = Path(os.path.realpath(self.root))
        boundaries = [root, *([self._boundary(root, name, tenant)] if self.by_tenant else [])]
        for path in (below, *(below / file for file in FILES)):
            real = Path(os.path.realpath(root / path))
            if not all(map(real.is_relative_to, boundaries)):
                raise NotAllowedError(
                    f"{self.root / path} links to {real}, outside of {boundaries[-1]}; copy the adapter into the source"
                )
        properties = _stat(root / below)
        if properties is None or not stat.S_ISDIR(properties.st_mode):
            return None
        for file in FILES:
            if (properties := _stat(root / below / file)) and not stat.S_ISREG(properties.st_mode):
                raise NotAllowedError(f"{folder / file} is not a regular file; replace it by the adapter's file")
        return folder

    def boundary(self, name: str, tenant: str | None) -> Path:
        """Return the folder that the real files of an adapter must be in, after following links."""
        return self._boundary(Path(os.path.realpath(self.root)), name, tenant) if self.by_tenant else self.root

    def _boundary(self, root: Path, name: str, tenant: str | None) -> Path:
        # A tenant that can write its own folder could link to another tenant's folder.
        return Path(os.path.realpath(root / self._below(self.parts[: self.parts.index(TENANT) + 1], name, tenant)))

    def names(self, tenant: str | None = None) -> list[str]:
        """Return the sorted names of the adapters that exist now, for `tenant` if each tenant has its own.

        Adapters that are not allowed, hidden or unreadable are left out.
        """
        if self.by_tenant and (tenant is None or folder_name_problem(tenant)):
            return []
        above = self.root / self._below(self.parts[: self.parts.index(NAME)], "", tenant)
        try:
            return sorted(entry.name for entry in above.iterdir() if self.contains(entry.name, tenant))
        except OSError:
            return []

    def tenants(self, name: str) -> Iterator[str]:
        """Yield the tenants that have an adapter of this name, in any order; none if tenants have no own adapters.

        Adapters that are not allowed, hidden or unreadable are left out.
        """
        if not self.by_tenant or folder_name_problem(name):
            return
        index = self.parts.index(TENANT)
        above = self.root / self._below(self.parts[:index], name, None)
        file = str(self._below(self.parts[index + 1 :], name, None) / CONFIG)
        try:
            opened = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        try:
            with os.scandir(opened) as entries:
                for tenant in (entry.name for entry in entries):
                    # There may be thousands of folders; this cheap check, relative to the open folder, excludes most.
                    if os.access(f"{tenant}/{file}", os.F_OK, dir_fd=opened) and self.contains(name, tenant):
                        yield tenant
        except OSError:
            return
        finally:
            os.close(opened)

    def contains(self, name: str, tenant: str | None) -> bool:
        """Return whether an adapter of this name exists, for `tenant` if each tenant has its own.

        Adapters that are not allowed, hidden or unreadable do not count.
        """
        try:
            folder = self.find(name, tenant)
            return folder is not None and (folder / CONFIG).exists()
        except (NotAllowedError, OSError):
            return False

    def _below(self, parts: tuple[str, ...], name: str, tenant: str | None) -> Path:
        values = {NAME: name, TENANT: tenant or ""}
        return Path(*(values.get(part, part) for part in parts))


def _template_problem(text: str, parts: tuple[str, ...]) -> str | None:
    if not text.strip():
        return "is empty; enter a folder"
    if "\0" in text:
        return "contains a NUL character; remove it"
    for part in parts:
        if part not in (NAME, TENANT) and ("{" in part or "}" in part):
            return f"has {part!r}; each part of the path must be {NAME}, {TENANT} or a name without braces"
    if parts.count(NAME) != 1:
        if NAME not in parts:
            return f"has no {NAME}; add it, such as {text.rstrip('/')}/{NAME}"
        return f"has {NAME} twice; use it once"
    if parts.count(TENANT) > 1:
        return f"has {TENANT} twice; use it once"
    first = min(parts.index(placeholder) for placeholder in (NAME, TENANT) if placeholder in parts)
    if parts[:first] in (("/",), ("//",)):
        return "does not start with a folder, so it would cover the whole disk; add a folder, such as /adapters/{name}"
    if ".." in parts[first:]:
        return "has '..' after a placeholder; use a path without it"
    return None


def folder_name_problem(name: str) -> str | None:
    """Return why an adapter or tenant of this name cannot have a folder in a source, and the remedy; None if it can."""
    if not name:
        return "is empty; enter a name"
    if name.startswith("."):
        return "begins with '.', which marks hidden files; use another name"
    if "/" in name or "\\" in name:
        return "contains a slash or a backslash; use another name"
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        return "contains a control character; remove it"
    if len(name.encode()) > LONGEST_NAME_BYTES:
        return f"has more than {LONGEST_NAME_BYTES} bytes; use a shorter name"
    return None


def check_folder_name(name: str) -> None:
    """Refuse the name of an adapter that cannot have a folder in a source. Reads no file.

    Raises:
        NotAllowedError: with the reason and the remedy.
    """
    if problem := folder_name_problem(name):
        raise NotAllowedError(f"adapter name {name[:LONGEST_NAME_BYTES]!r} {problem}")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
