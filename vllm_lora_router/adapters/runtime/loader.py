"""Loading adapters into the engine: one at a time over all processes, and not too many a second.

The engine loads between its steps, so every stream waits for as long as one load takes.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Protocol

from vllm_lora_router.adapters.runtime.version_log import Version
from vllm_lora_router.coordination.run_directory import RunDirectory

logger = logging.getLogger("vllm_lora_router.adapters")


class Metrics(Protocol):
    """Who is told of each load."""

    def loaded(self, seconds: float) -> None: ...

    def failed(self) -> None: ...


class LoadError(RuntimeError):
    """The engine did not take an adapter."""


class Engine(Protocol):
    """The serving engine as adapters see it."""

    async def load(self, version: Version) -> None:
        """Reads the version's folder into the engine's memory, or touches it when it is there.

        Raises:
            LoadError: the engine refused it; nothing of it is left there.
        """
        ...

    async def unload(self, identifier: int) -> None:
        """Takes a version out of the engine's memory; nothing happens when it is not there."""
        ...

    async def loaded(self) -> Collection[int]:
        """The versions in the engine's memory, the first engine's where there are several."""
        ...

    def register(self, key: str, version: Version) -> None:
        """From now on a request whose `model` is `key` is answered by this version."""
        ...

    def unregister(self, key: str) -> None: ...


class Loader:
    """Knows, as far as one process can, what the engine has in memory, and brings what it has not."""

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
            capacity: adapters that the engine keeps (`--max-cpu-loras`); the one not used for longest goes first.
            max_per_s: loads a second at most, over all processes; 0 is no limit.
            warm: reads a version's files, so that the engine finds them in the page cache; called on a thread.
        """
        self.capacity = capacity
        self.max_per_s = max_per_s
        self._engine = engine
        self._run = run
        self._warm = warm
        self._one = asyncio.Lock()
        self._resident: OrderedDict[int, None] = OrderedDict()
        self.seconds: dict[int, float] = {}  # version -> how long its last load took
        self.metrics: Metrics | None = None

    def is_resident(self, version: int) -> bool:
        """Whether the engine should have it in memory. When it has not after all, it reads our copy of the files."""
        if version not in self._resident:
            return False
        self._resident.move_to_end(version)
        return True

    async def load(self, version: Version) -> None:
        """Returns when the engine has the version in memory.

        Raises:
            LoadError: it cannot be loaded.
        """
        await asyncio.to_thread(self._warm, version)
        async with self._one:
            if self.is_resident(version.id):
                return
            with self._run.opened("load") as lock:
                await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
                if version.id not in await self._engine.loaded():
                    await self._wait_for_turn(lock)
                    await self._load(version)
            self._resident[version.id] = None
            while len(self._resident) > self.capacity:
                self._resident.popitem(last=False)

    def forget(self, version: int) -> None:
        """The version was taken out of the engine."""
        self._resident.pop(version, None)
        self.seconds.pop(version, None)

    async def _load(self, version: Version) -> None:
        began = time.monotonic()
        try:
            await self._engine.load(version)
        except LoadError:
            if self.metrics is not None:
                self.metrics.failed()
            raise
        self.seconds[version.id] = time.monotonic() - began
        if self.metrics is not None:
            self.metrics.loaded(self.seconds[version.id])
        logger.info("loaded adapter %s in %.0f ms", version.engine_name, self.seconds[version.id] * 1000)

    async def _wait_for_turn(self, lock: int) -> None:
        # The file that is locked holds the moment of the last load, by a clock that all processes share.
        if not self.max_per_s:
            return
        last = float(os.pread(lock, 32, 0) or 0)
        now = time.monotonic()
        pause = min(last + 1 / self.max_per_s - now, 1 / self.max_per_s)
        if pause > 0:
            await asyncio.sleep(pause)
        os.pwrite(lock, f"{time.monotonic():<32.6f}".encode(), 0)
