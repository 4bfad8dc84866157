"""From files that others may change to content that nobody changes any more."""

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from vllm_lora_router.adapters.files import snapshots
from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.memory import adapter_bytes
from vllm_lora_router.adapters.files.snapshots import Changing, SnapshotError, Snapshots
from vllm_lora_router.adapters.files.sources import FILES, Signature, signature
from vllm_lora_router.adapters.files.validation import Adapter, AdapterError, check
from vllm_lora_router.adapters.files.vllm_limits import refuse_reason
from vllm_lora_router.adapters.runtime.resolver import Place
from vllm_lora_router.adapters.runtime.version_log import Content, Key

# Files that were written to this lately may be in the middle of it.
QUIET_S = 0.5


class Refused(ValueError):
    """An adapter that cannot be served; the message says why and what to do."""

    place: Place | None = None
    source: str | None = None  # what the files look like that were refused


class Gone(Refused):
    """There are no files where the adapter should be."""


class NoRoom(Exception):
    """The store is full: nothing is wrong with the adapter."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class Unsettled(Exception):
    """Somebody writes to the adapter's files just now."""


@dataclass
class Intake:
    """Checks an adapter's files against the base and copies them. Blocks: never called on the event loop."""

    base: BaseModel
    snapshots: Snapshots
    max_rank: int
    served_names: Collection[str]
    reserved: Collection[str]
    _checked: dict[str, Adapter] = field(default_factory=dict)  # by content

    def look(self, place: Place) -> str:
        """What the files look like from outside; it changes whenever they may have changed.

        Raises:
            Gone: one of them is not there.
            OSError: nothing can be said, as when a file system is away.
        """
        return describe(_signature(place))

    def take(self, key: Key, place: Place) -> Content:
        """The content of an adapter, which stays as it is: `content.source` says what it was taken from.

        Raises:
            Unsettled: the files changed a moment ago, or while they were read.
            Refused: they are no adapter of this base, or there is no room for a copy.
            OSError: nothing can be said, as when a file system is away.
        """
        if reason := refuse_reason(str(key), self.served_names, self.reserved):
            raise Refused(reason)
        before = _signature(place)
        if place.watched and 0 <= time.time() - before.changed_at < QUIET_S:
            raise Unsettled
        try:
            # First in place, where only the headers are read: nothing is copied of what cannot be served anyway.
            adapter = self._check(key, place.folder)
            if not place.copied:
                digest = hashlib.sha256(f"{place.folder} {describe(before)}".encode()).hexdigest()
                return _content(adapter, digest, place, place.folder, before)
            taken = self.snapshots.take(place.folder, place.within)
            adapter = self._checked.get(taken.sha256) or self._check(key, taken.folder)
        except Changing:
            raise Unsettled from None
        except snapshots.NoRoom as full:
            raise NoRoom(str(full), sum(file[2] for file in before.files)) from None
        except (AdapterError, SnapshotError) as error:
            if signature(place.folder) != before:
                raise Unsettled from None
            raise Refused(str(error)) from error
        self._checked[taken.sha256] = adapter
        return _content(adapter, taken.sha256, place, taken.folder, taken.signature)

    def _check(self, key: Key, folder: Path) -> Adapter:
        adapter = check(str(key), folder, self.base)
        if adapter.rank > self.max_rank:
            raise AdapterError(
                str(key),
                folder,
                [f"rank {adapter.rank} is above --max-lora-rank {self.max_rank}, with which the server was started"],
            )
        return adapter


def describe(found: Signature) -> str:
    """A signature as the ledger keeps it."""
    return ";".join(",".join(map(str, file)) for file in found.files)


def _signature(place: Place) -> Signature:
    found = signature(place.folder)
    if found is None:
        raise Gone(f"{place.folder} has no {' and '.join(FILES)} (any more)")
    return found


def _content(adapter: Adapter, digest: str, place: Place, folder: Path, source: Signature) -> Content:
    return Content(
        digest=digest,
        folder=str(folder),
        source=describe(source),
        rank=adapter.rank,
        size_bytes=adapter.size_bytes,
        cpu_bytes=adapter_bytes(adapter),
        is_3d=place.is_3d,
        private=place.copied,
    )
