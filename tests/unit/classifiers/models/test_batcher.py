"""Dynamic batching: waiting texts share the next batch, a single text never waits, cancelled texts leave the queue."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from vllm_lora_router.classifiers import OverloadError, StuckModelError, UnavailableError
from vllm_lora_router.classifiers.models import batcher as batcher_module
from vllm_lora_router.classifiers.models import worker as worker_module
from vllm_lora_router.classifiers.models.batcher import BatchCost, Batcher
from vllm_lora_router.classifiers.models.worker import Worker


class Model:
    """Returns the length of each text, and blocks while `finish` is cleared."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.finish = threading.Event()
        self.finish.set()
        self.fails: Callable[[Sequence[str]], BaseException | None] = lambda texts: None

    def answer(self, texts: Sequence[str]) -> list[int]:
        self.batches.append(list(texts))
        assert self.finish.wait(10)
        if (error := self.fails(texts)) is not None:
            raise error
        return [len(text) for text in texts]


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.close()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def constant_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are as long as measured, however busy the machine is."""
    monkeypatch.setattr(batcher_module, "MAX_SLOWDOWN", 1.0)


@pytest.fixture
def batcher(worker: Worker, model: Model) -> Batcher[int]:
    return Batcher(worker, model.answer)


async def wait_for_batches(model: Model, batches: int) -> None:
    async with asyncio.timeout(60):
        while len(model.batches) < batches:
            await asyncio.sleep(0.001)


async def test_a_single_text_is_answered_without_waiting(batcher: Batcher[int], model: Model) -> None:
    assert await batcher.submit("fever") == 5
    assert model.batches == [["fever"]]


async def test_texts_that_wait_for_a_busy_model_share_the_next_batch(batcher: Batcher[int], model: Model) -> None:
    model.finish.clear()
    first = asyncio.ensure_future(batcher.submit("first"))
    await wait_for_batches(model, 1)
    others = [asyncio.ensure_future(batcher.submit("x" * length)) for length in range(1, 21)]
    await asyncio.sleep(0)
    model.finish.set()
    assert await first == 5
    assert await asyncio.gather(*others) == list(range(1, 21))
    assert len(model.batches) == 2 and len(model.batches[1]) == 20
    assert (batcher.stats.batches, batcher.stats.texts, batcher.stats.largest) == (2, 21, 20)


@pytest.mark.usefixtures("constant_cost")
async def test_a_batch_has_the_oldest_text_and_texts_of_similar_length_within_the_budget(
    worker: Worker, model: Model
) -> None:
    # A character takes a millisecond, so the budget allows 100 characters in a batch, including padding.
    batcher = Batcher(worker, model.answer, BatchCost(per_character_s=0.001), budget_s=0.1)
    model.finish.clear()
    first = asyncio.ensure_future(batcher.submit("first"))
    await wait_for_batches(model, 1)
    lengths = [20, 90, 21, 19, 1, 22, 500]
    others = [asyncio.ensure_future(batcher.submit("x" * length, "client")) for length in lengths]
    await asyncio.sleep(0)
    model.finish.set()
    assert await asyncio.gather(*others) == lengths
    await first
    batches = [sorted(len(text) for text in batch) for batch in model.batches[1:]]
    assert batches == [[19, 20, 21, 22], [90], [1], [500]]


@pytest.mark.usefixtures("constant_cost")
async def test_texts_without_a_flow_lengthen_a_batch_only_a_little(worker: Worker, model: Model) -> None:
    # A character takes a millisecond: a batch may have 80 characters, and 10 characters if it has texts without a flow.
    batcher = Batcher(worker, model.answer, BatchCost(per_character_s=0.001), budget_s=0.08)
    model.finish.clear()
    tasks = [asyncio.ensure_future(batcher.submit("first"))]
    await wait_for_batches(model, 1)
    tasks += [asyncio.ensure_future(batcher.submit("x" * 4)) for _ in range(3)]
    tasks += [asyncio.ensure_future(batcher.submit("x" * 9, "client")) for _ in range(3)]
    await asyncio.sleep(0)
    model.finish.set()
    await asyncio.gather(*tasks)
    assert [[len(text) for text in batch] for batch in model.batches[1:]] == [[9, 9, 9], [4, 4], [4]]


async def test_batches_are_smaller_after_batches_that_took_longer_than_measured(worker: Worker, model: Model) -> None:
    # A text of 10 characters is measured with 10 ms and takes at least 40 ms, so a batch has at most 4 texts, not 10.
    batcher = Batcher(worker, model.answer, BatchCost(per_character_s=0.001), budget_s=0.1)
    model.fails = lambda texts: time.sleep(0.04)
    model.finish.clear()
    tasks = [asyncio.ensure_future(batcher.submit("x" * 10, "client"))]
    await wait_for_batches(model, 1)
    tasks += [asyncio.ensure_future(batcher.submit("x" * 10, "client")) for _ in range(10)]
    await asyncio.sleep(0)
    model.finish.set()
    await asyncio.gather(*tasks)
    assert len(model.batches[1]) <= 4


async def test_a_batch_has_a_maximum_size(batcher: Batcher[int], model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "MAX_BATCH_SIZE", 8)
    model.finish.clear()
    tasks = [asyncio.ensure_future(batcher.submit("x"))]
    await wait_for_batches(model, 1)
    tasks += [asyncio.ensure_future(batcher.submit("x")) for _ in range(20)]
    await asyncio.sleep(0)
    model.finish.set()
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in model.batches] == [1, 8, 8, 4]


async def test_texts_are_refused_while_the_queue_is_full(worker: Worker, model: Model) -> None:
    batcher = Batcher(worker, model.answer, limit=3)
    model.finish.clear()
    running = [asyncio.ensure_future(batcher.submit("x"))]
    await wait_for_batches(model, 1)
    running += [asyncio.ensure_future(batcher.submit("x")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadError, match="3 texts are waiting already"):
        await batcher.submit("x")
    model.finish.set()
    assert await asyncio.gather(*running) == [1, 1, 1, 1]
    assert await batcher.submit("xx") == 2


async def test_a_cancelled_text_leaves_the_queue_and_is_never_scored(worker: Worker, model: Model) -> None:
    batcher = Batcher(worker, model.answer, limit=2)
    model.finish.clear()
    first = asyncio.ensure_future(batcher.submit("first"))
    await wait_for_batches(model, 1)
    cancelled = [asyncio.ensure_future(batcher.submit("cancelled")) for _ in range(2)]
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    last = asyncio.ensure_future(batcher.submit("last"))
    await asyncio.sleep(0)
    model.finish.set()
    await asyncio.gather(first, last)
    assert model.batches == [["first"], ["last"]]


async def test_a_failed_batch_does_not_affect_other_batches(batcher: Batcher[int], model: Model) -> None:
    model.fails = lambda texts: MemoryError("out of memory") if "bad" in texts else None
    model.finish.clear()
    first = asyncio.ensure_future(batcher.submit("first"))
    await wait_for_batches(model, 1)
    others = [asyncio.ensure_future(batcher.submit(text)) for text in ("bad", "one", "two")]
    await asyncio.sleep(0)
    model.finish.set()
    assert await first == 5
    results = await asyncio.gather(*others, return_exceptions=True)
    assert all(isinstance(result, MemoryError) for result in results)
    assert await batcher.submit("next") == 4
    assert (batcher.stats.failed, batcher.stats.batches) == (1, 3)


class PanicException(BaseException):
    """As pyo3 raises when Rust code panics: not an `Exception`."""


@pytest.mark.parametrize(
    "error", [PanicException("index out of bounds"), SystemExit(1), GeneratorExit(), MemoryError()]
)
async def test_whatever_a_batch_raises_the_next_batch_is_answered(
    batcher: Batcher[int], model: Model, error: BaseException
) -> None:
    model.fails = lambda texts: error if "bad" in texts else None
    async with asyncio.timeout(60):
        with pytest.raises(Exception, match=str(error) or None) as raised:
            await batcher.submit("bad")
        if not isinstance(error, Exception):
            assert isinstance(raised.value, UnavailableError)
            assert f"the model call failed: {type(error).__name__}" in str(raised.value)
        assert await batcher.submit("next") == 4
    assert (batcher.stats.failed, batcher.stats.batches) == (1, 2)


async def test_a_wrong_number_of_answers_fails_the_batch_and_the_next_batch_is_answered(worker: Worker) -> None:
    batcher: Batcher[int] = Batcher(worker, lambda texts: [] if "bad" in texts else [0] * len(texts))
    async with asyncio.timeout(60):
        with pytest.raises(RuntimeError, match="the model returned 0 answers to 1 texts"):
            await batcher.submit("bad")
        assert await batcher.submit("next") == 0


async def test_a_panic_of_an_inline_text_fails_only_that_text(batcher: Batcher[int], model: Model) -> None:
    model.fails = lambda texts: PanicException("index out of bounds")
    with pytest.raises(UnavailableError, match="the model call failed: PanicException: index out of bounds"):
        batcher.run_inline("bad")
    assert batcher.stats.failed == 1


async def test_texts_are_refused_when_the_thread_of_the_model_has_ended(batcher: Batcher[int]) -> None:
    batcher.worker.close()
    async with asyncio.timeout(60):
        while batcher.worker.is_alive:
            await asyncio.sleep(0.001)
    with pytest.raises(UnavailableError, match="the thread of the model has ended"):
        await batcher.submit("x")


@pytest.mark.usefixtures("constant_cost")
async def test_one_client_cannot_take_the_model_from_another(worker: Worker, model: Model) -> None:
    # A character takes a millisecond, so a batch has at most two texts of 40 characters.
    batcher = Batcher(worker, model.answer, BatchCost(per_character_s=0.001), budget_s=0.08, limit=24)
    model.finish.clear()
    flood = [asyncio.ensure_future(batcher.submit("f" * 40)) for _ in range(25)]  # without a flow
    busy = [asyncio.ensure_future(batcher.submit("b" * 40, "busy")) for _ in range(24)]
    await wait_for_batches(model, 1)
    paying = [asyncio.ensure_future(batcher.submit("p" * 40, "paying")) for _ in range(3)]
    await asyncio.sleep(0)
    model.finish.set()
    assert await asyncio.gather(*paying) == [40, 40, 40]
    first = next(index for index, batch in enumerate(model.batches) if "p" * 40 in batch)
    last = max(index for index, batch in enumerate(model.batches) if "p" * 40 in batch)
    assert first <= 1 and last - first <= 3
    async with asyncio.timeout(60):
        results = await asyncio.gather(*flood, *busy, return_exceptions=True)
    dropped = [result for result in results if isinstance(result, OverloadError)]
    assert len(dropped) == 25 + 24 + 3 - 24 - len(model.batches[0])


async def test_a_client_that_leaves_leaves_nothing_in_the_queue(worker: Worker, model: Model) -> None:
    batcher = Batcher(worker, model.answer, limit=4)
    model.finish.clear()
    first = asyncio.ensure_future(batcher.submit("first", "a"))
    await wait_for_batches(model, 1)
    tasks = [asyncio.ensure_future(batcher.submit("x", flow)) for flow in ("a", "a", "a", "a", "b", None)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["CancelledError"] * 5 + ["OverloadError"]
    assert len(batcher._queue) == 0  # pyright: ignore[reportPrivateUsage]
    model.finish.set()
    assert await first == 5


async def test_on_batch_gets_the_size_of_the_batch_and_of_the_queue(
    batcher: Batcher[int], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "MAX_BATCH_SIZE", 2)
    calls: list[tuple[int, int]] = []
    batcher.on_batch = lambda texts, waiting: calls.append((texts, waiting))
    model.finish.clear()
    tasks = [asyncio.ensure_future(batcher.submit("x"))]
    await wait_for_batches(model, 1)
    tasks += [asyncio.ensure_future(batcher.submit("x")) for _ in range(3)]
    await asyncio.sleep(0)
    model.finish.set()
    await asyncio.gather(*tasks)
    batcher.worker.run_blocking(lambda: None)
    assert calls == [(1, 3), (2, 1), (1, 0)]


async def test_on_batch_is_called_when_all_waiting_texts_were_cancelled(batcher: Batcher[int], model: Model) -> None:
    calls: list[tuple[int, int]] = []
    called, continue_ = threading.Event(), threading.Event()

    def on_batch(texts: int, waiting: int) -> None:
        calls.append((texts, waiting))
        called.set()
        assert continue_.wait(10)

    batcher.on_batch = on_batch
    model.finish.clear()
    first = asyncio.ensure_future(batcher.submit("first"))
    await wait_for_batches(model, 1)
    cancelled = asyncio.ensure_future(batcher.submit("cancelled"))
    await asyncio.sleep(0)
    model.finish.set()
    await first
    assert await asyncio.to_thread(called.wait, 10)  # a text that is cancelled earlier is not counted
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    continue_.set()
    batcher.worker.run_blocking(lambda: None)
    assert calls == [(1, 1), (0, 0)]


async def test_an_exception_in_on_batch_does_not_delay_texts(batcher: Batcher[int]) -> None:
    def fail(texts: int, waiting: int) -> None:
        raise RuntimeError("the disk is full")

    batcher.on_batch = fail
    async with asyncio.timeout(60):
        assert [await batcher.submit("x" * length) for length in (1, 2, 3)] == [1, 2, 3]


async def test_an_exception_in_on_batch_does_not_fail_an_inline_text(batcher: Batcher[int]) -> None:
    errors: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))

    def calls(texts: int, waiting: int) -> None:
        raise RuntimeError(f"{texts} text, {waiting} wait")

    batcher.on_batch = calls
    assert batcher.run_inline("four") == 4
    await asyncio.sleep(0)
    assert [str(context["exception"]) for context in errors] == ["1 text, 0 wait"]


async def test_texts_are_refused_while_the_model_is_stuck(
    batcher: Batcher[int], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STUCK_S", 0.05)
    model.finish.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(batcher.submit("first"), 0.1)
    with pytest.raises(StuckModelError, match="has not returned for"):
        await batcher.submit("second")
    model.finish.set()
    async with asyncio.timeout(60):
        while batcher.worker.stuck_s is not None:
            await asyncio.sleep(0.001)
    assert await batcher.submit("third") == 5
    assert model.batches == [["first"], ["third"]]


async def test_batchers_that_share_a_worker_alternate(worker: Worker) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[Sequence[str]], list[int]]:
        def answer(texts: Sequence[str]) -> list[int]:
            order.append(name)
            time.sleep(0.002)
            return [0] * len(texts)

        return answer

    first, second = (Batcher(worker, named(name), BatchCost(overhead_s=1), budget_s=0.5) for name in "ab")
    await asyncio.gather(*(batcher.submit("x") for batcher in (first, second) for _ in range(5)))
    assert sorted(order) == ["a"] * 5 + ["b"] * 5
    assert "".join(order) not in ("aaaaabbbbb", "bbbbbaaaaa")


def test_texts_of_event_loops_in_several_threads_are_answered(batcher: Batcher[int]) -> None:
    lengths: list[int] = []
    threads = [
        threading.Thread(target=lambda length=length: lengths.append(asyncio.run(batcher.submit("x" * length))))
        for length in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(lengths) == list(range(1, 9))


def test_the_cost_of_a_batch_is_measured_with_one_and_several_texts(full: bool) -> None:
    def answer(texts: Sequence[str]) -> None:
        time.sleep(0.01 + 0.002 * len(texts))

    cost = BatchCost.measure(answer, "x" * 100)
    # Sleeps take at least their time, and longer on a busy machine.
    assert cost.overhead_s > 0 and cost.seconds(4, 100) >= 0.015
    if full:
        assert 0.009 < cost.overhead_s < 0.02
        assert cost.seconds(4, 100) == pytest.approx(0.018, abs=0.008)


def test_the_cost_of_a_free_model_is_almost_zero() -> None:
    cost = BatchCost.measure(lambda texts: None, "x")
    assert cost.seconds(1000, 1000) < 1
