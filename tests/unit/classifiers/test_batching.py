"""Texts that wait go together in the next batch; a lone one never waits, and nobody waits for who is gone."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from vllm_lora_router.classifiers import Overload, Stuck
from vllm_lora_router.classifiers.models import batcher as batcher_module
from vllm_lora_router.classifiers.models import worker as worker_module
from vllm_lora_router.classifiers.models.batcher import Batcher, Cost
from vllm_lora_router.classifiers.models.worker import Worker


class Model:
    """Answers each text by its length, and takes its time where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.go.set()
        self.fails: Callable[[Sequence[str]], Exception | None] = lambda texts: None

    def answer(self, texts: Sequence[str]) -> list[int]:
        self.batches.append(list(texts))
        assert self.go.wait(10)
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
def batcher(worker: Worker, model: Model) -> Batcher[int]:
    return Batcher(worker, model.answer)


async def begun(model: Model, batches: int) -> None:
    async with asyncio.timeout(5):
        while len(model.batches) < batches:
            await asyncio.sleep(0.001)


@pytest.mark.alone
async def test_a_lone_text_is_answered_at_once(batcher: Batcher[int], model: Model) -> None:
    began = time.perf_counter()
    assert await batcher.ask("fever") == 5
    assert time.perf_counter() - began < 0.5 and model.batches == [["fever"]]


async def test_what_waits_while_the_model_is_busy_goes_together(batcher: Batcher[int], model: Model) -> None:
    model.go.clear()
    first = asyncio.ensure_future(batcher.ask("first"))
    await begun(model, 1)
    others = [asyncio.ensure_future(batcher.ask("x" * length)) for length in range(1, 21)]
    await asyncio.sleep(0)
    model.go.set()
    assert await first == 5
    assert await asyncio.gather(*others) == list(range(1, 21))
    assert len(model.batches) == 2 and len(model.batches[1]) == 20
    assert (batcher.done.batches, batcher.done.texts, batcher.done.largest) == (2, 21, 20)


async def test_a_batch_is_the_oldest_and_those_of_its_length_within_what_it_may_take(
    worker: Worker, model: Model
) -> None:
    # A character takes a millisecond: 100 of them in a batch, padding counted.
    batcher = Batcher(worker, model.answer, Cost(per_character_s=0.001), budget_s=0.1)
    model.go.clear()
    first = asyncio.ensure_future(batcher.ask("first"))
    await begun(model, 1)
    lengths = [20, 90, 21, 19, 1, 22, 500]
    others = [asyncio.ensure_future(batcher.ask("x" * length)) for length in lengths]
    await asyncio.sleep(0)
    model.go.set()
    assert await asyncio.gather(*others) == lengths
    await first
    batches = [sorted(len(text) for text in batch) for batch in model.batches[1:]]
    assert batches == [[19, 20, 21, 22], [90], [1], [500]]


async def test_a_batch_has_a_greatest_size(
    batcher: Batcher[int], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "MOST", 8)
    model.go.clear()
    asked = [asyncio.ensure_future(batcher.ask("x"))]
    await begun(model, 1)
    asked += [asyncio.ensure_future(batcher.ask("x")) for _ in range(20)]
    await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(*asked)
    assert [len(batch) for batch in model.batches] == [1, 8, 8, 4]


async def test_more_texts_than_may_wait_are_refused_at_once_and_there_is_room_again_later(
    worker: Worker, model: Model
) -> None:
    batcher = Batcher(worker, model.answer, limit=3)
    model.go.clear()
    running = [asyncio.ensure_future(batcher.ask("x"))]
    await begun(model, 1)
    running += [asyncio.ensure_future(batcher.ask("x")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overload, match="3 texts wait already"):
        await batcher.ask("x")
    model.go.set()
    assert await asyncio.gather(*running) == [1, 1, 1, 1]
    assert await batcher.ask("xx") == 2


async def test_a_text_that_was_given_up_is_never_looked_at_and_makes_room(worker: Worker, model: Model) -> None:
    batcher = Batcher(worker, model.answer, limit=2)
    model.go.clear()
    first = asyncio.ensure_future(batcher.ask("first"))
    await begun(model, 1)
    given_up = [asyncio.ensure_future(batcher.ask("given up")) for _ in range(2)]
    await asyncio.sleep(0)
    for asked in given_up:
        asked.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    last = asyncio.ensure_future(batcher.ask("last"))
    await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(first, last)
    assert model.batches == [["first"], ["last"]]


async def test_a_model_that_fails_fails_that_batch_alone(batcher: Batcher[int], model: Model) -> None:
    model.fails = lambda texts: MemoryError("out of memory") if "bad" in texts else None
    model.go.clear()
    first = asyncio.ensure_future(batcher.ask("first"))
    await begun(model, 1)
    others = [asyncio.ensure_future(batcher.ask(text)) for text in ("bad", "one", "two")]
    await asyncio.sleep(0)
    model.go.set()
    assert await first == 5
    found = await asyncio.gather(*others, return_exceptions=True)
    assert all(isinstance(one, MemoryError) for one in found)
    assert await batcher.ask("next") == 4
    assert (batcher.done.failed, batcher.done.batches) == (1, 3)


async def test_each_batch_is_told_with_those_who_still_wait(
    batcher: Batcher[int], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "MOST", 2)
    told: list[tuple[int, int]] = []
    batcher.told = lambda texts, waiting: told.append((texts, waiting))
    model.go.clear()
    asked = [asyncio.ensure_future(batcher.ask("x"))]
    await begun(model, 1)
    asked += [asyncio.ensure_future(batcher.ask("x")) for _ in range(3)]
    await asyncio.sleep(0)
    model.go.set()
    await asyncio.gather(*asked)
    batcher.worker.run_blocking(lambda: None)
    assert told == [(1, 3), (2, 1), (1, 0)]


async def test_that_nobody_waits_any_more_is_told_too_when_all_were_given_up(
    batcher: Batcher[int], model: Model
) -> None:
    told: list[tuple[int, int]] = []
    counted, gone = threading.Event(), threading.Event()

    def tell(texts: int, waiting: int) -> None:
        told.append((texts, waiting))
        counted.set()
        assert gone.wait(10)

    batcher.told = tell
    model.go.clear()
    first = asyncio.ensure_future(batcher.ask("first"))
    await begun(model, 1)
    given_up = asyncio.ensure_future(batcher.ask("given up"))
    await asyncio.sleep(0)
    model.go.set()
    await first
    assert await asyncio.to_thread(counted.wait, 10)  # who leaves before is not counted
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    gone.set()
    batcher.worker.run_blocking(lambda: None)
    assert told == [(1, 1), (0, 0)]


async def test_who_is_told_and_fails_holds_nobody_up(batcher: Batcher[int]) -> None:
    def fail(texts: int, waiting: int) -> None:
        raise RuntimeError("the disk is full")

    batcher.told = fail
    async with asyncio.timeout(5):
        assert [await batcher.ask("x" * length) for length in (1, 2, 3)] == [1, 2, 3]


async def test_nor_does_it_take_the_answer_of_who_is_answered_at_once(batcher: Batcher[int]) -> None:
    heard: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))

    def told(texts: int, waiting: int) -> None:
        raise RuntimeError(f"{texts} text, {waiting} wait")

    batcher.told = told
    assert batcher.at_once("four") == 4
    await asyncio.sleep(0)
    assert [str(context["exception"]) for context in heard] == ["1 text, 0 wait"]


async def test_while_a_model_does_not_return_nobody_waits_for_it(
    batcher: Batcher[int], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STUCK_S", 0.05)
    model.go.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(batcher.ask("first"), 0.1)
    with pytest.raises(Stuck, match="has not returned for"):
        await batcher.ask("second")
    model.go.set()
    async with asyncio.timeout(5):
        while batcher.worker.stuck_s is not None:
            await asyncio.sleep(0.001)
    assert await batcher.ask("third") == 5
    assert model.batches == [["first"], ["third"]]


async def test_two_that_share_a_models_thread_take_turns(worker: Worker) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[Sequence[str]], list[int]]:
        def answer(texts: Sequence[str]) -> list[int]:
            order.append(name)
            time.sleep(0.002)
            return [0] * len(texts)

        return answer

    one, other = (Batcher(worker, named(name), Cost(overhead_s=1), budget_s=0.5) for name in "ab")
    await asyncio.gather(*(batcher.ask("x") for batcher in (one, other) for _ in range(5)))
    assert sorted(order) == ["a"] * 5 + ["b"] * 5
    assert "".join(order) not in ("aaaaabbbbb", "bbbbbaaaaa")


def test_texts_of_loops_in_several_threads_are_answered_in_their_own(batcher: Batcher[int]) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda length=length: found.append(asyncio.run(batcher.ask("x" * length))))
        for length in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(found) == list(range(1, 9))


def test_the_cost_of_a_batch_is_measured_by_one_text_and_by_several() -> None:
    def answer(texts: Sequence[str]) -> None:
        time.sleep(0.01 + 0.002 * len(texts))

    cost = Cost.measure(answer, "x" * 100)
    assert 0.009 < cost.overhead_s < 0.02
    assert cost.seconds(4, 100) == pytest.approx(0.018, abs=0.008)


def test_where_several_cost_as_little_as_one_all_go_together() -> None:
    cost = Cost.measure(lambda texts: None, "x")
    assert cost.seconds(1000, 1000) < 1
