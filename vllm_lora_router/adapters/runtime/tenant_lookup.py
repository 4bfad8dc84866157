"""Whose an adapter is that a tenant asks for in vain: found out without holding anybody up."""

import asyncio

from cachetools import TTLCache

from vllm_lora_router.adapters.files.sources import LONGEST_NAME_BYTES, NotAllowed
from vllm_lora_router.adapters.runtime.version_log import Key
from vllm_lora_router.adapters.runtime.version_manager import Shelf

# Only the reason that a request is given may be this old, never what serves it.
ANSWER_S = 1.0
# Of thousands of folders; it serves all who ask for the name.
OWNERS_S = 5.0
# Nor does a request wait for longer than this, however slow the file system: the next one may know.
PATIENCE_S = 0.25


class Owners:
    """The tenants that have an adapter of a name, looked for in all their folders: one name at a time, and kept."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._answers: TTLCache[Key, bool] = TTLCache(maxsize=65536, ttl=ANSWER_S)
        self._owners: TTLCache[str, frozenset[str]] = TTLCache(maxsize=4096, ttl=OWNERS_S)
        self._looking: asyncio.Task[None] | None = None

    async def is_anothers(self, name: str, tenant: str | None) -> bool:
        """Whether an adapter is another tenant's, and neither this one's nor everybody's."""
        shelf, catalogue = self._shelf, self._shelf.catalogue
        if not catalogue.by_tenant or name in catalogue.declared:
            return False
        if "/" in name:
            return await shelf.on_disk(lambda: catalogue.owner(name)) not in (None, tenant)
        key = next(catalogue.keys(name, tenant))
        if (answer := self._answers.get(key)) is not None:
            return answer
        if len(name) > LONGEST_NAME_BYTES or await shelf.on_disk(lambda: self._is_there(name, tenant)):
            return False
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = self._answers[key] = bool(await self._of(key) - {key.tenant})
                return answer
        except TimeoutError:
            return False

    def _is_there(self, name: str, tenant: str | None) -> bool:
        # As far as anybody can tell: what is refused or cannot be read is not found to be somebody else's.
        catalogue = self._shelf.catalogue
        try:
            return any(catalogue.place(key) is not None for key in catalogue.keys(name, tenant))
        except (NotAllowed, OSError):
            return True

    async def _of(self, key: Key) -> frozenset[str]:
        while (owners := self._owners.get(key.name)) is None:
            if known := self._known(key.name) - {key.tenant}:
                self._owners[key.name] = known
            elif self._looking is None or self._looking.done():
                self._looking = asyncio.ensure_future(self._look(key.name))
            else:
                await asyncio.shield(self._looking)  # perhaps it is for another name
        return owners

    def _known(self, name: str) -> frozenset[str]:
        held = self._shelf.held.items()
        return frozenset(key.tenant for key, one in held if key.name == name and key.tenant and one.version)

    async def _look(self, name: str) -> None:
        self._owners[name] = await self._shelf.on_disk(lambda: self._shelf.catalogue.owners(name))
