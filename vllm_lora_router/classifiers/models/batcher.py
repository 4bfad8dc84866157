"""Dynamic batching: texts that arrive while a model is busy form the next batch. A single text never waits."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_lora_router.classifiers import OverloadError, StuckModelError, UnavailableError
from vllm_lora_router.classifiers.models.fair_queue import FairQueue, Flow
from vllm_lora_router.classifiers.models.worker import Worker, as_exception

T = TypeVar("T")

QUEUE_LIMIT = 256  # texts that may wait
MAX_BATCH_SIZE = 64  # texts of one batch
# A text without a flow joins a batch only up to this share of the budget: clients' texts wait for the end of the batch.
LOW_PRIORITY_SHARE = 1 / 8
MAX_SLOWDOWN = 8.0  # batches are made smaller by this factor at most, when they take longer than measured
MIN_COST = 100  # characters that a flow is charged for a text at least, because each text has a fixed cost


@dataclass(frozen=True)
class BatchCost:
    """The duration of a batch, as measured when the model was loaded."""

    overhead_s: float = 0.0
    per_character_s: float = 0.0

    @classmethod
    def measure(cls, answer: Callable[[Sequence[str]], object], text: str, *, together: int = 8) -> "BatchCost":
        """Measure a single text and a batch of several, three times each. Blocks; runs on the model's thread."""
        single, several = (min(_duration_s(answer, [text] * count) for _ in range(3)) for count in (1, together))
        per_text_s = max(several - single, 0.0) / (together - 1)
        return cls(max(single - per_text_s, 0.0), per_text_s / max(len(text), 1))

    def seconds(self, count: int, longest: int) -> float:
        """Return the expected duration for `count` texts that are padded to `longest` characters."""
        return self.overhead_s + self.per_character_s * count * longest


@dataclass(eq=False)
class _Item(Generic[T]):
    text: str
    flow: Flow
    answer: "asyncio.Future[T]"
    loop: asyncio.AbstractEventLoop


@dataclass
class BatchStats:
    """Counters for /v1/router/health."""

    batches: int = 0
    texts: int = 0
    failed: int = 0  # batches that raised
    largest: int = 0


@dataclass
class Batcher(Generic[T]):
    """The queue of one model. The model's thread takes the next batch itself, so the device waits for no event loop.

    Flows of requests share the queue and the model fairly. A batch that fails, in whatever way, fails only its texts.

    Args:
        worker: The thread that runs the model.
        answer: Returns the answers to texts, in the same order. Runs on that thread.
        cost: The expected duration of batches.
        budget_s: Maximum duration of a batch, because texts that arrive during the batch wait for its end. A single
            text always forms a batch, even if it takes longer.
        limit: Number of texts that may wait.
        on_batch: Called after each batch with the number of its texts (0 if all of them were cancelled) and the number
            of texts that still wait. Runs on the worker thread, or on the caller's event loop after `run_inline`.
    """

    worker: Worker
    answer: Callable[[Sequence[str]], Sequence[T]]
    cost: BatchCost = BatchCost()
    budget_s: float = 0.025
    limit: int = QUEUE_LIMIT
    stats: BatchStats = field(default_factory=BatchStats)
    on_batch: Callable[[int, int], None] = lambda texts, waiting: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: FairQueue[_Item[T]] = FairQueue(self.limit)
        self._slowdown = 1.0  # recent durations of batches in proportion to the measured cost; at least 1
        self._scheduled = False  # whether the worker has a call that takes the next batch

    async def submit(self, text: str, flow: Flow = None) -> T:
        """Return the answer to one text. A cancelled text leaves the queue.

        Args:
            flow: Identifies the client. Flows share the queue fairly; None has the lowest priority.

        Raises:
            OverloadError: The queue is full, and no flow has more waiting texts than this one.
            StuckModelError: The running forward pass does not return.
            UnavailableError: The model's thread has ended, or the batch failed other than by an `Exception`.
        """
        if (stuck_s := self.worker.stuck_s) is not None:
            raise StuckModelError(f"the model call has not returned for {stuck_s:.0f} s")
        if not self.worker.is_alive:
            raise UnavailableError("the thread of the model has ended; reload the configuration or restart the server")
        loop = asyncio.get_running_loop()
        item = _Item(text, flow, loop.create_future(), loop)
        with self._lock:
            if (dropped := self._queue.add(flow, item)) is not None:
                overload = OverloadError(f"{len(self._queue)} texts are waiting already")
                if dropped is item:
                    raise overload
                _settle([(dropped, overload)])
            schedule, self._scheduled = not self._scheduled, True
        if schedule:
            self.worker.submit(self._run_next_batch)
        try:
            return await item.answer
        finally:
            with self._lock:
                self._queue.remove(flow, item)

    def run_inline(self, text: str) -> T:
        """Return the answer to one text on the calling event loop.

        Only for models that are thread-safe and faster than handing a text to the worker thread.

        Raises:
            UnavailableError: The model raised something that is not an `Exception`, which would end the event loop.
        """
        self.stats.batches += 1
        self.stats.texts += 1
        self.stats.largest = max(self.stats.largest, 1)
        try:
            (answer,) = self.answer([text])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.stats.failed += 1
            if isinstance(error, Exception):
                raise
            raise as_exception(error) from error
        # Deferred, so that an exception in `on_batch` does not fail this text.
        asyncio.get_running_loop().call_soon(self.on_batch, 1, len(self._queue))
        return answer

    def _run_next_batch(self) -> None:
        batch: list[_Item[T]] = []
        try:
            batch = self._take_batch()
            if batch:
                _settle(zip(batch, self._answer(batch), strict=True))
        finally:
            with self._lock:
                waiting = len(self._queue)
                self._scheduled = waiting > 0
            if waiting:
                # A new call instead of a loop, so that other users of the same worker can run in between.
                self.worker.submit(self._run_next_batch)
        self.on_batch(len(batch), waiting)  # last, so that an exception in it delays no text

    def _take_batch(self) -> list[_Item[T]]:
        """Remove and return the next text and the texts of the most similar length, which need the least padding."""
        batch: list[_Item[T]] = []
        longest = 0
        with self._lock:
            for flow, item in self._queue.in_order(lambda first, other: abs(len(first.text) - len(other.text))):
                if len(batch) == MAX_BATCH_SIZE:
                    break
                padded = max(longest, len(item.text))
                budget_s = self.budget_s * (LOW_PRIORITY_SHARE if flow is None else 1)
                if batch and self.cost.seconds(len(batch) + 1, padded) * self._slowdown > budget_s:
                    continue  # a text of another flow may be shorter
                batch.append(item)
                longest = padded
            for item in batch:
                self._queue.remove(item.flow, item, max(len(item.text), MIN_COST))
        return batch

    def _answer(self, batch: Sequence[_Item[T]]) -> Sequence[T | Exception]:
        """Return the answer to each text, or the exception with which the batch failed."""
        self.stats.batches += 1
        self.stats.texts += len(batch)
        self.stats.largest = max(self.stats.largest, len(batch))
        began = time.perf_counter()
        try:
            answers = self.answer([item.text for item in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"the model returned {len(answers)} answers to {len(batch)} texts")
        except BaseException as error:
            self.stats.failed += 1
            return [as_exception(error)] * len(batch)
        if expected_s := self.cost.seconds(len(batch), max(len(item.text) for item in batch)):
            # The engine and other processes may use the same cores.
            ratio = (time.perf_counter() - began) / expected_s
            self._slowdown = max(1.0, (self._slowdown + min(ratio, MAX_SLOWDOWN)) / 2)
        return answers


def _settle(results: "Iterable[tuple[_Item[T], T | Exception]]") -> None:
    """Pass results to the event loops that wait for them, in one call for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[T], T | Exception]]] = {}
    for item, result in results:
        by_loop.setdefault(item.loop, []).append((item.answer, result))
    for loop, of_loop in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, of_loop)
        except RuntimeError:
            continue  # the loop is closed, so nothing awaits these results


def _deliver(results: "Sequence[tuple[asyncio.Future[T], T | Exception]]") -> None:
    for future, result in results:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _duration_s(answer: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    began = time.perf_counter()
    answer(texts)
    return time.perf_counter() - began
