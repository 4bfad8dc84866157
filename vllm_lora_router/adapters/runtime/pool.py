"""The adapters of a server as the requests of one of its processes see them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from cachetools import TTLCache

from vllm_lora_router.adapters.runtime.importer import Intake
from vllm_lora_router.adapters.runtime.lease import AnothersAdapter, Lease, NotLeased, UnknownAdapter
from vllm_lora_router.adapters.runtime.loader import Engine, Loader
from vllm_lora_router.adapters.runtime.report import report
from vllm_lora_router.adapters.runtime.resolver import Catalogue
from vllm_lora_router.adapters.runtime.slot_scheduler import Slots
from vllm_lora_router.adapters.runtime.tenant_lookup import Owners
from vllm_lora_router.adapters.runtime.version_log import Key, Ledger, Version
from vllm_lora_router.adapters.runtime.version_manager import Held, Shelf
from vllm_lora_router.adapters.runtime.vllm_names import Registry
from vllm_lora_router.config.schema import Adapters as AdapterSettings
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import Board

# A tenant's own adapter of a name that everybody's has too is found this much later than at once.
ABSENT_S = 1.0
# A request that was let through needs its name until vLLM has looked it up.
UNLIST_S = 5.0


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
        self.catalogue = catalogue
        self.engine, self.loader, self.slots, self.board = engine, loader, slots, board
        self.registry = Registry(engine)
        self.shelf = Shelf(run, ledger, board, catalogue, intake, loader, self.registry)
        self._owners = Owners(self.shelf)
        self._absent: TTLCache[Key, bool] = TTLCache(maxsize=65536, ttl=ABSENT_S)
        self._names: TTLCache[str | None, list[Key]] = TTLCache(maxsize=4096, ttl=ABSENT_S)

    def lease_now(self, name: str, tenant: str | None, *, by_client: bool = False, loaded: bool = True) -> Lease | None:
        """A lease on an adapter that can serve at once; None when that takes a look at the disk, or a load.

        Args:
            by_client: the client itself named it, which `client_may_name` may forbid.
            loaded: its weights must be in the engine's memory; else it is enough that it is known.
        """
        for key in self._keys(name, tenant, by_client):
            held = self.shelf.held.get(key)
            if held is not None and (version := held.version) is not None:
                if self.loader.is_resident(version.id):
                    return self._lease(held, version)
                if loaded:
                    return None
                # What the engine may not be able to load must not be asked for around us.
                known = self.registry.is_listed(version)
                model = self.registry.listed(version) if known else self.registry.unlisted(version)
                return self._lease(held, version, model)
            if key not in self._absent:
                return None
        return None

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> Lease:
        """A lease on the version that serves `name` for a tenant, found, checked, copied and loaded if need be.

        Raises:
            UnknownAdapter: there is none, or none that this client may name.
            AnothersAdapter: there is one, and it is another tenant's; a client that names it is not told so.
            NotLeased: there is one, and it cannot be served.
        """
        try:
            return await self._lease_first(name, tenant, by_client)
        except NotLeased:
            if not by_client and await self.is_anothers(name, tenant):
                raise AnothersAdapter(f"adapter {name!r} is another tenant's") from None
            raise

    async def _lease_first(self, name: str, tenant: str | None, by_client: bool) -> Lease:
        for key in self._keys(name, tenant, by_client):
            held = self.shelf.held.get(key)
            if held is None or held.version is None:
                if key in self._absent:
                    continue
                try:
                    await self.shelf.look(key)
                except UnknownAdapter:
                    if key.tenant is not None:
                        self._absent[key] = True
                    continue
                held = self.shelf.held.get(key)
            if held is None or (version := held.version) is None:
                raise NotLeased("it was taken away just now")
            self.shelf.hold(version)
            try:
                await self.shelf.load(version)
                return self._lease(held, version)
            finally:
                self.shelf.let_go(version)
        raise UnknownAdapter(f"there is no adapter {name!r}")

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        """Whether there is an adapter of this name, as far as that can be told without checking and loading it."""
        for key in self.catalogue.keys(name, tenant):
            held = self.shelf.held.get(key)
            if held is not None and held.version is not None:
                return True
            if await self.shelf.on_disk(lambda key=key: self.shelf.place(key)) is not None:
                return held is None or held.refused is None
        return False

    async def is_anothers(self, name: str, tenant: str | None) -> bool:
        """Whether an adapter is another tenant's, and neither this one's nor everybody's."""
        return await self._owners.is_anothers(name, tenant)

    async def names(self, tenant: str | None) -> list[str]:
        """The adapters that this tenant may name, but for those that were found to be unfit."""
        keys = self._names.get(tenant)
        if keys is None:
            keys = self._names[tenant] = await self.shelf.on_disk(lambda: self.catalogue.names(tenant))
        fit = (
            key.name for key in keys if (held := self.shelf.held.get(key)) is None or held.version or not held.refused
        )
        return list(dict.fromkeys(fit))

    def owns(self, engine_name: str) -> bool:
        """Whether vLLM has this name because of us."""
        return self.shelf.ledger.is_engine_name(engine_name)

    async def report(self) -> dict[str, Any]:
        """Every adapter, where it is and what it takes, for JSON."""
        return await report(self)

    def unread(self) -> AbstractContextManager[None]:
        """While a request runs that was not looked into: no version that it may use goes away."""
        return self.board.unread()

    def _keys(self, name: str, tenant: str | None, by_client: bool) -> Iterator[Key]:
        keys = self.catalogue.keys(name, tenant)
        return (key for key in keys if self.catalogue.may_name(key)) if by_client else keys

    def _lease(self, held: Held, version: Version, model: str | None = None) -> Lease:
        held.used = time.time()
        self.shelf.hold(version)
        return Lease(version, model or self._model(version), self.shelf, self.slots)

    def _model(self, version: Version) -> str:
        """What vLLM's registry calls a version, which it must be able to load from now on."""
        everybody = version.tenant is None and self.catalogue.client_may_name == "all"
        return self.registry.listed(version) if everybody else self.registry.unlisted(version)

    async def prepare(self, names: Iterable[str]) -> dict[str, str]:
        """Takes declared adapters in before the first request, as many of them as the engine keeps in memory.

        Returns why some cannot be served, by name.
        """
        refused: dict[str, str] = {}
        pause, self.loader.max_per_s = self.loader.max_per_s, 0  # nobody waits meanwhile
        try:
            for name in list(names)[: self.loader.capacity]:
                try:
                    version = await self.shelf.look(Key(name))
                    await self.shelf.load(version)
                    self._model(version)
                except NotLeased as reason:
                    refused[name] = str(reason)
        finally:
            self.loader.max_per_s = pause
        return refused

    async def configure(self, catalogue: Catalogue, settings: AdapterSettings) -> None:
        """Follows another configuration from now on; requests under way keep what they have."""
        self.catalogue = self.shelf.catalogue = catalogue
        self.slots.max_wait_s = settings.max_wait_ms / 1000
        self.loader.max_per_s = settings.max_loads_per_s
        self._owners = Owners(self.shelf)
        self._absent.clear()
        self._names.clear()
        places = await self.shelf.on_disk(lambda: {key: self.shelf.place(key) for key in list(self.shelf.held)})
        for key, place in places.items():
            if place is None:
                await self.shelf.rest(key)
                self.shelf.drop(key)
            elif (held := self.shelf.held.get(key)) is not None and place != held.place:
                held.place = place
                self.shelf.start_look(key)
        for version in [version for version in self.shelf.ledger.versions.values() if self.registry.is_listed(version)]:
            if catalogue.client_may_name != "all":
                # Not at once: a request with this name may be on its way into vLLM's handler.
                asyncio.get_running_loop().call_later(UNLIST_S, self.registry.unlist, version)
