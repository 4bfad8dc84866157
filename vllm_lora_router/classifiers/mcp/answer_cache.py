"""Answers that a tool allows to be given again, to those whom it allows."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cachetools import TLRUCache
from msgspec.structs import replace

from vllm_lora_router.classifiers.mcp.answers import Keep
from vllm_lora_router.types import Classification, Query

MOST = 50_000  # tenants, and texts of tenants


@dataclass(frozen=True, slots=True)
class _Entry:
    classification: Classification
    seconds: float


class Kept:
    """Of one process. A tenant is never given what was answered to another, whatever the tool says."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.hits = 0
        self._found: TLRUCache[Hashable, _Entry] = TLRUCache(
            MOST, ttu=lambda _, entry, now: now + entry.seconds, timer=clock
        )

    def __len__(self) -> int:
        return len(self._found)

    def get(self, query: Query) -> Classification | None:
        """What was answered before and still holds."""
        entry = self._found.get(_by_tenant(query)) or self._found.get(_by_text(query))
        if entry is None:
            return None
        self.hits += 1
        return entry.classification

    def put(self, query: Query, classification: Classification, keep: Keep | None) -> None:
        if keep is not None and keep.by != "nothing" and keep.seconds > 0:
            key = _by_tenant(query) if keep.by == "tenant" else _by_text(query)
            self._found[key] = _Entry(replace(classification, cached=True), keep.seconds)


def _by_tenant(query: Query) -> Hashable:
    return (query.client.tenant,)


def _by_text(query: Query) -> Hashable:
    return (query.client.tenant, query.text)
