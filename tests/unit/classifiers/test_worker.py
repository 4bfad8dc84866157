"""The thread on which a model runs."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from vllm_lora_router.classifiers import Overload
from vllm_lora_router.classifiers.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test", limit=3)
    yield worker
    worker.close()


async def test_calls_run_one_at_a_time_in_the_order_they_came_off_the_event_loop(worker: Worker) -> None:
    ran: list[int] = []

    def call(number: int) -> str:
        ran.append(number)
        return threading.current_thread().name

    names = await asyncio.gather(*(worker.run(lambda number=number: call(number)) for number in range(3)))
    assert ran == [0, 1, 2]
    assert set(names) == {"lora-router-test_0"}


async def test_an_error_of_a_call_is_the_callers(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    assert await worker.run(lambda: 5) == 5


async def test_more_calls_than_the_limit_are_refused_at_once_and_there_is_room_again_later(worker: Worker) -> None:
    go = threading.Event()
    running = [asyncio.ensure_future(worker.run(go.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overload, match="3 queries wait already"):
        await worker.run(lambda: True)
    go.set()
    assert await asyncio.gather(*running) == [True, True, True]
    assert await worker.run(lambda: True)


async def test_a_call_that_was_given_up_before_it_began_never_runs_and_makes_room(worker: Worker) -> None:
    go, ran = threading.Event(), []
    first = asyncio.ensure_future(worker.run(go.wait))
    given_up = [asyncio.ensure_future(worker.run(lambda: ran.append("given up"))) for _ in range(2)]
    await asyncio.sleep(0)
    for call in given_up:
        call.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    last = asyncio.ensure_future(worker.run(lambda: ran.append("last")))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, last)
    assert ran == ["last"]


async def test_the_thread_is_prepared_once_before_its_first_call() -> None:
    prepared: list[str] = []
    worker = Worker("test", prepare=lambda: prepared.append(threading.current_thread().name))
    assert [await worker.run(lambda: len(prepared)) for _ in range(2)] == [1, 1]
    assert prepared == ["lora-router-test_0"]
    worker.close()


def test_a_call_can_be_made_without_an_event_loop(worker: Worker) -> None:
    assert worker.run_blocking(lambda: threading.current_thread().name) == "lora-router-test_0"
