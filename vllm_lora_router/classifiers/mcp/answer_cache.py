"""Cache of tool answers, for answers whose `keep` field allows it."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cachetools import TLRUCache
from msgspec.structs import replace

from vllm_lora_router.classifiers.mcp.answers import CachePolicy
from vllm_lora_router.types import Classification, Query

MAX_ENTRIES = 50_000  # one for each tenant, or for each tenant and text


@dataclass(frozen=True, slots=True)
class _Entry:
    classification: Classification
    seconds: float


class AnswerCache:
    """The answer cache of one process. Tenants never share answers, whatever the tool allows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.hits = 0
        self._entries: TLRUCache[Hashable, _Entry] = TLRUCache(
            MAX_ENTRIES, ttu=lambda _, entry, now: now + entry.seconds, timer=clock
        )

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, query: Query) -> Classification | None:
        """Return an earlier classification that is still valid, or None."""
        entry = self._entries.get(_tenant_key(query)) or self._entries.get(_text_key(query))
        if entry is None:
            return None
        self.hits += 1
        return entry.classification

    def put(self, query: Query, classification: Classification, policy: CachePolicy | None) -> None:
        """Store a classification if the tool's answer allows it."""
        if policy is not None and policy.by != "nothing" and policy.seconds > 0:
            key = _tenant_key(query) if policy.by == "tenant" else _text_key(query)
            self._entries[key] = _Entry(replace(classification, cached=True), policy.seconds)


def _tenant_key(query: Query) -> Hashable:
    return (query.client.tenant,)


def _text_key(query: Query) -> Hashable:
    return (query.client.tenant, query.text)
