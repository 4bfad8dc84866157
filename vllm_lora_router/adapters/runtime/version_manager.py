"""Which version each name stands for in this process: taken in from files, loaded, superseded, let go."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from cachetools import TTLCache

from vllm_lora_router.adapters.files.snapshots import SnapshotError
from vllm_lora_router.adapters.files.sources import NotAllowed
from vllm_lora_router.adapters.runtime.importer import Gone, Intake, NoRoom, Refused, Unsettled
from vllm_lora_router.adapters.runtime.lease import NotLeased, UnknownAdapter
from vllm_lora_router.adapters.runtime.loader import Loader, LoadError
from vllm_lora_router.adapters.runtime.resolver import Catalogue, Place
from vllm_lora_router.adapters.runtime.version_log import Key, Ledger, Version
from vllm_lora_router.adapters.runtime.vllm_names import Registry
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import Board

logger = logging.getLogger("vllm_lora_router.adapters")

T = TypeVar("T")

# The lock between those who take copies in and those who throw them away.
STORE = "store"

LOOK_AGAIN_S = 0.1  # while somebody writes to an adapter's files
GIVE_UP_LOOKING_S = 10.0
# What the engine refused is not tried again before this.
TRY_AGAIN_S = 30.0


@dataclass(slots=True)
class Held:
    """What this process knows of one name."""

    place: Place | None = None
    version: Version | None = None  # new leases get this one
    coming: Version | None = None  # is being loaded, and then takes over
    refused: str | None = None  # why the files that lie there now are not served
    source: str | None = None  # what those files look like
    used: float = 0.0  # `time.time()` of the last lease
    missing_since: float = 0.0


class Shelf:
    """What the processes decide together stands in the ledger and on the boards; this is one process's part in it."""

    def __init__(
        self,
        run: RunDirectory,
        ledger: Ledger,
        board: Board,
        catalogue: Catalogue,
        intake: Intake,
        loader: Loader,
        registry: Registry,
    ) -> None:
        self.run, self.ledger, self.board = run, ledger, board
        self.catalogue, self.intake = catalogue, intake
        self.loader, self.registry = loader, registry
        self.held: dict[Key, Held] = {}
        self.wanted_bytes = 0  # on disk, for a copy that found no room
        self._disk = ThreadPoolExecutor(4, thread_name_prefix="lora-router-adapters")
        self._looking: dict[Key, asyncio.Task[Version]] = {}
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._failed: TTLCache[int, str] = TTLCache(maxsize=1024, ttl=TRY_AGAIN_S)
        self._followed = 0  # lines of the ledger
        self._behind: dict[Key, int] = {}  # names whose superseded version is still leased, and since which line

    async def look(self, key: Key) -> Version:
        """Looks at an adapter's files now; several requests look once."""
        return await asyncio.shield(self.start_look(key))

    def start_look(self, key: Key) -> asyncio.Task[Version]:
        """The look that is under way, or one that begins."""
        task = self._looking.get(key)
        if task is None:
            task = self._looking[key] = asyncio.ensure_future(self._look_until_settled(key))
            task.add_done_callback(lambda done: (self._looking.pop(key), done.cancelled() or done.exception()))
        return task

    async def _look_until_settled(self, key: Key) -> Version:
        until = time.monotonic() + GIVE_UP_LOOKING_S
        while True:
            try:
                place, version = await self.on_disk(lambda: self._take(key))
            except Unsettled:
                if time.monotonic() > until:
                    raise NotLeased("its files keep changing") from None
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            except Gone as gone:
                raise UnknownAdapter(str(gone)) from None
            except NotAllowed as refused:
                raise NotLeased(str(refused)) from None
            except NoRoom as full:
                self.wanted_bytes = max(self.wanted_bytes, full.needed_bytes)
                raise NotLeased(str(full)) from None
            except Refused as refused:
                if refused.place is not None:
                    self.refuse(key, refused.place, str(refused), refused.source)
                raise NotLeased(str(refused)) from None
            except OSError as error:
                # A file system that is away says nothing of its files.
                raise NotLeased(f"its files cannot be read now: {error}") from None
            held = self.held.setdefault(key, Held())
            held.place, held.refused, held.source, held.missing_since = place, None, version.content.source, 0.0
            self.follow([key])
            return version

    def _take(self, key: Key) -> tuple[Place, Version]:
        place = self.catalogue.place(key)
        if place is None:
            raise Gone(f"there is no adapter {str(key)!r}")
        source = self.intake.look(place)
        self.ledger.read()
        serving = self.ledger.serving_version(key)
        if serving is not None and serving.content.source == source:
            return place, serving
        held = self.held.get(key)
        if held is not None and held.refused is not None and held.source == source:
            raise Refused(held.refused)
        with self.run.locked(STORE, shared=True):
            try:
                content = self.intake.take(key, place)
            except Refused as refused:
                refused.place, refused.source = place, source
                raise
            if self.intake.look(place) != content.source:
                raise Unsettled  # a copy of what was replaced meanwhile must not go over what replaced it
            return place, self.ledger.serve(key, content)

    def refuse(self, key: Key, place: Place, why: str, source: str | None) -> None:
        """Notes why what looks like `source` is not served, and says so once."""
        held = self.held.setdefault(key, Held())
        if held.refused != why:
            stays = f"; version {held.version.engine_name} goes on serving" if held.version is not None else ""
            logger.warning("adapter %s is not served as it lies there: %s%s", key, why, stays)
        held.place, held.refused, held.source = place, why, source

    def place(self, key: Key) -> Place | None:
        try:
            return self.catalogue.place(key)
        except (NotAllowed, OSError):
            return None

    async def rest(self, key: Key) -> None:
        """Lets a name stand for nothing until somebody asks for it again."""
        await self.on_disk(lambda: self.ledger.rest(key))
        self.follow([key])

    def drop(self, key: Key) -> None:
        """Forgets a name whose files are gone."""
        if (held := self.held.get(key)) is not None and held.version is None:
            del self.held[key]

    def follow(self, keys: Iterable[Key], sequence: int | None = None) -> None:
        """Lets the names do what the ledger says of them now.

        Args:
            sequence: `keys` are all that changed up to this line of it; None where they are only some.
        """
        for key in keys:
            held = self.held.get(key)
            if held is None:
                continue
            version, before = self.ledger.serving_version(key), held.version
            if before is not None and version is not None and version.id == before.id:
                held.version, held.coming = version, None
                self._behind.pop(key, None)
            elif before is None or version is None or not self._in_use(before):
                self._switch(held, version)
            elif held.coming is None or held.coming.id != version.id:
                # The old one serves until the new one is in memory.
                held.coming = version
                self._behind[key] = self.ledger.superseded.get(before.id, self.ledger.sequence)
                task = asyncio.ensure_future(self._bring(key, held, version))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
        for version in self.ledger.take_retired():
            self.loader.forget(version)
        if sequence is not None:
            self._followed = sequence
        self.publish()

    async def _bring(self, key: Key, held: Held, version: Version) -> None:
        try:
            await self.load(version)
        except NotLeased:
            if held.coming is version:
                held.coming = None
                if (before := held.version) is not None:
                    await self.on_disk(lambda: self.ledger.serve(key, before.content, instead_of=version.id))
                    self.follow([key])
            return
        if held.coming is version:
            self._switch(held, version)
            self.publish()

    def _switch(self, held: Held, version: Version | None) -> None:
        before, held.version, held.coming = held.version, version, None
        if (one := version or before) is not None:
            self._behind.pop(one.key, None)
        if before is not None and (version is None or before.id != version.id):
            logger.info("adapter %s: %s after %s", before.key, version and version.engine_name, before.engine_name)
            self._forget_unless_served(before)

    def _in_use(self, version: Version) -> bool:
        return version.id in self.board.uses or self.loader.is_resident(version.id)

    def publish(self) -> None:
        """Tells the other processes up to which line of the ledger this one has let go of what was superseded."""
        self.board.publish(min((self._followed, *(line - 1 for line in self._behind.values()))))

    def hold(self, version: Version) -> None:
        """One lease more."""
        self.board.use(version.id).leases += 1
        self.board.write(version.id)

    def let_go(self, version: Version) -> None:
        """One lease less; a version that serves no name any more leaves vLLM's registry with its last one."""
        use = self.board.use(version.id)
        use.leases -= 1
        self.board.write(version.id)
        if not use.leases:
            self._forget_unless_served(version)

    def _forget_unless_served(self, version: Version) -> None:
        held = self.held.get(version.key)
        serving = held.version if held is not None else None
        if (serving is not None and serving.id == version.id) or version.id in self.board.uses:
            return
        # Nor must vLLM find one that it may not be able to load.
        ready = serving is not None and self.loader.is_resident(serving.id)
        self.registry.forget(version, serving if ready else None)

    async def load(self, version: Version) -> None:
        """Returns when the engine has the version in memory; several requests load it once.

        Raises:
            NotLeased: it cannot be loaded.
        """
        if self.loader.is_resident(version.id):
            return
        if (failed := self._failed.get(version.id)) is not None:
            raise NotLeased(failed)
        task = self._loading.get(version.id)
        if task is None:
            task = self._loading[version.id] = asyncio.ensure_future(self._load(version))
            task.add_done_callback(lambda done: (self._loading.pop(version.id), done.cancelled() or done.exception()))
        try:
            await asyncio.shield(task)
        except LoadError as error:
            self._failed[version.id] = str(error)
            if (held := self.held.get(version.key)) is not None and held.place is not None:
                self.refuse(version.key, held.place, str(error), version.content.source)
            raise NotLeased(str(error)) from None
        except SnapshotError as error:
            # Somebody deleted the copy: the next request takes another.
            await self.rest(version.key)
            raise NotLeased(str(error)) from None

    async def _load(self, version: Version) -> None:
        # Its files stay until it is loaded, even when whoever asked for it has left.
        self.hold(version)
        try:
            await self.loader.load(version)
        finally:
            self.let_go(version)

    async def on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)
