"""Cache of tool answers that the tool allows to be reused (field `keep`)."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from cachetools import TLRUCache
from msgspec.structs import replace

from vllm_lora_router.classifiers.mcp.answers import CachePolicy
from vllm_lora_router.classifiers.mcp.arguments import sent_text
from vllm_lora_router.types import Classification, Query

MAX_BYTES = 32 * 2**20
# Size of an entry apart from its texts: the key, the times and the objects of the classification.
OVERHEAD_BYTES = 1_500


@dataclass(frozen=True, slots=True)
class _Entry:
    classification: Classification
    seconds: float
    size_bytes: int


class AnswerCache:
    """The answer cache of one process. Tenants never share answers, whatever the tool allows.

    Entries are found by a digest, because texts are long, and their sizes are limited together.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_BYTES) -> None:
        self.hits = 0
        self._entries: TLRUCache[bytes, _Entry] = TLRUCache(
            max_bytes,
            ttu=lambda _, entry, now: now + entry.seconds,
            timer=clock,
            getsizeof=lambda entry: entry.size_bytes,
        )

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def get(self, query: Query) -> Classification | None:
        """Return an earlier classification that is still valid, or None."""
        if not self._entries:
            return None
        entry = self._entries.get(_tenant_key(query)) or self._entries.get(_text_key(query))
        if entry is None:
            return None
        self.hits += 1
        return entry.classification

    def put(self, query: Query, classification: Classification, policy: CachePolicy | None) -> None:
        """Store a classification if the tool's answer allows it."""
        if policy is None or policy.by == "nothing" or policy.seconds <= 0:
            return
        key = _tenant_key(query) if policy.by == "tenant" else _text_key(query)
        size_bytes = OVERHEAD_BYTES + len(msgspec.json.encode(classification)) + 100 * len(classification.scores)
        if size_bytes <= self._entries.maxsize:
            self._entries[key] = _Entry(replace(classification, cached=True), policy.seconds, size_bytes)


def _tenant_key(query: Query) -> bytes:
    return _digest(repr(query.client.tenant))


def _text_key(query: Query) -> bytes:
    # The tool sees only this part of the text. It is short enough to be hashed on the event loop.
    return _digest(repr(query.client.tenant), sent_text(query.text))


def _digest(*texts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(b"%d:" % len(text) + text.encode("utf-8", "surrogatepass"))
    return digest.digest()
