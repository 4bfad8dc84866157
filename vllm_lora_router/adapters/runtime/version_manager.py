"""Manage the adapter versions of one process: import, load, switch to a new version, release the old one."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from cachetools import TTLCache

from vllm_lora_router.adapters.files.snapshots import (
    NoSpaceError,
    SnapshotError,
    SourceChangingError,
    StoreError,
    read_ahead,
)
from vllm_lora_router.adapters.files.sources import NotAllowedError
from vllm_lora_router.adapters.runtime.disk_calls import LONG_TIMEOUT_S, Disk, NotAnsweringError, copy_timeout_s
from vllm_lora_router.adapters.runtime.importer import Importer, MissingFilesError, RejectedError, files_bytes
from vllm_lora_router.adapters.runtime.lease import (
    AdapterUnavailableError,
    LeaseRefusedError,
    MayNotExistError,
    SourceNotAnsweringError,
    UnknownAdapterError,
)
from vllm_lora_router.adapters.runtime.loader import Loader, LoadError
from vllm_lora_router.adapters.runtime.resolver import Location, Resolver
from vllm_lora_router.adapters.runtime.version_log import AdapterContent, AdapterKey, Version, VersionLog
from vllm_lora_router.adapters.runtime.vllm_names import VllmNames
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.shortage import describe, shortage_of
from vllm_lora_router.coordination.usage_table import UsageTable

logger = logging.getLogger("vllm_lora_router.adapters")

T = TypeVar("T")

# Held in shared mode while snapshots get their versions, and exclusively while they are removed.
STORE_LOCK = "store"

RETRY_CHANGING_S = 0.1  # pause before files that are being written are read again
CHANGING_TIMEOUT_S = 10.0
FAILED_LOAD_S = 30.0  # a version that the engine refused is not loaded again for this long


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why an adapter cannot be imported or loaded now, although nothing is wrong with its files."""

    reason: str
    problem: str  # of the server, without names and paths of adapters
    needed_bytes: int = 0  # disk space
    in_load: bool = False  # the engine could not be asked to load the imported adapter


@dataclass(slots=True)
class AdapterState:
    """The state of one adapter in this process."""

    location: Location | None = None
    version: Version | None = None  # new leases get this version
    pending: Version | None = None  # this version is being loaded and then replaces `version`
    rejection: str | None = None  # why the files that are at the location now are not served
    source_signature: str | None = None  # of those files; None if they are missing
    last_used: float = 0.0  # `time.time()` of the last lease
    missing_since: float = 0.0


class VersionManager:
    """One process's part in managing versions.

    The decisions that all processes share are in the version log and in the usage tables.
    """

    def __init__(
        self,
        run: RunDirectory,
        version_log: VersionLog,
        usage: UsageTable,
        resolver: Resolver,
        importer: Importer,
        loader: Loader,
        vllm_names: VllmNames,
    ) -> None:
        self.run, self.version_log, self.usage = run, version_log, usage
        self.resolver, self.importer = resolver, importer
        self.loader, self.vllm_names = loader, vllm_names
        self.states: dict[AdapterKey, AdapterState] = {}
        self.shortages: dict[AdapterKey, Shortage] = {}  # by adapter that cannot be imported or loaded now
        self.requested_bytes = 0  # size of a snapshot for which the store had no space
        self.disks: dict[Path, Disk] = {}  # by the root of a source, or the folder that has a declared adapter
        self._run_disk = Disk(run.folder)
        self._refreshing: dict[AdapterKey, asyncio.Task[Version]] = {}
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._failed: TTLCache[int, str] = TTLCache(maxsize=1024, ttl=FAILED_LOAD_S)
        self._applied = 0  # number of version-log lines applied
        self._behind: dict[AdapterKey, int] = {}  # by name whose superseded version is in use: the superseding line

    async def refresh(self, key: AdapterKey) -> Version:
        """Import an adapter's files as they are now, and return the version. Concurrent calls share one import.

        Raises:
            UnknownAdapterError: the adapter has no files.
            AdapterUnavailableError: a resource of the server has run out. Requests do not try again, because each
                attempt uses the disk; `retry_shortages` does.
            LeaseRefusedError: its files cannot be served.
        """
        if (shortage := self.shortages.get(key)) is not None and not shortage.in_load:
            raise AdapterUnavailableError(shortage.reason)
        return await asyncio.shield(self.start_refresh(key))

    def start_refresh(self, key: AdapterKey) -> asyncio.Task[Version]:
        """Return the task of the import that is in progress, or start one."""
        task = self._refreshing.get(key)
        if task is None:
            task = self._refreshing[key] = asyncio.ensure_future(self._refresh(key))
            task.add_done_callback(lambda done: (self._refreshing.pop(key), done.cancelled() or done.exception()))
        return task

    async def retry_shortages(self) -> None:
        """Import or load the adapters for which a resource had run out, the smallest first, until one fails again."""
        for key, shortage in sorted(self.shortages.items(), key=lambda item: item[1].needed_bytes):
            try:
                version = await self.start_refresh(key)
                if shortage.in_load:
                    await self.load(version)
            except SourceNotAnsweringError:
                continue
            except AdapterUnavailableError:
                return
            except LeaseRefusedError:
                continue  # the adapter was removed or replaced meanwhile

    async def _refresh(self, key: AdapterKey) -> Version:
        try:
            version = await self._import_files(key)
        except AdapterUnavailableError:
            raise
        except LeaseRefusedError:
            self.shortages.pop(key, None)
            raise
        if (shortage := self.shortages.get(key)) is not None and not shortage.in_load:
            self._end_shortage(key)
        return version

    async def _import_files(self, key: AdapterKey) -> Version:
        deadline = time.monotonic() + CHANGING_TIMEOUT_S
        while True:
            try:
                location, version = await self._import(key)
            except SourceChangingError:
                if time.monotonic() > deadline:
                    raise AdapterUnavailableError("its files keep changing") from None
                await asyncio.sleep(RETRY_CHANGING_S)
                continue
            except MissingFilesError as error:
                raise UnknownAdapterError(str(error)) from None
            except NotAllowedError as error:
                raise LeaseRefusedError(str(error)) from None
            except StoreError as error:
                needed_bytes = error.needed_bytes if isinstance(error, NoSpaceError) else 0
                self.requested_bytes = max(self.requested_bytes, needed_bytes)
                raise self._begin_shortage(key, Shortage(str(error), error.problem, needed_bytes)) from None
            except RejectedError as error:
                if error.location is not None:
                    self.reject(key, error.location, str(error), error.source_signature)
                raise LeaseRefusedError(str(error)) from None
            except NotAnsweringError as error:
                # Nothing has to be recorded: the files are compared again when their file system answers.
                raise SourceNotAnsweringError(str(error)) from None
            except OSError as error:
                # A file system with errors tells nothing about its files, so they are not rejected.
                raise self._begin_shortage(key, self._shortage(error)) from None
            state = self.states.setdefault(key, AdapterState())
            state.location, state.rejection, state.missing_since = location, None, 0.0
            state.source_signature = version.content.source_signature
            self.apply_changes([key])
            return version

    async def _import(self, key: AdapterKey) -> tuple[Location, Version]:
        try:
            location = await self.locate(key)
        except NotAnsweringError as error:
            raise MayNotExistError(str(error)) from None
        if location is None:
            raise MissingFilesError(f"there is no adapter {str(key)!r}")
        disk = self.disk(location.root)
        source_signature = await disk.run(partial(self.importer.signature, location))
        await self.run_in_thread(self.version_log.read)
        serving = self.version_log.serving_version(key)
        if serving is not None and serving.content.source_signature == source_signature:
            return location, serving
        state = self.states.get(key)
        if state is not None and state.rejection is not None and state.source_signature == source_signature:
            raise RejectedError(state.rejection)
        try:
            content = await disk.run(
                partial(self._read_files, key, location), copy_timeout_s(files_bytes(source_signature))
            )
        except RejectedError as error:
            error.location, error.source_signature = location, source_signature
            raise
        return location, await self.run_in_thread(partial(self._serve, key, content))

    def _read_files(self, key: AdapterKey, location: Location) -> AdapterContent:
        # No lock is held here: another process would wait for it as long as these files cannot be read.
        content = self.importer.import_adapter(key, location)
        if self.importer.signature(location) != content.source_signature:
            # A snapshot of files that were replaced meanwhile must not supersede a snapshot of the new files.
            raise SourceChangingError(f"{location.folder} was replaced while it was imported")
        return content

    def _serve(self, key: AdapterKey, content: AdapterContent) -> Version:
        with self.run.locked(STORE_LOCK, shared=True):
            if content.is_snapshot and not self.importer.snapshots.exists(content.digest):
                raise SourceChangingError(f"the snapshot of adapter {key} was removed before it had a version")
            return self.version_log.serve(key, content)

    def reject(self, key: AdapterKey, location: Location, reason: str, source_signature: str | None) -> None:
        """Record why the files with this signature are not served, and log a new reason once."""
        state = self.states.setdefault(key, AdapterState())
        if state.rejection != reason:
            if state.version is None:
                logger.warning("adapter %s: files rejected (%s)", key, reason)
            else:
                version = state.version.digest[:8]
                logger.warning("adapter %s: new files rejected (%s); still serving version %s", key, reason, version)
        state.location, state.rejection, state.source_signature = location, reason, source_signature

    def _shortage(self, error: OSError, *, in_load: bool = False) -> Shortage:
        # Reading the files of an adapter cannot fill a disk, so these errors are of the run directory.
        if shortage_of(error) and error.errno != errno.EIO:
            problem = describe(error, self.run.folder)
            return Shortage(problem, problem, in_load=in_load)
        if isinstance(error, NotAnsweringError):
            return Shortage(str(error), str(error), in_load=in_load)
        problem = f"files of adapters cannot be read ({error.strerror or type(error).__name__})"
        return Shortage(f"its files cannot be read ({error})", problem, in_load=in_load)

    def _begin_shortage(self, key: AdapterKey, shortage: Shortage) -> AdapterUnavailableError:
        """Record why an adapter cannot be imported or loaded now, and log it unless it is known. Return the error."""
        if key not in self.shortages:
            if (state := self.states.get(key)) is None or state.version is None:
                logger.warning("adapter %s: cannot be loaded now (%s); trying again", key, shortage.reason)
            else:
                version = state.version.digest[:8]
                logger.warning(
                    "adapter %s: cannot be loaded now (%s); trying again; still serving version %s",
                    key,
                    shortage.reason,
                    version,
                )
        self.shortages[key] = shortage
        return AdapterUnavailableError(shortage.reason)

    def _end_shortage(self, key: AdapterKey) -> None:
        if self.shortages.pop(key, None) is not None:
            logger.info("adapter %s: can be loaded again", key)

    async def locate(self, key: AdapterKey) -> Location | None:
        """Return the location of an adapter's files; None if there are none.

        A source that does not answer is skipped if a later one has the adapter, unless the known files are in it. A
        folder without any of the files is the location only if no later source has the adapter.

        Raises:
            NotAllowedError: the name is not allowed, or its files are outside of the source.
            OSError: a source that may have the files cannot be read.
        """
        if (declared := self.resolver.declared_location(key)) is not None:
            return declared
        state = self.states.get(key)
        known = state.location.source if state is not None and state.location is not None else None
        empty: Location | None = None
        unread: OSError | None = None
        for root, search in self.resolver.searches(key):
            try:
                location = await self.disk(root).run(search)
            except OSError as error:
                if root == known:
                    raise
                unread = unread or error
                continue
            if location is not None and location.has_files:
                return location
            empty = empty or location
        if unread is not None:
            raise unread
        return empty

    def disk(self, root: Path) -> Disk:
        """Return the disk that has this folder."""
        if (disk := self.disks.get(root)) is None:
            disk = self.disks[root] = Disk(root)
        return disk

    async def deactivate(self, key: AdapterKey) -> None:
        """Make an adapter serve no version until a request imports it again."""
        await self.run_in_thread(lambda: self.version_log.deactivate(key))
        self.apply_changes([key])

    def forget(self, key: AdapterKey) -> None:
        """Delete the state of an adapter that serves no version."""
        if (state := self.states.get(key)) is not None and state.version is None:
            del self.states[key]

    def apply_changes(self, keys: Iterable[AdapterKey], sequence: int | None = None) -> None:
        """Switch adapters to the versions that the version log says they serve.

        Args:
            sequence: `keys` are all adapters that changed up to this line of the log; None if they are only some.
        """
        for key in keys:
            state = self.states.get(key)
            if state is None:
                continue
            version, previous = self.version_log.serving_version(key), state.version
            if previous is not None and version is not None and version.id == previous.id:
                state.version, state.pending = version, None
                self._behind.pop(key, None)
            elif previous is None or version is None or not self._in_use(previous):
                self._switch(state, version)
            elif state.pending is None or state.pending.id != version.id:
                # The previous version serves until the new one is in memory.
                state.pending = version
                self._behind[key] = self.version_log.superseded.get(previous.id, self.version_log.sequence)
                task = asyncio.ensure_future(self._load_pending(key, state, version))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
        for version in self.version_log.pop_retired():
            self.loader.forget(version)
        if sequence is not None:
            self._applied = sequence
        self.publish_progress()

    async def _load_pending(self, key: AdapterKey, state: AdapterState, version: Version) -> None:
        try:
            await self.load(version)
        except AdapterUnavailableError:
            if state.pending is version:
                state.pending = None  # `retry_shortages` loads it later
            return
        except LeaseRefusedError:
            if state.pending is version:
                state.pending = None
                if (current := state.version) is not None:
                    await self.run_in_thread(lambda: self.version_log.serve(key, current.content, replacing=version.id))
                    self.apply_changes([key])
            return
        if state.pending is version:
            self._switch(state, version)
            self.publish_progress()

    def _switch(self, state: AdapterState, version: Version | None) -> None:
        previous, state.version, state.pending = state.version, version, None
        if (either := version or previous) is not None:
            self._behind.pop(either.key, None)
        if previous is None:
            return
        if version is None:
            logger.info("adapter %s: version %s is no longer served", previous.key, previous.digest[:8])
        elif version.id != previous.id:
            logger.info(
                "adapter %s: serving version %s instead of %s", version.key, version.digest[:8], previous.digest[:8]
            )
        else:
            return
        self._unregister_if_unused(previous)

    def _in_use(self, version: Version) -> bool:
        return version.id in self.usage.uses or self.loader.is_resident(version.id)

    def publish_progress(self) -> None:
        """Publish up to which line of the version log this process has released the superseded versions."""
        self.usage.publish(min((self._applied, *(line - 1 for line in self._behind.values()))))

    def retain(self, version: Version) -> None:
        """Add a lease to a version.

        Raises:
            AdapterUnavailableError: this process uses as many versions as it can.
        """
        try:
            self.usage.use(version.id).leases += 1
        except OverflowError as error:
            raise AdapterUnavailableError(f"{error}; start more API-server processes") from None
        self.usage.write(version.id)

    def release(self, version: Version) -> None:
        """Remove a lease from a version. After its last lease, a superseded version leaves vLLM's registry."""
        use = self.usage.use(version.id)
        use.leases -= 1
        self.usage.write(version.id)
        if not use.leases:
            self._unregister_if_unused(version)

    def _unregister_if_unused(self, version: Version) -> None:
        state = self.states.get(version.key)
        serving = state.version if state is not None else None
        if (serving is not None and serving.id == version.id) or version.id in self.usage.uses:
            return
        # A successor takes over the plain name only if it is loaded: vLLM must not find a version that may not load.
        is_loaded = serving is not None and self.loader.is_resident(serving.id)
        self.vllm_names.forget(version, serving if is_loaded else None)

    async def load(self, version: Version) -> None:
        """Load a version into the engine unless it is loaded. Concurrent calls share one load.

        Raises:
            AdapterUnavailableError: a resource of the server has run out.
            LeaseRefusedError: the version cannot be loaded.
        """
        if self.loader.is_resident(version.id):
            return
        if (failure := self._failed.get(version.id)) is not None:
            raise LeaseRefusedError(failure)
        task = self._loading.get(version.id)
        if task is None:
            task = self._loading[version.id] = asyncio.ensure_future(self._load(version))
            task.add_done_callback(lambda done: (self._loading.pop(version.id), done.cancelled() or done.exception()))
        try:
            await asyncio.shield(task)
            if version.key in self.shortages and self.shortages[version.key].in_load:
                self._end_shortage(version.key)
        except LoadError as error:
            self._failed[version.id] = str(error)
            if (state := self.states.get(version.key)) is not None and state.location is not None:
                self.reject(version.key, state.location, str(error), version.content.source_signature)
            raise LeaseRefusedError(str(error)) from None
        except (OSError, SnapshotError) as error:
            failure = error if isinstance(error, OSError) else shortage_of(error)
            if failure is None:
                # The snapshot was deleted by another program: the next request imports the files again.
                try:
                    await self.deactivate(version.key)
                except OSError as full:
                    failure = full
            if failure is not None:
                unavailable = self._begin_shortage(version.key, self._shortage(failure, in_load=True))
                if isinstance(failure, NotAnsweringError):
                    unavailable = SourceNotAnsweringError(str(failure))
                raise unavailable from None
            raise LeaseRefusedError(str(error)) from None

    async def _load(self, version: Version) -> None:
        # The snapshot is kept until the version is loaded, even if the request that started the load has ended.
        self.retain(version)
        try:
            if not version.content.is_snapshot:
                await self._read_ahead(version)
            await self.loader.load(version)
        finally:
            self.release(version)

    async def _read_ahead(self, version: Version) -> None:
        """Read a version that is not copied before the engine does, which would wait for its disk in every stream."""
        folder = Path(version.content.folder)
        state = self.states.get(version.key)
        root = state.location.root if state is not None and state.location is not None else folder.parent
        await self.disk(root).run(partial(read_ahead, folder), copy_timeout_s(version.content.size_bytes))

    async def run_in_thread(self, call: Callable[[], T]) -> T:
        """Run a call that reads or writes the run directory in a thread, and return its result."""
        return await self._run_disk.run(call, LONG_TIMEOUT_S)
