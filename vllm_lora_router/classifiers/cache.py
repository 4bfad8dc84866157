"""Classifications that were made before: the same classifier over the same text says the same again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cachetools import LRUCache
from msgspec.structs import replace

from vllm_lora_router.types import Classification, Method, Query

MAX_BYTES = 16 * 2**20
# What one costs beside its own text: the key, and the objects of its score, its scale and its threshold.
OVERHEAD_BYTES = 700


@dataclass
class Cache:
    """Of one process, over all configurations: what a fingerprint stands for never changes."""

    max_bytes: int = MAX_BYTES
    hits: int = 0
    misses: int = 0
    _found: LRUCache[bytes, Classification] = field(init=False)

    def __post_init__(self) -> None:
        self._found = LRUCache(self.max_bytes, getsizeof=_bytes)

    @property
    def used_bytes(self) -> int:
        return int(self._found.currsize)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: bytes) -> Classification | None:
        found = self._found.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: bytes, classification: Classification) -> None:
        if _bytes(classification) <= self.max_bytes:
            self._found[key] = replace(classification, cached=True)


class Asked(Protocol):
    """A classifier whose answers are worth keeping."""

    method: Method
    reads: frozenset[str]
    fingerprint: str

    async def classify(self, queries: Sequence[Query]) -> list[Classification]: ...


class CachedClassifier:
    """Asks the classifier behind it only what it has not answered before."""

    def __init__(self, behind: Asked, cache: Cache, *, by_tenant: bool = False) -> None:
        """`by_tenant` keeps tenants apart: none can tell by the time it takes what another has asked."""
        self.behind = behind
        self.cache = cache
        self._by_tenant = by_tenant
        self.method: Method = behind.method
        self.reads = behind.reads
        self.fingerprint = behind.fingerprint

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        keys = [self._key(query) for query in queries]
        found = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        left = {key: query for key, query in zip(keys, queries, strict=True) if found[key] is None}
        if left:
            for key, classification in zip(left, await self.behind.classify(list(left.values())), strict=True):
                found[key] = classification
                self.cache.put(key, classification)
        return [classification for key in keys if (classification := found[key]) is not None]

    def _key(self, query: Query) -> bytes:
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        if self._by_tenant:
            digest.update(repr(query.client.tenant).encode("utf-8", "surrogatepass"))
        for name in sorted(self.reads):
            digest.update(b"\0" + repr(getattr(query, name)).encode("utf-8", "surrogatepass"))
        return digest.digest()


def _bytes(classification: Classification) -> int:
    return OVERHEAD_BYTES + 100 * len(classification.scores) + len(repr(classification.evidence))
