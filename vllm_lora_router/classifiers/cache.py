"""Cache of classifications. The same classifier gives the same text the same classification."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cachetools import LRUCache
from msgspec.structs import replace

from vllm_lora_router.classifiers import Classifier
from vllm_lora_router.types import Classification, Method, Query

MAX_BYTES = 16 * 2**20
# Size of an entry apart from its texts: the key and the objects for score, scale and threshold.
OVERHEAD_BYTES = 700
# Texts are hashed in pieces of this size. Longer texts are hashed on another thread: four million characters take about
# 10 ms, and the event loop can run between the pieces.
CHUNK_CHARACTERS = 65_536


@dataclass
class Cache:
    """An LRU cache of one process. All configurations share it, because the meaning of a fingerprint never changes."""

    max_bytes: int = MAX_BYTES
    hits: int = 0
    misses: int = 0
    _entries: LRUCache[bytes, Classification] = field(init=False)

    def __post_init__(self) -> None:
        self._entries = LRUCache(self.max_bytes, getsizeof=_size_bytes)

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Classification | None:
        classification = self._entries.get(key)
        if classification is None:
            self.misses += 1
        else:
            self.hits += 1
        return classification

    def put(self, key: bytes, classification: Classification) -> None:
        if _size_bytes(classification) <= self.max_bytes:
            self._entries[key] = replace(classification, cached=True)


class CachedClassifier:
    """A classifier that answers from a cache and passes only new queries to the wrapped classifier.

    Tenants share no entries, so that no tenant can learn from response times what another tenant sent.
    """

    def __init__(self, classifier: Classifier, cache: Cache) -> None:
        self.classifier = classifier
        self.cache = cache
        self.method: Method = classifier.method
        self.reads = classifier.reads
        self.fingerprint = classifier.fingerprint

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        if sum(map(self._length, queries)) > CHUNK_CHARACTERS:
            keys = await asyncio.to_thread(lambda: [self._key(query) for query in queries])
        else:
            keys = [self._key(query) for query in queries]
        cached = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing = {key: query for key, query in zip(keys, queries, strict=True) if cached[key] is None}
        if missing:
            for key, result in zip(missing, await self.classifier.classify(list(missing.values())), strict=True):
                cached[key] = result
                self.cache.put(key, result)
        return [classification for key in keys if (classification := cached[key]) is not None]

    def _key(self, query: Query) -> bytes:
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        _update(digest, query.client.tenant)
        for name in sorted(self.reads):
            _update(digest, getattr(query, name))
        return digest.digest()

    def _length(self, query: Query) -> int:
        texts = [query.text] if "text" in self.reads else []
        return sum(map(len, (*texts, *query.turns) if "turns" in self.reads else texts))


def _update(digest: hashlib.blake2b, value: object) -> None:
    """Add a value to a digest. The length before each text keeps `("ab", "c")` and `("a", "bc")` apart."""
    if isinstance(value, tuple):
        digest.update(b"(%d" % len(value))
        for item in value:
            _update(digest, item)
    elif isinstance(value, str):
        digest.update(b'"%d:' % len(value))
        for start in range(0, len(value), CHUNK_CHARACTERS):
            digest.update(value[start : start + CHUNK_CHARACTERS].encode("utf-8", "surrogatepass"))
    else:
        digest.update(b"=")  # keeps None and "None" apart
        _update(digest, repr(value))


def _size_bytes(classification: Classification) -> int:
    return OVERHEAD_BYTES + 100 * len(classification.scores) + len(repr(classification.evidence))
