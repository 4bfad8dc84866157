"""Texts that wait while a model is busy go together in its next batch; a lone one never waits."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_lora_router.classifiers import Overload, Stuck
from vllm_lora_router.classifiers.models.worker import Worker

T = TypeVar("T")

LIMIT = 256  # texts that may wait
MOST = 64  # texts of one batch


@dataclass(frozen=True)
class Cost:
    """What a batch takes, as measured when the model was loaded."""

    overhead_s: float = 0.0
    per_character_s: float = 0.0

    @classmethod
    def measure(cls, answer: Callable[[Sequence[str]], object], text: str, *, together: int = 8) -> "Cost":
        """By a lone text and by several of them, each tried three times. Blocks; for the model's thread."""
        lone, several = (min(_seconds(answer, [text] * count) for _ in range(3)) for count in (1, together))
        per_text_s = max(several - lone, 0.0) / (together - 1)
        return cls(max(lone - per_text_s, 0.0), per_text_s / max(len(text), 1))

    def seconds(self, count: int, longest: int) -> float:
        """Of `count` texts, padded to `longest` characters."""
        return self.overhead_s + self.per_character_s * count * longest


@dataclass(eq=False)
class _Waiting(Generic[T]):
    text: str
    answer: "asyncio.Future[T]"
    loop: asyncio.AbstractEventLoop


@dataclass
class Batched:
    """What was done so far, for /v1/router/health."""

    batches: int = 0
    texts: int = 0
    failed: int = 0  # batches whose forward pass raised
    largest: int = 0


@dataclass
class Batcher(Generic[T]):
    """One model's queue. Its thread takes the next batch by itself, so that the device waits for no event loop.

    Args:
        worker: the thread that runs the model.
        answer: answers texts, in their order; runs on that thread.
        cost: what batches take.
        budget_s: a batch takes no longer, if that can be: who comes while it runs has to wait for it. A single text is
            a batch, however long it takes.
        limit: texts that may wait.
        told: called after each batch with its texts, 0 where all had been given up, and with the texts that still
            wait; on the worker's thread, or on the loop of who was answered at once.
    """

    worker: Worker
    answer: Callable[[Sequence[str]], Sequence[T]]
    cost: Cost = Cost()
    budget_s: float = 0.025
    limit: int = LIMIT
    done: Batched = field(default_factory=Batched)
    told: Callable[[int, int], None] = lambda texts, waiting: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[_Waiting[T], None] = {}  # in the order in which they came
        self._called = False  # whether the thread will look

    async def ask(self, text: str) -> T:
        """The answer to one text; one that is given up leaves the queue.

        Raises:
            Overload: `limit` texts wait already.
            Stuck: the forward pass under way does not return.
        """
        if (stuck_s := self.worker.stuck_s) is not None:
            raise Stuck(f"its model has not returned for {stuck_s:.0f} s")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(text, loop.create_future(), loop)
        with self._lock:
            if len(self._waiting) >= self.limit:
                raise Overload(f"{len(self._waiting)} texts wait already")
            self._waiting[waiting] = None
            call, self._called = not self._called, True
        if call:
            self.worker.submit(self._run_one)
        try:
            return await waiting.answer
        finally:
            with self._lock:
                self._waiting.pop(waiting, None)

    def at_once(self, text: str) -> T:
        """The answer to one text, on the event loop that asks; for models that run on any thread, and take less than a
        hop.

        Raises what the model raises.
        """
        self.done.batches += 1
        self.done.texts += 1
        self.done.largest = max(self.done.largest, 1)
        try:
            (answer,) = self.answer([text])
        except Exception:
            self.done.failed += 1
            raise
        # Later: what it raises is not this text's fault.
        asyncio.get_running_loop().call_soon(self.told, 1, len(self._waiting))
        return answer

    def _run_one(self) -> None:
        with self._lock:
            batch = self._choose()
            for one in batch:
                del self._waiting[one]
        if batch:
            self._answer(batch)
        with self._lock:
            waiting = len(self._waiting)
            self._called = waiting > 0
        if waiting:
            # Behind what others want of the same model.
            self.worker.submit(self._run_one)
        self.told(len(batch), waiting)  # last: what it raises holds nobody up

    def _choose(self) -> list[_Waiting[T]]:
        """The one that has waited longest, with those nearest to it in length: padding is work for nothing."""
        if not self._waiting:
            return []
        oldest = len(next(iter(self._waiting)).text)
        batch: list[_Waiting[T]] = []
        longest = 0
        for one in sorted(self._waiting, key=lambda one: abs(len(one.text) - oldest)):
            longest = max(longest, len(one.text))
            if batch and (len(batch) == MOST or self.cost.seconds(len(batch) + 1, longest) > self.budget_s):
                break
            batch.append(one)
        return batch

    def _answer(self, batch: Sequence[_Waiting[T]]) -> None:
        try:
            answers: Sequence[T] | Exception = self.answer([one.text for one in batch])
        except Exception as error:
            answers = error
            self.done.failed += 1
        self.done.batches += 1
        self.done.texts += len(batch)
        self.done.largest = max(self.done.largest, len(batch))
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[T], T | Exception]]] = {}
        for index, one in enumerate(batch):
            found = answers if isinstance(answers, Exception) else answers[index]
            by_loop.setdefault(one.loop, []).append((one.answer, found))
        for loop, found in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, found)
            except RuntimeError:
                continue  # the loop is closed: nobody waits any more


def _deliver(found: "Sequence[tuple[asyncio.Future[T], T | Exception]]") -> None:
    for future, answer in found:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _seconds(answer: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    began = time.perf_counter()
    answer(texts)
    return time.perf_counter() - began
