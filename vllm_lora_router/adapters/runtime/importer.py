"""Validate adapter files and copy them into the immutable snapshot store."""

import hashlib
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.memory import adapter_bytes
from vllm_lora_router.adapters.files.snapshots import SnapshotError, SnapshotStore, SourceChangingError, StoreError
from vllm_lora_router.adapters.files.sources import FILES, Signature, signature
from vllm_lora_router.adapters.files.validation import Adapter, AdapterError, validate_adapter
from vllm_lora_router.adapters.runtime.resolver import Location
from vllm_lora_router.adapters.runtime.version_log import AdapterContent, AdapterKey
from vllm_lora_router.config.adapter_names import invalid_name_reason
from vllm_lora_router.coordination.shortage import shortage_of

logger = logging.getLogger("vllm_lora_router.adapters")

# Files that changed less than this many seconds ago may still be being written.
QUIET_S = 0.5


class RejectedError(ValueError):
    """The adapter's files cannot be served; the message names the problem and the remedy."""

    location: Location | None = None
    source_signature: str | None = None  # of the rejected files


class MissingFilesError(RejectedError):
    """A file of the adapter is missing."""


@dataclass
class Importer:
    """Validates adapter files against the base model and copies them. Blocks: never call it on the event loop."""

    base: BaseModel
    snapshots: SnapshotStore
    max_rank: int
    served_names: Collection[str]
    reserved: Collection[str]
    _validated: dict[str, Adapter] = field(default_factory=dict)  # by SHA-256 of the content
    _warnings: dict[AdapterKey, tuple[str, ...]] = field(default_factory=dict)  # of each adapter's last content

    def signature(self, location: Location) -> str:
        """Return the signature of the files, which changes whenever their content may have changed.

        Raises:
            MissingFilesError: a file is missing.
            OSError: the file system does not answer, so nothing is known about the files.
        """
        return encode_signature(_signature(location))

    def import_adapter(self, key: AdapterKey, location: Location) -> AdapterContent:
        """Validate the adapter's files, copy them unless they are read in place, and describe their content.

        Raises:
            SourceChangingError: the files changed a moment ago, or while they were read.
            StoreError: the snapshot store is full or cannot be written.
            RejectedError: the files are not an adapter for this base model, or cannot be copied.
            OSError: the file system does not answer, or this process has no file descriptors or memory left, so nothing
                is known about the files.
        """
        if reason := invalid_name_reason(str(key), self.served_names, self.reserved):
            raise RejectedError(reason)
        before, snapshot = _signature(location), None
        if location.is_watched and 0 <= time.time() - before.changed_at < QUIET_S:
            raise SourceChangingError(f"{location.folder} changed a moment ago; try again when its writer is done")
        try:
            # Validate in place first, which reads only the headers: an adapter that cannot be served is not copied.
            adapter = self._validate(key, location.folder, location.boundary)
            if not location.is_copied:
                digest = hashlib.sha256(f"{location.folder} {encode_signature(before)}".encode()).hexdigest()
                self._log_warnings(key, location, adapter)
                return _content(adapter, digest, location, location.folder, before)
            snapshot = self.snapshots.create(location.folder, location.boundary)
            adapter = self._validated.get(snapshot.sha256) or self._validate(key, snapshot.folder)
        except (SourceChangingError, StoreError):
            raise
        except (AdapterError, SnapshotError) as error:
            if shortage := shortage_of(error):
                raise shortage from None
            if snapshot is not None and not self.snapshots.exists(snapshot.sha256):
                raise SourceChangingError(f"the copy of {location.folder} was removed before it was used") from None
            if signature(location.folder) != before:
                raise SourceChangingError(f"{location.folder} changed while it was read") from None
            problems = "; ".join(error.problems) if isinstance(error, AdapterError) else None
            raise RejectedError(f"{location.folder}: {problems}" if problems else str(error)) from error
        self._validated[snapshot.sha256] = adapter
        self._log_warnings(key, location, adapter)
        return _content(adapter, snapshot.sha256, location, snapshot.folder, snapshot.signature)

    def _log_warnings(self, key: AdapterKey, location: Location, adapter: Adapter) -> None:
        # The server checks declared adapters before it starts, and logs the warnings about their first content.
        known = self._warnings.get(key, adapter.warnings if location.is_declared else ())
        for warning in adapter.warnings:
            if warning not in known:
                logger.warning("adapter %s: %s", key, warning)
        self._warnings[key] = adapter.warnings

    def _validate(self, key: AdapterKey, folder: Path, boundary: Path | None = None) -> Adapter:
        adapter = validate_adapter(str(key), folder, self.base, boundary)
        if adapter.rank > self.max_rank:
            raise AdapterError(
                str(key),
                folder,
                [
                    f"rank {adapter.rank} is above the server's --max-lora-rank {self.max_rank}; restart it with a "
                    "higher one, or train a smaller rank"
                ],
            )
        return adapter


def encode_signature(files: Signature) -> str:
    """Return the text form of a signature that the version log stores."""
    return ";".join(",".join(map(str, file)) for file in files.files)


def files_bytes(encoded: str) -> int:
    """Return the size of the files with this signature."""
    return sum(int(file.split(",")[2]) for file in encoded.split(";"))


def _signature(location: Location) -> Signature:
    files = signature(location.folder)
    if files is None:
        raise MissingFilesError(f"{' or '.join(FILES)} is missing from {location.folder}")
    return files


def _content(adapter: Adapter, digest: str, location: Location, folder: Path, source: Signature) -> AdapterContent:
    return AdapterContent(
        digest=digest,
        folder=str(folder),
        source_signature=encode_signature(source),
        rank=adapter.rank,
        size_bytes=adapter.size_bytes,
        cpu_bytes=adapter_bytes(adapter),
        is_3d=location.is_3d,
        is_snapshot=location.is_copied,
    )
