"""Where a model's forward passes run: a thread of its own, off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vllm_lora_router.classifiers import Overload

T = TypeVar("T")


class Worker:
    """Runs calls one at a time in the order they came; a call that was given up before it began never runs."""

    def __init__(self, name: str, *, limit: int = 256, prepare: Callable[[], None] | None = None) -> None:
        """`prepare` runs once, on the thread, before the first call."""
        self.limit = limit  # calls that may wait
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"lora-router-{name}", initializer=prepare)

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result.

        Raises:
            Overload: `limit` calls wait already.
        """
        if self._waiting >= self.limit:
            raise Overload(f"{self._waiting} queries wait already")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._waiting -= 1

    def run_blocking(self, call: Callable[[], T]) -> T:
        """The call's result, for those who are not on an event loop."""
        return self._thread.submit(call).result()

    def close(self) -> None:
        """Ends the thread once the call under way is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def one_core() -> None:
    """Keeps torch on the calling thread to one core: on a CPU the engine needs the others."""
    import torch

    torch.set_num_threads(1)
