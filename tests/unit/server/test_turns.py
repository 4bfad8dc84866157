"""Requests that could go on at the same moment do not hold the event loop together."""

import asyncio
import time
from typing import Any

import pytest

from vllm_lora_router.server.turns import Turns

from .conftest import App, ask

pytestmark = pytest.mark.alone

TOGETHER = 30
WORK_S = 0.004  # of the event loop, by what vLLM does with a request until the engine has it


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def test_who_comes_alone_waits_for_nothing() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(StopIteration):
            turns.mine().send(None)
        await asyncio.sleep(0)


async def test_one_goes_on_in_an_iteration_of_the_loop_in_the_order_in_which_they_came() -> None:
    turns, iteration, went = Turns(), 0, []

    async def go(name: int) -> None:
        await turns.mine()
        went.append((name, iteration))

    tasks = [asyncio.ensure_future(go(name)) for name in range(4)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        iteration += 1
    assert [name for name, _ in went] == [0, 1, 2, 3]
    assert len({at for _, at in went}) == 4


async def test_who_is_given_up_takes_nobodys_turn() -> None:
    turns = Turns()
    tasks = [asyncio.ensure_future(turns.mine()) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.wait_for(tasks[3], 1)
    assert tasks[0].done() and not tasks[0].cancelled()
    await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        turns.mine().send(None)


async def test_the_loop_is_free_between_requests_that_waited_for_the_same_adapter(app: App) -> None:
    late: list[float] = []

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        spin(WORK_S)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def look() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)

    app.asgi.app = generation
    app.adapters.slot.clear()
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    asked = [asyncio.ensure_future(ask(app.asgi, "/v1/chat/completions", body)) for _ in range(TOGETHER)]
    await asyncio.sleep(0.2)
    looking = asyncio.ensure_future(look())
    await asyncio.sleep(0.01)
    app.adapters.slot.set()
    answers = await asyncio.gather(*asked)
    looking.cancel()
    assert [answer.status for answer in answers] == [200] * TOGETHER
    assert len(late) > TOGETHER / 2  # or nobody looked meanwhile
    assert max(late) < WORK_S * TOGETHER / 4


async def test_requests_that_waited_for_nothing_go_on_in_the_iteration_in_which_they_came(app: App) -> None:
    iteration, went = 0, list[int]()

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        went.append(iteration)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    asked = [asyncio.ensure_future(ask(app.asgi, "/v1/chat/completions", body)) for _ in range(TOGETHER)]
    while not all(task.done() for task in asked):
        await asyncio.sleep(0)
        iteration += 1
    assert len(went) == TOGETHER and len(set(went)) == 1
