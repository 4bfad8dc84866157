"""The adapters of a server, as the requests of one API-server process use them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cachetools import LRUCache, TTLCache

from vllm_lora_router.adapters.files.sources import NotAllowedError, signature
from vllm_lora_router.adapters.runtime.adapter_list import AdapterList
from vllm_lora_router.adapters.runtime.adapter_report import report
from vllm_lora_router.adapters.runtime.disk_calls import NotAnsweringError
from vllm_lora_router.adapters.runtime.importer import Importer
from vllm_lora_router.adapters.runtime.lease import (
    AdapterUnavailableError,
    Lease,
    LeaseRefusedError,
    MayNotExistError,
    OtherTenantsAdapterError,
    UnknownAdapterError,
)
from vllm_lora_router.adapters.runtime.loader import Engine, Loader
from vllm_lora_router.adapters.runtime.resolver import Location, Resolver
from vllm_lora_router.adapters.runtime.slot_scheduler import SlotScheduler
from vllm_lora_router.adapters.runtime.tenant_lookup import TenantLookup
from vllm_lora_router.adapters.runtime.version_log import AdapterKey, Version, VersionLog
from vllm_lora_router.adapters.runtime.version_manager import AdapterState, VersionManager
from vllm_lora_router.adapters.runtime.vllm_names import VllmNames
from vllm_lora_router.config.schema import AdapterSettings
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.usage_table import UsageTable

# A new adapter of a tenant that has the name of a shared one is found at most this much later.
ABSENT_S = 1.0
# A request that was forwarded needs its public name until vLLM has looked it up.
WITHDRAW_S = 5.0


class AdapterPool:
    """The adapters of one process: grants leases, and imports and loads adapters for them."""

    def __init__(
        self,
        run: RunDirectory,
        version_log: VersionLog,
        usage: UsageTable,
        resolver: Resolver,
        importer: Importer,
        engine: Engine,
        loader: Loader,
        slot_scheduler: SlotScheduler,
    ) -> None:
        self.resolver = resolver
        self.engine, self.loader, self.slot_scheduler, self.usage = engine, loader, slot_scheduler, usage
        self.vllm_names = VllmNames(engine)
        self.version_manager = VersionManager(run, version_log, usage, resolver, importer, loader, self.vllm_names)
        self._tenant_lookup = TenantLookup(self.version_manager)
        self._adapter_list = AdapterList(self.version_manager)
        self._absent: LRUCache[AdapterKey, float] = LRUCache(maxsize=65536)  # when its absence was seen
        self._adapters: TTLCache[str | None, list[AdapterKey]] = TTLCache(maxsize=4096, ttl=ABSENT_S)

    def lease_now(
        self, name: str, tenant: str | None, *, by_client: bool = False, require_loaded: bool = True
    ) -> Lease | None:
        """Return a lease on an adapter that can serve at once; None if that needs a disk read or a load.

        Args:
            by_client: the client requested the adapter by name, which `client_may_name` may forbid.
            require_loaded: the adapter must be in the engine's memory. Otherwise it is enough that it was imported.
        """
        for key in self._keys(name, tenant, by_client):
            state = self.version_manager.states.get(key)
            if state is not None and (version := state.version) is not None:
                if self.loader.is_resident(version.id) and not self.vllm_names.is_overwritten(version):
                    try:
                        return self._lease(state, version)
                    except AdapterUnavailableError:
                        return None
                if require_loaded:
                    return None
                # Clients must not be able to request, around the router, a version that may not load.
                is_public = self.vllm_names.is_public(version)
                names = self.vllm_names
                model = names.public_name(version) if is_public else names.private_name(version)
                return self._lease(state, version, model)
            if not self._is_absent(key):
                return None
        return None

    async def lease(self, name: str, tenant: str | None, *, by_client: bool = False) -> Lease:
        """Return a lease on the version that serves `name` for a tenant; import and load it first if needed.

        Args:
            by_client: the client requested the adapter by name, which `client_may_name` may forbid.

        Raises:
            UnknownAdapterError: there is no such adapter, or the client may not request it by name.
            OtherTenantsAdapterError: it belongs to another tenant. Not raised if `by_client`, so that a client does
                not learn the names of other tenants' adapters.
            AdapterUnavailableError: it cannot serve now, because a resource of the server has run out or a file system
                does not answer.
            LeaseRefusedError: it cannot be served.
        """
        try:
            return await self._lease_first(name, tenant, by_client)
        except LeaseRefusedError:
            if not by_client and await self.belongs_to_other_tenant(name, tenant):
                raise OtherTenantsAdapterError(f"adapter {name!r} belongs to another tenant") from None
            raise

    async def _lease_first(self, name: str, tenant: str | None, by_client: bool) -> Lease:
        manager = self.version_manager
        for key in self._keys(name, tenant, by_client):
            state = manager.states.get(key)
            if state is None or state.version is None:
                if self._is_absent(key):
                    continue
                try:
                    await manager.refresh(key)
                except UnknownAdapterError:
                    if key.tenant is not None:
                        self._absent[key] = time.monotonic()
                    continue
                except MayNotExistError:
                    if key in self._absent:
                        continue  # the tenant had no such adapter when its source last answered
                    if by_client and self._is_only_in_vllm(name):
                        raise UnknownAdapterError(f"{name!r} is a name in vLLM only") from None
                    raise
                state = manager.states.get(key)
            if state is None or (version := state.version) is None:
                raise LeaseRefusedError("it was removed a moment ago")
            manager.retain(version)
            try:
                if self.vllm_names.is_overwritten(version):
                    self.loader.forget(version.id)
                    await self.engine.unload(version.id)
                await manager.load(version)
                return self._lease(state, version)
            finally:
                manager.release(version)
        raise UnknownAdapterError(f"there is no adapter {name!r}")

    async def can_serve(self, name: str, tenant: str | None) -> bool:
        """Return whether an adapter of this name exists, without validating or loading it."""
        for key in self.resolver.keys(name, tenant):
            state = self.version_manager.states.get(key)
            if state is not None and state.version is not None:
                return True
            if await self._locate(key) not in (None, "unknown"):
                return key not in self.version_manager.shortages and (state is None or state.rejection is None)
        return False

    async def belongs_to_other_tenant(self, name: str, tenant: str | None) -> bool:
        """Return whether another tenant has an adapter of this name, and neither this tenant nor all tenants do."""
        return await self._tenant_lookup.belongs_to_other_tenant(name, tenant)

    async def names(self, tenant: str | None) -> list[str]:
        """Return the names of the adapters that this tenant may request, without those whose files were rejected."""
        keys = self._adapters.get(tenant)
        if keys is None:
            keys = await self._adapter_list.keys(tenant)
            self._adapters[tenant] = keys
        states = self.version_manager.states
        names = (key.name for key in keys if (state := states.get(key)) is None or state.version or not state.rejection)
        return list(dict.fromkeys(names))

    def owns(self, engine_name: str) -> bool:
        """Return whether the router registered this name in vLLM."""
        return self.version_manager.version_log.is_engine_name(engine_name)

    def health(self) -> dict[str, Any]:
        """Return the number of adapters that cannot be loaded now, and a reason, as values for JSON."""
        manager = self.version_manager
        problems = [
            *(shortage.problem for shortage in manager.shortages.values()),
            *(disk.problem for disk in manager.disks.values() if disk.problem is not None),
        ]
        return {"unavailable": len(manager.shortages), "problem": next(iter(problems), None)}

    async def report(self) -> dict[str, Any]:
        """Return all adapters with their location and memory use, as values for JSON."""
        existing = await self._adapter_list.keys(None, everything=True)
        return await report(self.version_manager, existing, self.engine, self.slot_scheduler)

    def track_unknown_use(self) -> AbstractContextManager[None]:
        """Mark that a request with unknown adapters is running, so that no version is retired."""
        return self.usage.track_unknown_use()

    def _keys(self, name: str, tenant: str | None, by_client: bool) -> Iterator[AdapterKey]:
        keys = self.resolver.keys(name, tenant)
        return (key for key in keys if self.resolver.client_may_request(key)) if by_client else keys

    def _is_only_in_vllm(self, name: str) -> bool:
        # vLLM's own route has loaded it, or it is the name of one version of an adapter.
        is_adapter = AdapterKey(name) in self.version_manager.version_log.serving
        return not is_adapter and self.engine.registration(name) is not None

    def _is_absent(self, key: AdapterKey) -> bool:
        seen = self._absent.get(key)
        return seen is not None and time.monotonic() - seen < ABSENT_S

    def _lease(self, state: AdapterState, version: Version, model: str | None = None) -> Lease:
        state.last_used = time.time()
        self.version_manager.retain(version)
        return Lease(version, model or self._model(version), self.version_manager.release, self.slot_scheduler)

    def _model(self, version: Version) -> str:
        """Register a version in vLLM, which must be able to load it from now on, and return its registered name."""
        is_public = version.tenant is None and self.resolver.client_may_name == "all"
        return self.vllm_names.public_name(version) if is_public else self.vllm_names.private_name(version)

    async def _all_answer(self, folders: Iterable[Path]) -> bool:
        calls = (self.version_manager.disk(folder.parent).run(partial(signature, folder)) for folder in folders)
        results = await asyncio.gather(*calls, return_exceptions=True)
        return not any(isinstance(result, NotAnsweringError) for result in results)

    async def _locate(self, key: AdapterKey) -> Location | Literal["unknown"] | None:
        try:
            return await self.version_manager.locate(key)
        except NotAllowedError:
            return None
        except OSError:
            return "unknown"

    async def preload(self, names: Iterable[str]) -> dict[str, str]:
        """Import and load declared adapters before the first request, as many as the engine keeps in memory.

        Returns:
            The adapters that cannot be served: the reason by name.
        """
        refused: dict[str, str] = {}
        max_per_s, self.loader.max_per_s = self.loader.max_per_s, 0  # no stream is delayed yet
        try:
            for name in list(names)[: self.loader.capacity]:
                try:
                    version = await self.version_manager.refresh(AdapterKey(name))
                    await self.version_manager.load(version)
                    self._model(version)
                except LeaseRefusedError as reason:
                    refused[name] = str(reason)
        finally:
            self.loader.max_per_s = max_per_s
        return refused

    async def configure(self, resolver: Resolver, settings: AdapterSettings) -> None:
        """Follow another configuration from now on. Requests that are running keep their leases."""
        manager = self.version_manager
        if resolver.sources != self.resolver.sources:
            self._absent.clear()
        self.resolver = manager.resolver = resolver
        self.slot_scheduler.max_wait_s = settings.max_wait_ms / 1000
        self.loader.max_per_s = settings.max_loads_per_s
        manager.importer.reserved = resolver.reserved
        self._tenant_lookup = TenantLookup(manager)
        self._adapters.clear()
        # The default limit depends on the sizes of the declared adapters; if they are not known, the limit stays.
        if settings.max_disk_gb is not None or await self._all_answer(resolver.declared_folders):
            store = manager.importer.snapshots
            await manager.run_in_thread(lambda: store.set_limit(settings.max_disk_gb, resolver.declared_folders))
        keys = list(manager.states)
        for key, location in zip(keys, await asyncio.gather(*map(self._locate, keys)), strict=True):
            if location == "unknown":
                continue
            if location is None:
                await manager.deactivate(key)
                manager.forget(key)
            elif (state := manager.states.get(key)) is not None and location != state.location:
                state.location = location
                manager.start_refresh(key)
        versions = manager.version_log.versions.values()
        for version in [version for version in versions if self.vllm_names.is_public(version)]:
            if resolver.client_may_name != "all":
                # Not at once: vLLM may still have to look up the name for a request that was forwarded.
                asyncio.get_running_loop().call_later(WITHDRAW_S, self.vllm_names.withdraw_public_names, version)
