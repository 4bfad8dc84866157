"""A process's chores for its adapters: follow the ledger, look at files, throw away what nobody uses."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from vllm_lora_router.adapters.sources import signature
from vllm_lora_router.pool.intake import describe
from vllm_lora_router.pool.ledger import Key, Version
from vllm_lora_router.pool.pool import STORE, AdapterPool, NotLeased

logger = logging.getLogger("vllm_lora_router.adapters")

FOLLOW_S = 0.2  # how often the ledger is read
WATCH_S = 1.0  # how often every file is looked at: network and mapped file systems tell of no change by themselves
SLICE = 64  # files that are looked at without a pause, so that no request waits for it
GONE_S = 2.0  # a folder that is away for less is being replaced
# After the last lease: an aborted request's last step may still be under way in the engine.
IDLE_S = 5.0
FULL = 0.9  # of the bound on disk use, from where adapters that nobody asks for give up their copies


class Tending:
    """The chores of one process, as one task that ends with the server."""

    def __init__(self, pool: AdapterPool) -> None:
        self._pool = pool
        self._idle_since: dict[int, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.ensure_future(self._again_and_again(chore, every_s))
            for chore, every_s in ((self.follow, FOLLOW_S), (self.watch, 0.0), (self.sweep, WATCH_S))
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _again_and_again(self, chore: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await chore()
            except Exception:
                logger.exception("a chore failed; it is done again in a second")
                await asyncio.sleep(1)
            await asyncio.sleep(every_s)

    async def follow(self) -> None:
        """Takes in what other processes wrote."""
        pool = self._pool
        pool.board.look_around()
        pool.follow(*await pool.on_disk(pool.ledger.changes))

    async def watch(self) -> None:
        """Looks at every known adapter's files once, within `WATCH_S`."""
        pool = self._pool
        watched = [(key, held.place.folder) for key, held in pool.held.items() if held.place and held.place.watched]
        slices = [watched[start : start + SLICE] for start in range(0, len(watched), SLICE)]
        for some in slices or [[]]:
            for key, source in await pool.on_disk(lambda some=some: _sources(some)):
                await self._compare(key, source)
            await asyncio.sleep(max(WATCH_S / max(len(slices), 1), 0.005))

    async def _compare(self, key: Key, source: str | None) -> None:
        pool = self._pool
        held = pool.held.get(key)
        if held is None or held.place is None:
            return
        if source is None and not held.place.declared:
            held.missing_since = held.missing_since or time.monotonic()
            if time.monotonic() - held.missing_since > GONE_S:
                logger.info("adapter %s is gone from %s", key, held.place.folder)
                await pool.rest(key)
                pool.drop(key)
        elif source is None:
            pool.refuse(key, f"its files are gone from {held.place.folder}")
        elif source != held.source:
            held.missing_since = 0.0
            try:
                await pool.look(key)
            except NotLeased as reason:
                logger.debug("adapter %s: %s", key, reason)

    async def sweep(self) -> None:
        """Takes superseded versions out of the engine, and off the disk, when no process can use them any more."""
        pool = self._pool
        await self._make_room()
        for identifier in [*pool.ledger.superseded]:
            if identifier not in pool.ledger.retired and self._is_idle(identifier):
                version = pool.ledger.versions[identifier]
                if await pool.on_disk(lambda version=version: self._throw_away(version)):
                    await pool.engine.unload(identifier)
                    pool.loader.forget(identifier)
                    logger.info("retired adapter version %s", version.engine_name)

    def _is_idle(self, identifier: int) -> bool:
        """Whether no process has used the version for `IDLE_S`, and none can begin to."""
        line = self._pool.ledger.superseded[identifier]
        reports = list(self._pool.board.all())
        used = any(
            report.sequence < line
            or (report.unread_since and report.unread_since <= self._idle_since.get(identifier, time.monotonic()))
            or any(version == identifier for version, _ in report.uses)
            for report in reports
        )
        if used:
            self._idle_since.pop(identifier, None)
            return False
        return time.monotonic() - self._idle_since.setdefault(identifier, time.monotonic()) > IDLE_S

    def _throw_away(self, version: Version) -> bool:
        ledger, snapshots = self._pool.ledger, self._pool.intake.snapshots
        with self._pool.run.locked(STORE):
            if not ledger.retire(version.id):
                return False
            self._idle_since.pop(version.id, None)
            still = (other for other in ledger.versions.values() if other.id not in ledger.retired)
            if version.content.private and all(other.content.digest != version.content.digest for other in still):
                snapshots.remove(version.content.digest)
            return True

    async def _make_room(self) -> None:
        """Lets adapters that nobody asks for give up their copies, when the bound on disk use comes near."""
        pool = self._pool
        snapshots = pool.intake.snapshots
        if snapshots.max_bytes is None:
            return
        excess = await pool.on_disk(snapshots.used_bytes) - FULL * snapshots.max_bytes
        used = {version for report in pool.board.all() for version, _ in report.uses}
        for key, held in sorted(pool.held.items(), key=lambda item: item[1].used):
            if excess <= 0:
                return
            if (version := held.version) is not None and version.content.private and version.id not in used:
                excess -= version.content.size_bytes
                await pool.rest(key)


def _sources(places: Sequence[tuple[Key, Path]]) -> list[tuple[Key, str | None]]:
    found: list[tuple[Key, str | None]] = []
    for key, folder in places:
        try:
            what = signature(folder)
        except OSError:
            continue  # a file system that is away says nothing of its files
        found.append((key, None if what is None else describe(what)))
    return found
