"""A process's chores for its adapters: follow the ledger, look at files, throw away what nobody uses."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from vllm_lora_router.adapters.files.sources import signature
from vllm_lora_router.adapters.runtime.importer import describe
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.version_log import Key, Version
from vllm_lora_router.adapters.runtime.version_manager import STORE

logger = logging.getLogger("vllm_lora_router.adapters")

FOLLOW_S = 0.2  # how often the ledger is read
WATCH_S = 1.0  # how often every file is looked at: network and mapped file systems tell of no change by themselves
SLICE = 64  # files that are looked at without a pause, so that no request waits for it
GONE_S = 2.0  # a folder that is away for less is being replaced
# After the last lease: an aborted request's last step may still be under way in the engine.
IDLE_S = 5.0
STRAYS_S = 30.0
FULL = 0.9  # of the bound on disk use, from where adapters that nobody asks for give up their copies


class Tending:
    """The chores of one process, as one task that ends with the server."""

    def __init__(self, pool: AdapterPool) -> None:
        self._shelf, self._engine = pool.shelf, pool.engine
        self._idle_since: dict[int, float] = {}  # by the line of the ledger that superseded a version
        self._strays_s = 0.0
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
        shelf = self._shelf
        shelf.board.look_around()
        shelf.follow(*await shelf.on_disk(shelf.ledger.changes))

    async def watch(self) -> None:
        """Looks at every known adapter's files once, within `WATCH_S`."""
        shelf = self._shelf
        watched = [(key, held.place.folder) for key, held in shelf.held.items() if held.place and held.place.watched]
        slices = [watched[start : start + SLICE] for start in range(0, len(watched), SLICE)]
        for some in slices or [[]]:
            for key, source in await shelf.on_disk(lambda some=some: _sources(some)):
                await self._compare(key, source)
            await asyncio.sleep(max(WATCH_S / max(len(slices), 1), 0.005))

    async def _compare(self, key: Key, source: str | None) -> None:
        shelf = self._shelf
        held = shelf.held.get(key)
        if held is None or held.place is None:
            return
        if source is not None:
            held.missing_since = 0.0
        if source is None and not held.place.declared:
            held.missing_since = held.missing_since or time.monotonic()
            if time.monotonic() - held.missing_since > GONE_S:
                logger.info("adapter %s is gone from %s", key, held.place.folder)
                await shelf.rest(key)
                shelf.drop(key)
        elif source is None:
            shelf.refuse(key, held.place, f"its files are gone from {held.place.folder}", None)
        elif source != held.source:
            # Not waited for: a file may be written to for minutes.
            shelf.start_look(key)

    async def sweep(self) -> None:
        """Takes superseded versions out of the engine, and off the disk, when no process can use them any more."""
        shelf = self._shelf
        await self._make_room()
        if time.monotonic() - self._strays_s > STRAYS_S:
            self._strays_s = time.monotonic()
            await shelf.on_disk(self._throw_strays_away)
        superseded = {*shelf.ledger.superseded.values()}
        self._idle_since = {line: since for line, since in self._idle_since.items() if line in superseded}
        for identifier in [*shelf.ledger.superseded]:
            if (line := self._idle_line(identifier)) is not None:
                version = shelf.ledger.versions[identifier]
                if await shelf.on_disk(lambda version=version, line=line: self._throw_away(version, line)):
                    await self._engine.unload(identifier)
                    shelf.loader.forget(identifier)
                    logger.info("retired adapter version %s", version.engine_name)

    def _idle_line(self, identifier: int) -> int | None:
        """The line since which the version serves no name, when no process has used it for `IDLE_S` or can begin to."""
        line = self._shelf.ledger.superseded.get(identifier)
        if line is None:
            return None
        reports = list(self._shelf.board.all())
        if any(report.sequence < line or identifier in dict(report.uses) for report in reports):
            self._idle_since.pop(line, None)
            return None
        since = self._idle_since.setdefault(line, time.monotonic())
        if any(report.unread_since and report.unread_since <= since for report in reports):
            return None
        return line if time.monotonic() - since > IDLE_S else None

    def _throw_away(self, version: Version, line: int) -> bool:
        ledger, snapshots = self._shelf.ledger, self._shelf.intake.snapshots
        with self._shelf.run.locked(STORE):
            if not ledger.retire(version.id, line):
                return False
            if version.content.private and version.content.digest not in self._needed():
                snapshots.remove(version.content.digest)
            return True

    def _needed(self) -> set[str]:
        """The copies that a version has."""
        ledger = self._shelf.ledger
        return {version.content.digest for version in ledger.versions.values() if version.id not in ledger.retired}

    def _throw_strays_away(self) -> None:
        """Copies that came to nothing: their source changed while they were taken, or the process was killed."""
        ledger, snapshots = self._shelf.ledger, self._shelf.intake.snapshots
        with self._shelf.run.locked(STORE):
            ledger.read()
            for digest in snapshots.contents() - self._needed():
                snapshots.remove(digest)

    async def _make_room(self) -> None:
        """Lets adapters that nobody asks for give up their copies, when the bound on disk use comes near."""
        shelf = self._shelf
        snapshots = shelf.intake.snapshots
        if snapshots.max_bytes is None:
            return
        ledger = shelf.ledger
        leaving = sum(ledger.versions[identifier].content.size_bytes for identifier in [*ledger.superseded])
        wanted, shelf.wanted_bytes = shelf.wanted_bytes, 0
        room = min(FULL * snapshots.max_bytes, snapshots.max_bytes - wanted)
        excess = await shelf.on_disk(snapshots.used_bytes) - leaving - room
        used = {version for report in shelf.board.all() for version, _ in report.uses}
        for key, held in sorted(shelf.held.items(), key=lambda item: item[1].used):
            if excess <= 0:
                return
            if (version := held.version) is not None and version.content.private and version.id not in used:
                excess -= version.content.size_bytes
                await shelf.rest(key)


def _sources(places: Sequence[tuple[Key, Path]]) -> list[tuple[Key, str | None]]:
    found: list[tuple[Key, str | None]] = []
    for key, folder in places:
        try:
            what = signature(folder)
        except OSError:
            continue  # a file system that is away says nothing of its files
        found.append((key, None if what is None else describe(what)))
    return found
