"""The adapters of a server as one of its processes sees them: which version serves a name, and who holds it."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from cachetools import TTLCache

from vllm_lora_router.adapters.sources import NotAllowed
from vllm_lora_router.config.schema import Adapters as AdapterSettings
from vllm_lora_router.pool.board import Board
from vllm_lora_router.pool.catalogue import Catalogue, Place
from vllm_lora_router.pool.intake import Gone, Intake, Refused, Unsettled
from vllm_lora_router.pool.ledger import Key, Ledger, Version
from vllm_lora_router.pool.loading import Engine, Loader, LoadError
from vllm_lora_router.pool.registry import Registry
from vllm_lora_router.pool.report import report
from vllm_lora_router.pool.run_directory import RunDirectory
from vllm_lora_router.pool.slots import Slots

logger = logging.getLogger("vllm_lora_router.adapters")

T = TypeVar("T")

# The lock between those who take copies in and those who throw them away.
STORE = "store"

LOOK_AGAIN_S = 0.1  # while somebody writes to an adapter's files
GIVE_UP_LOOKING_S = 10.0
# A tenant's own adapter of a name that everybody's has too is found this much later than at once.
ABSENT_S = 1.0
# What the engine refused is not tried again before this.
TRY_AGAIN_S = 30.0


class NotLeased(Exception):
    """An adapter that cannot serve a request; the message says why."""


class UnknownAdapter(NotLeased):
    """No adapter has this name."""


class Lease:
    """A version that stays until the lease is released."""

    def __init__(self, version: Version, model: str, pool: "AdapterPool") -> None:
        self.version = version
        self.model = model  # what the request's `model` must be for vLLM to answer it by this version
        self._pool: AdapterPool | None = pool
        self._entered = False
        self._kept = False

    async def enter(self) -> None:
        """Returns when the version has a slot."""
        if self._pool is not None and not self._entered:
            await self._pool.slots.enter(self.version.id)
            self._entered = True

    def release(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            if self._entered:
                pool.slots.leave(self.version.id)
            if not self._kept:
                pool.let_go(self.version)

    def keep(self) -> None:
        """The version stays for as long as the server runs: it is used for longer than anybody can see."""
        self._kept = True


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


class AdapterPool:
    """One of these a process; what they decide together stands in the ledger and on the boards."""

    def __init__(
        self,
        run: RunDirectory,
        ledger: Ledger,
        board: Board,
        catalogue: Catalogue,
        intake: Intake,
        engine: Engine,
        loader: Loader,
        slots: Slots,
    ) -> None:
        self.run, self.ledger, self.board = run, ledger, board
        self.catalogue, self.intake = catalogue, intake
        self.engine, self.loader, self.slots = engine, loader, slots
        self.held: dict[Key, Held] = {}
        self.registry = Registry(engine)
        self._disk = ThreadPoolExecutor(4, thread_name_prefix="lora-router-adapters")
        self._looking: dict[Key, asyncio.Task[Version]] = {}
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._absent: TTLCache[Key, bool] = TTLCache(maxsize=65536, ttl=ABSENT_S)
        self._names: TTLCache[str | None, list[Key]] = TTLCache(maxsize=4096, ttl=ABSENT_S)
        self._failed: TTLCache[int, str] = TTLCache(maxsize=1024, ttl=TRY_AGAIN_S)
        self._followed = 0  # lines of the ledger
        self._behind: dict[Key, int] = {}  # names whose superseded version is still leased, and since which line

    # Leases

    def lease_now(self, name: str, tenant: str | None, *, by_client: bool = False, loaded: bool = True) -> Lease | None:
        """A lease on an adapter that can serve at once; None when that takes a look at the disk, or a load.

        Args:
            by_client: the client itself named it, which `client_may_name` may forbid.
            loaded: its weights must be in the engine's memory; else it is enough that it is known.
        """
        for key in self._keys(name, tenant, by_client):
            held = self.held.get(key)
            if held is not None and (version := held.version) is not None:
                resident = self.loader.is_resident(version.id)
                return self._lease(held, version) if resident or not loaded else None
            if key not in self._absent:
                return None
        return None

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> Lease:
        """A lease on the version that serves `name` for a tenant, found, checked, copied and loaded if need be.

        Raises:
            UnknownAdapter: there is none, or none that this client may name.
            NotLeased: there is one, and it cannot be served.
        """
        for key in self._keys(name, tenant, by_client):
            held = self.held.get(key)
            if held is None or held.version is None:
                if key in self._absent:
                    continue
                try:
                    await self.look(key)
                except UnknownAdapter:
                    if key.tenant is not None:
                        self._absent[key] = True
                    continue
                held = self.held[key]
            version = held.version
            if version is None:
                raise NotLeased("it was taken away just now")
            lease = self._lease(held, version)
            try:
                await self.load(version)
            except BaseException:
                lease.release()
                raise
            return lease
        raise UnknownAdapter(f"there is no adapter {name!r}")

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        """Whether there is an adapter of this name, as far as that can be told without checking and loading it."""
        for key in self.catalogue.keys(name, tenant):
            held = self.held.get(key)
            if held is not None and held.version is not None:
                return True
            if await self.on_disk(lambda key=key: self._place(key)) is not None:
                return held is None or held.refused is None
        return False

    async def names(self, tenant: str | None) -> list[str]:
        """The adapters that this tenant may name, but for those that were found to be unfit."""
        keys = self._names.get(tenant)
        if keys is None:
            keys = self._names[tenant] = await self.on_disk(lambda: self.catalogue.names(tenant))
        fit = (key.name for key in keys if (held := self.held.get(key)) is None or held.version or not held.refused)
        return list(dict.fromkeys(fit))

    def owns(self, engine_name: str) -> bool:
        """Whether vLLM has this name because of us."""
        return self.ledger.is_engine_name(engine_name)

    async def report(self) -> dict[str, Any]:
        """Every adapter, where it is and what it takes, for JSON."""
        return await report(self)

    def unread(self) -> AbstractContextManager[None]:
        """While a request runs that was not looked into: no version that it may use goes away."""
        return self.board.unread()

    def _keys(self, name: str, tenant: str | None, by_client: bool) -> Iterator[Key]:
        keys = self.catalogue.keys(name, tenant)
        return (key for key in keys if self.catalogue.may_name(key)) if by_client else keys

    def _lease(self, held: Held, version: Version) -> Lease:
        held.used = time.time()
        self.board.use(version.id).leases += 1
        self.board.write(version.id)
        model = self.registry.model(version, everybody=self._is_everybodys(version))
        return Lease(version, model, self)

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
        self.registry.forget(version, serving)

    def _is_everybodys(self, version: Version) -> bool:
        return version.tenant is None and self.catalogue.client_may_name == "all"

    # Configurations

    async def prepare(self, names: Iterable[str]) -> dict[str, str]:
        """Takes declared adapters in before the first request, as many of them as the engine keeps in memory.

        Returns why some cannot be served, by name.
        """
        refused: dict[str, str] = {}
        pause, self.loader.max_per_s = self.loader.max_per_s, 0  # nobody waits meanwhile
        for name in list(names)[: self.loader.capacity]:
            try:
                version = await self.look(Key(name))
                await self.load(version)
                self.registry.model(version, everybody=self._is_everybodys(version))
            except NotLeased as reason:
                refused[name] = str(reason)
        self.loader.max_per_s = pause
        return refused

    async def configure(self, catalogue: Catalogue, settings: AdapterSettings) -> None:
        """Follows another configuration from now on; requests under way keep what they have."""
        self.catalogue = catalogue
        self.slots.max_wait_s = settings.max_wait_ms / 1000
        self.loader.max_per_s = settings.max_loads_per_s
        self._absent.clear()
        self._names.clear()
        places = await self.on_disk(lambda: {key: self._place(key) for key in list(self.held)})
        for key, place in places.items():
            held = self.held[key]
            if place is None:
                await self.rest(key)
                self.drop(key)
            elif place != held.place:
                held.place, held.source = place, None  # to be looked at

    # From files to versions

    async def look(self, key: Key) -> Version:
        """Looks at an adapter's files now; several requests look once."""
        task = self._looking.get(key)
        if task is None:
            task = self._looking[key] = asyncio.ensure_future(self._look_until_settled(key))
            task.add_done_callback(lambda done: (self._looking.pop(key), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

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
            except (Refused, NotAllowed) as refused:
                self.refuse(key, str(refused))
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
            content = self.intake.take(key, place)
            if self.intake.look(place) != content.source:
                raise Unsettled  # a copy of what was replaced meanwhile must not go over what replaced it
            return place, self.ledger.serve(key, content)

    def refuse(self, key: Key, why: str) -> None:
        """Notes why what lies there now is not served, and says so once."""
        place = self._place(key)
        if place is None:
            return  # nothing to watch, and names that lead nowhere are not remembered
        held = self.held.setdefault(key, Held())
        if held.refused != why:
            stays = f"; version {held.version.engine_name} goes on serving" if held.version is not None else ""
            logger.warning("adapter %s is not served as it lies there: %s%s", key, why, stays)
        held.place, held.refused = place, why
        try:
            held.source = self.intake.look(place)
        except (Gone, OSError):
            held.source = None

    def _place(self, key: Key) -> Place | None:
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
                held.version = version
            elif before is None or version is None or not self._in_use(before):
                self._switch(held, version)
            elif held.coming is None or held.coming.id != version.id:
                # The old one serves until the new one is in memory.
                held.coming = version
                self._behind[key] = self.ledger.superseded.get(before.id, self.ledger.sequence)
                task = asyncio.ensure_future(self._bring(key, held, version))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
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
                    await self.on_disk(lambda: self.ledger.serve(key, before.content))
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

    # Into the engine

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
            task = self._loading[version.id] = asyncio.ensure_future(self.loader.load(version))
            task.add_done_callback(lambda done: (self._loading.pop(version.id), done.cancelled() or done.exception()))
        try:
            await asyncio.shield(task)
        except LoadError as error:
            self._failed[version.id] = str(error)
            self.refuse(version.key, str(error))
            raise NotLeased(str(error)) from None

    async def on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)
