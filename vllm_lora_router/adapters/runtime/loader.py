"""Load adapters into the engine: one at a time across all processes, at a limited rate.

The engine loads between its steps, so every stream waits for the duration of one load.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Protocol

from vllm_lora_router.adapters.runtime.version_log import Version
from vllm_lora_router.coordination.run_directory import RunDirectory

logger = logging.getLogger("vllm_lora_router.adapters")


class AdapterMetrics(Protocol):
    """The metrics that adapters report."""

    def count_load(self, seconds: float) -> None:
        """Count a load that succeeded, and observe its duration."""
        ...

    def count_failed_load(self) -> None:
        """Count a load that the engine refused."""
        ...

    def set_unavailable_adapters(self, number: int) -> None:
        """Set the number of adapters that cannot be loaded now because a resource of the server has run out."""
        ...

    def set_not_answering(self, number: int) -> None:
        """Set the number of file systems of adapters that do not answer."""
        ...

    def set_snapshot_bytes(self, used_bytes: int) -> None:
        """Set the size of the snapshot store on disk."""
        ...


class LoadError(RuntimeError):
    """The engine refused to load an adapter."""


class Engine(Protocol):
    """The operations of the serving engine that adapters need."""

    async def load(self, version: Version) -> None:
        """Load the version's folder into the engine's memory; mark it as recently used if it is loaded already.

        Raises:
            LoadError: the engine refused it, and holds no part of it.
        """
        ...

    async def unload(self, identifier: int) -> None:
        """Remove a version from the engine's memory; no effect if it is not loaded."""
        ...

    async def loaded(self) -> Collection[int]:
        """Return the ids of the versions in the engine's memory; the first engine's if there are several engines."""
        ...

    def register(self, key: str, version: Version) -> None:
        """Make vLLM answer requests whose `model` is `key` by this version."""
        ...

    def registration(self, key: str) -> tuple[int, str] | None:
        """Return the id and the folder of the adapter that answers requests whose `model` is `key`; None if none does.

        vLLM's own routes to load and unload adapters change them too.
        """
        ...

    def unregister(self, key: str) -> None:
        """Make vLLM refuse requests whose `model` is `key`."""
        ...


class Loader:
    """Loads versions into the engine, and tracks which ones are in its memory as far as one process can know."""

    def __init__(
        self,
        engine: Engine,
        run: RunDirectory,
        *,
        capacity: int,
        max_per_s: float,
        warm: Callable[[Version], None],
    ) -> None:
        """
        Args:
            capacity: number of adapters that the engine keeps (`--max-cpu-loras`); it evicts the least recently used.
            max_per_s: maximum number of loads a second across all processes; 0 sets no limit.
            warm: reads a version's files into the page cache before the engine does; called on a thread.
        """
        self.capacity = capacity
        self.max_per_s = max_per_s
        self._engine = engine
        self._run = run
        self._warm = warm
        self._lock = asyncio.Lock()
        self._resident: OrderedDict[int, None] = OrderedDict()
        self._last_load = 0.0  # `time.monotonic()`
        self.seconds: dict[int, float] = {}  # duration of the last load, by version id
        self.metrics: AdapterMetrics | None = None

    def is_resident(self, version: int) -> bool:
        """Return whether the engine should have the version in memory, and mark it as recently used.

        If the engine has evicted it after all, the engine reads the snapshot again.
        """
        if version not in self._resident:
            return False
        self._resident.move_to_end(version)
        return True

    async def load(self, version: Version) -> None:
        """Load the version, unless the engine has it in memory already.

        Raises:
            LoadError: the engine refused it.
            OSError: a resource of this process or of the run directory has run out.
        """
        await asyncio.to_thread(self._warm, version)
        async with self._lock:
            if self.is_resident(version.id):
                return
            with self._run.opened("load") as lock:
                await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
                if version.id not in await self._engine.loaded():
                    await self._limit_rate(lock)
                    await self._load(version)
            self._resident[version.id] = None
            while len(self._resident) > self.capacity:
                self._resident.popitem(last=False)

    def forget(self, version: int) -> None:
        """Record that the engine has unloaded the version."""
        self._resident.pop(version, None)
        self.seconds.pop(version, None)

    async def _load(self, version: Version) -> None:
        start = time.monotonic()
        try:
            await self._engine.load(version)
        except LoadError:
            if self.metrics is not None:
                self.metrics.count_failed_load()
            raise
        self.seconds[version.id] = time.monotonic() - start
        if self.metrics is not None:
            self.metrics.count_load(self.seconds[version.id])
        logger.info(
            "adapter %s: version %s loaded in %.0f ms",
            version.key,
            version.digest[:8],
            self.seconds[version.id] * 1000,
        )

    async def _limit_rate(self, lock: int) -> None:
        # The locked file holds the time of the last load, by a clock that all processes share.
        if not self.max_per_s:
            return
        last = max(float(os.pread(lock, 32, 0) or 0), self._last_load)
        now = time.monotonic()
        pause = min(last + 1 / self.max_per_s - now, 1 / self.max_per_s)
        if pause > 0:
            await asyncio.sleep(pause)
        self._last_load = time.monotonic()
        with suppress(OSError):  # on a full disk, the rate is limited for each process
            os.pwrite(lock, f"{self._last_load:<32.6f}".encode(), 0)
