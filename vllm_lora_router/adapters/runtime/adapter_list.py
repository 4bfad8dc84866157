"""List the adapters that exist. Of a source that does not answer, list those that are known."""

import asyncio

from cachetools import LRUCache

from vllm_lora_router.adapters.files.sources import Source
from vllm_lora_router.adapters.runtime.disk_calls import LONG_TIMEOUT_S
from vllm_lora_router.adapters.runtime.version_log import AdapterKey
from vllm_lora_router.adapters.runtime.version_manager import VersionManager
from vllm_lora_router.config.adapter_names import invalid_name_reason

# While a listing takes longer, the result of the last one is used.
MAX_WAIT_S = 0.5

# A source, and the tenant whose adapters are listed; None: the source has adapters of all tenants.
_Place = tuple[Source, str | None]


class AdapterList:
    """Lists the adapters in the sources; at most one listing of each place runs at a time."""

    def __init__(self, version_manager: VersionManager) -> None:
        self._manager = version_manager
        self._known: LRUCache[_Place, list[str]] = LRUCache(4096)
        self._listings: dict[_Place, asyncio.Task[list[str]]] = {}

    async def keys(self, tenant: str | None, *, everything: bool = False) -> list[AdapterKey]:
        """Return all adapters that exist and that this tenant may request by name.

        Args:
            everything: include the adapters that requests may only be routed to.
        """
        resolver = self._manager.resolver
        places = [(source, tenant if source.by_tenant else None) for source in resolver.sources_of(tenant)]
        keys = dict.fromkeys(map(AdapterKey, resolver.declared))
        listed = await asyncio.gather(*(self._names(place) for place in places))
        for (_, owner), names in zip(places, listed, strict=True):
            owned = (AdapterKey(name, owner) for name in names)
            keys |= dict.fromkeys(key for key in owned if not invalid_name_reason(str(key), (), resolver.reserved))
        return [key for key in keys if everything or resolver.client_may_request(key)]

    async def _names(self, place: _Place) -> list[str]:
        listing = self._listings.get(place)
        if listing is None:
            listing = self._listings[place] = asyncio.ensure_future(self._list(*place))
            listing.add_done_callback(lambda done: (self._listings.pop(place), done.cancelled() or done.exception()))
        known = self._known.get(place)
        await asyncio.wait({listing}, timeout=None if known is None else MAX_WAIT_S)
        if listing.done() and not listing.cancelled() and listing.exception() is None:
            return listing.result()
        return self._serving_names(place) if known is None else known

    async def _list(self, source: Source, tenant: str | None) -> list[str]:
        names = await self._manager.disk(source.root).run(lambda: source.names(tenant), LONG_TIMEOUT_S)
        self._known[source, tenant] = names
        return names

    def _serving_names(self, place: _Place) -> list[str]:
        source, tenant = place
        return [
            key.name
            for key, state in self._manager.states.items()
            if key.tenant == tenant and state.version and state.location and state.location.source == source.root
        ]
