"""Periodic tasks for adapters: follow the version log, watch files, remove unused versions and snapshots."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vllm_lora_router.adapters.files.sources import signature
from vllm_lora_router.adapters.runtime.disk_calls import NotAnsweringError
from vllm_lora_router.adapters.runtime.importer import encode_signature
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.version_log import AdapterKey, Version
from vllm_lora_router.adapters.runtime.version_manager import STORE_LOCK
from vllm_lora_router.coordination.repeat import repeat

logger = logging.getLogger("vllm_lora_router.adapters")

FOLLOW_S = 0.2  # interval between reads of the version log
WATCH_S = 1.0  # interval between checks of a file: network and mapped file systems send no change notifications
SLOW_WATCH_S = 2.0  # files on other disks are checked again without waiting longer for a slow disk
SLICE = 64  # files that are checked in one go, so that no request waits for a thread
MISSING_S = 2.0  # a folder that is missing for a shorter time is being replaced
# Time after the last lease: an aborted request's last step may still be running in the engine.
IDLE_S = 5.0
UNUSED_SNAPSHOTS_S = 30.0  # interval between searches for snapshots without a version
FULL = 0.9  # share of the disk limit from which the snapshots of unused adapters are removed


class Maintenance:
    """The periodic tasks of one process, from `start` until `stop`."""

    def __init__(self, pool: AdapterPool) -> None:
        self._manager, self._engine = pool.version_manager, pool.engine
        self._idle_since: dict[int, float] = {}  # by the version-log line that superseded a version
        self._last_search = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: dict[Path, asyncio.Task[None]] = {}  # by the root of the disk

    def start(self) -> None:
        """Start the tasks on the running event loop."""
        tasks = (
            ("following the version log", self.follow_log, FOLLOW_S),
            ("watching adapter files", self.watch_files, 0.0),
            ("removing unused versions", self.sweep, WATCH_S),
            ("loading adapters that were unavailable", self.retry_shortages, WATCH_S),
        )
        self._tasks = [
            asyncio.ensure_future(repeat(f"adapters: {task}", step, logger, every_s=every_s))
            for task, step, every_s in tasks
        ]

    def stop(self) -> None:
        """Cancel the tasks."""
        for task in (*self._tasks, *self._watching.values()):
            task.cancel()

    async def follow_log(self) -> None:
        """Apply the changes that other processes appended to the version log."""
        manager = self._manager
        manager.usage.refresh()
        manager.apply_changes(*await manager.run_in_thread(manager.version_log.changes))

    async def watch_files(self) -> None:
        """Check the files of every watched adapter once, spread over `WATCH_S`."""
        watched: defaultdict[Path, list[tuple[AdapterKey, Path]]] = defaultdict(list)
        for key, state in self._manager.states.items():
            if state.location and state.location.is_watched:
                watched[state.location.root].append((key, state.location.folder))
        for root, folders in watched.items():
            if root not in self._watching:
                self._watching[root] = asyncio.ensure_future(self._watch_disk(root, folders))
        if not self._watching:
            await asyncio.sleep(WATCH_S)
            return
        await asyncio.wait(self._watching.values(), timeout=SLOW_WATCH_S)
        for root, task in [*self._watching.items()]:
            if task.done():
                del self._watching[root]
                task.result()

    async def _watch_disk(self, root: Path, watched: Sequence[tuple[AdapterKey, Path]]) -> None:
        slices = [watched[start : start + SLICE] for start in range(0, len(watched), SLICE)]
        for folders in slices:
            try:
                signatures = await self._manager.disk(root).run(partial(_signatures, folders))
            except NotAnsweringError:
                signatures = []
            for key, source_signature in signatures:
                await self._compare(key, source_signature)
            await asyncio.sleep(max(WATCH_S / len(slices), 0.005))

    async def _compare(self, key: AdapterKey, source_signature: str | None) -> None:
        manager = self._manager
        state = manager.states.get(key)
        if state is None or state.location is None:
            return
        if source_signature is not None:
            state.missing_since = 0.0
        folder = state.location.folder
        if source_signature is None and not state.location.is_declared:
            state.missing_since = state.missing_since or time.monotonic()
            if time.monotonic() - state.missing_since > MISSING_S:
                logger.info("adapter %s: files removed from %s; no longer served", key, folder)
                await manager.deactivate(key)
                manager.forget(key)
        elif source_signature is None:
            manager.reject(key, state.location, f"its files are missing from {folder}", None)
        elif source_signature != state.source_signature and key not in manager.shortages:
            # Not awaited: the files may be written for minutes.
            manager.start_refresh(key)

    async def retry_shortages(self) -> None:
        """Import or load the adapters for which a resource had run out."""
        manager = self._manager
        await manager.retry_shortages()
        if manager.loader.metrics is not None:
            manager.loader.metrics.set_unavailable_adapters(len(manager.shortages))
            manager.loader.metrics.set_not_answering(sum(not disk.is_answering for disk in manager.disks.values()))

    async def sweep(self) -> None:
        """Remove superseded versions from the engine and the disk if no process can use them any more."""
        manager = self._manager
        manager.usage.refresh()  # raises if the use of a process is not known: then nothing may be removed
        used_bytes = await manager.run_in_thread(manager.importer.snapshots.used_bytes)
        if manager.loader.metrics is not None:
            manager.loader.metrics.set_snapshot_bytes(used_bytes)
        if time.monotonic() - self._last_search > UNUSED_SNAPSHOTS_S:
            self._last_search = time.monotonic()
            await manager.run_in_thread(self._remove_unused_snapshots)
        await self._free_space(used_bytes, await manager.run_in_thread(manager.importer.snapshots.free_bytes))
        superseded = {*manager.version_log.superseded.values()}
        self._idle_since = {line: since for line, since in self._idle_since.items() if line in superseded}
        for identifier in [*manager.version_log.superseded]:
            if (line := self._idle_line(identifier)) is not None:
                version = manager.version_log.versions[identifier]
                if await manager.run_in_thread(lambda version=version, line=line: self._retire(version, line)):
                    await self._engine.unload(identifier)
                    manager.loader.forget(identifier)
                    logger.info("adapter %s: version %s retired", version.key, version.digest[:8])

    def _idle_line(self, identifier: int) -> int | None:
        """Return the line that superseded a version, if no process has used it for `IDLE_S` or can use it again."""
        line = self._manager.version_log.superseded.get(identifier)
        if line is None:
            return None
        processes = list(self._manager.usage.all_processes())
        if any(process.sequence < line or identifier in dict(process.uses) for process in processes):
            self._idle_since.pop(line, None)
            return None
        since = self._idle_since.setdefault(line, time.monotonic())
        if any(process.unknown_since and process.unknown_since <= since for process in processes):
            return None
        return line if time.monotonic() - since > IDLE_S else None

    def _retire(self, version: Version, line: int) -> bool:
        version_log, snapshots = self._manager.version_log, self._manager.importer.snapshots
        with self._manager.run.locked(STORE_LOCK):
            if not version_log.retire(version.id, line):
                return False
            if version.content.is_snapshot and version.content.digest not in self._needed_digests():
                snapshots.remove(version.content.digest)
            return True

    def _needed_digests(self) -> set[str]:
        """Return the digests of all snapshots that a version needs."""
        version_log = self._manager.version_log
        versions = version_log.versions.values()
        return {version.content.digest for version in versions if version.id not in version_log.retired}

    def _remove_unused_snapshots(self) -> None:
        """Remove snapshots without a version: their source changed during the import, or the process was killed."""
        version_log, snapshots = self._manager.version_log, self._manager.importer.snapshots
        with self._manager.run.locked(STORE_LOCK):
            version_log.read()
            snapshots.remove_unfinished()
            for digest in snapshots.digests() - self._needed_digests():
                snapshots.remove(digest)

    async def _free_space(self, used_bytes: int, free_bytes: int) -> None:
        """Deactivate the adapters that were not used for longest if the snapshot store is nearly full.

        Args:
            used_bytes: size of the store.
            free_bytes: disk space for more snapshots.
        """
        manager = self._manager
        max_bytes = manager.importer.snapshots.max_bytes
        version_log = manager.version_log
        retiring = sum(version_log.versions[identifier].content.size_bytes for identifier in [*version_log.superseded])
        used = {version for process in manager.usage.all_processes() for version, _ in process.uses}
        unused = [
            (key, state.version.content.size_bytes)
            for key, state in sorted(manager.states.items(), key=lambda item: item[1].last_used)
            if state.version is not None and state.version.content.is_snapshot and state.version.id not in used
        ]
        excess = 0.0 if max_bytes is None else used_bytes - retiring - FULL * max_bytes
        if requested := manager.requested_bytes:
            manager.requested_bytes = 0
            available = free_bytes if max_bytes is None else min(free_bytes, max_bytes - used_bytes)
            missing = requested - available - retiring
            # Adapters that serve are not removed for one that does not fit even then.
            if missing <= sum(size_bytes for _, size_bytes in unused):
                excess = max(excess, missing)
        for key, size_bytes in unused:
            if excess <= 0:
                return
            excess -= size_bytes
            await manager.deactivate(key)


def _signatures(folders: Sequence[tuple[AdapterKey, Path]]) -> list[tuple[AdapterKey, str | None]]:
    signatures: list[tuple[AdapterKey, str | None]] = []
    for key, folder in folders:
        try:
            files = signature(folder)
        except OSError:
            continue  # a file system that does not answer tells nothing about its files
        signatures.append((key, None if files is None else encode_signature(files)))
    return signatures
