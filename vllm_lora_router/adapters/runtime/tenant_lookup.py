"""Find which tenant owns an adapter that another tenant requested, without delaying requests."""

import asyncio
from collections.abc import Collection
from functools import partial
from itertools import islice

from cachetools import TTLCache

from vllm_lora_router.adapters.files.sources import LONGEST_NAME_BYTES, NotAllowedError, Source
from vllm_lora_router.adapters.runtime.disk_calls import LONG_TIMEOUT_S, NotAnsweringError
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.adapters.runtime.version_manager import VersionManager

# An answer decides only the reason that a request is given, never which adapter serves it. So it may be this old.
ANSWER_S = 1.0
# A lookup searches thousands of tenant folders; its result serves all requests for the name.
OWNERS_S = 5.0
# A request waits at most this long, however slow the file system is; a later request finds the cached result.
MAX_WAIT_S = 0.25


class TenantLookup:
    """Finds the tenants that have an adapter of a name, in the folders of all tenants.

    It looks up one name at a time and caches the results.
    """

    def __init__(self, version_manager: VersionManager) -> None:
        self._version_manager = version_manager
        self._answers: TTLCache[AdapterKey, bool] = TTLCache(maxsize=65536, ttl=ANSWER_S)
        self._owners: TTLCache[str, frozenset[str]] = TTLCache(maxsize=4096, ttl=OWNERS_S)
        self._lookup: asyncio.Task[None] | None = None

    async def belongs_to_other_tenant(self, name: str, tenant: str | None) -> bool:
        """Return whether another tenant has an adapter of this name, and neither this tenant nor all tenants do."""
        resolver = self._version_manager.resolver
        if not resolver.by_tenant or name in resolver.declared:
            return False
        if "/" in name:
            owner, _, own_name = name.partition("/")
            return owner != tenant and await self._has(owner, own_name)
        key = next(resolver.keys(name, tenant))
        if (answer := self._answers.get(key)) is not None:
            return answer
        if len(name) > LONGEST_NAME_BYTES or await self._may_exist(name, tenant):
            return False
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                answer = self._answers[key] = bool(await self._tenants_with(key) - {key.tenant})
                return answer
        except TimeoutError:
            return False

    async def _has(self, tenant: str, name: str) -> bool:
        for source in self._version_manager.resolver.tenant_sources:
            try:
                if await self._version_manager.disk(source.root).run(partial(source.contains, name, tenant)):
                    return True
            except NotAnsweringError:
                continue
        return False

    async def _may_exist(self, name: str, tenant: str | None) -> bool:
        # An adapter of this tenant that is not allowed or cannot be read counts as existing, so that its name is never
        # attributed to another tenant.
        manager = self._version_manager
        try:
            for key in manager.resolver.keys(name, tenant):
                if await manager.locate(key) is not None:
                    return True
            return False
        except (NotAllowedError, OSError):
            return True

    async def _tenants_with(self, key: AdapterKey) -> frozenset[str]:
        while (owners := self._owners.get(key.name)) is None:
            if serving := self._serving_tenants(key.name) - {key.tenant}:
                self._owners[key.name] = serving
            elif self._lookup is None or self._lookup.done():
                self._lookup = asyncio.ensure_future(self._search(key.name))
            else:
                await asyncio.shield(self._lookup)  # which may be for another name
        return owners

    def _serving_tenants(self, name: str) -> frozenset[str]:
        states = self._version_manager.states.items()
        return frozenset(key.tenant for key, state in states if key.name == name and key.tenant and state.version)

    async def _search(self, name: str) -> None:
        sources = self._version_manager.resolver.tenant_sources
        tenants = await asyncio.gather(*(self._tenants_in(source, name) for source in sources))
        self._owners[name] = frozenset().union(*tenants)

    async def _tenants_in(self, source: Source, name: str) -> Collection[str]:
        # Two tenants are enough to tell whether another tenant has an adapter of this name.
        try:
            disk = self._version_manager.disk(source.root)
            return await disk.run(lambda: frozenset(islice(source.tenants(name), 2)), LONG_TIMEOUT_S)
        except NotAnsweringError:
            return ()
