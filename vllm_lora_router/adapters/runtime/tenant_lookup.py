"""Find which tenant owns an adapter that another tenant requested, without delaying requests."""

import asyncio

from cachetools import TTLCache

from vllm_lora_router.adapters.files.sources import LONGEST_NAME_BYTES, NotAllowedError
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
        manager, resolver = self._version_manager, self._version_manager.resolver
        if not resolver.by_tenant or name in resolver.declared:
            return False
        if "/" in name:
            return await manager.run_in_thread(lambda: resolver.tenant_of(name)) not in (None, tenant)
        key = next(resolver.keys(name, tenant))
        if (answer := self._answers.get(key)) is not None:
            return answer
        if len(name) > LONGEST_NAME_BYTES or await manager.run_in_thread(lambda: self._may_exist(name, tenant)):
            return False
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                answer = self._answers[key] = bool(await self._tenants_with(key) - {key.tenant})
                return answer
        except TimeoutError:
            return False

    def _may_exist(self, name: str, tenant: str | None) -> bool:
        # An adapter of this tenant that is not allowed or cannot be read counts as existing, so that its name is never
        # attributed to another tenant.
        resolver = self._version_manager.resolver
        try:
            return any(resolver.locate(key) is not None for key in resolver.keys(name, tenant))
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
        manager = self._version_manager
        self._owners[name] = await manager.run_in_thread(lambda: manager.resolver.tenants_with(name))
