"""`FairResume`: requests that become ready at the same moment do not block the event loop together."""

import asyncio
from typing import Any

import pytest

from vllm_lora_router.server.asgi import FairResume

from .conftest import App, post_json

REQUESTS = 30


async def test_single_request_resumes_immediately() -> None:
    fair_resume = FairResume()
    for _ in range(2):
        with pytest.raises(StopIteration):
            fair_resume.wait().send(None)
        await asyncio.sleep(0)


async def test_one_request_resumes_per_iteration_in_order() -> None:
    fair_resume, iteration, resumed = FairResume(), 0, []

    async def resume(name: int) -> None:
        await fair_resume.wait()
        resumed.append((name, iteration))

    tasks = [asyncio.ensure_future(resume(name)) for name in range(4)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        iteration += 1
    assert [name for name, _ in resumed] == [0, 1, 2, 3]
    assert len({number for _, number in resumed}) == 4


async def test_cancelled_request_is_skipped() -> None:
    fair_resume = FairResume()
    tasks = [asyncio.ensure_future(fair_resume.wait()) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.wait_for(tasks[3], 60)
    assert tasks[0].done() and not tasks[0].cancelled()
    await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        fair_resume.wait().send(None)


async def test_event_loop_is_free_between_requests_that_waited_for_same_adapter(app: App) -> None:
    iteration, resumed = 0, list[int]()

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        resumed.append(iteration)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    app.adapters.slot.clear()
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    requests = [asyncio.ensure_future(post_json(app.asgi, "/v1/chat/completions", body)) for _ in range(REQUESTS)]
    await asyncio.sleep(0.2)
    app.adapters.slot.set()
    while not all(task.done() for task in requests):
        await asyncio.sleep(0)
        iteration += 1
    assert [task.result().status for task in requests] == [200] * REQUESTS
    assert len(set(resumed)) == REQUESTS


async def test_requests_that_did_not_wait_resume_in_same_iteration(app: App) -> None:
    iteration, resumed = 0, list[int]()

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        resumed.append(iteration)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    requests = [asyncio.ensure_future(post_json(app.asgi, "/v1/chat/completions", body)) for _ in range(REQUESTS)]
    while not all(task.done() for task in requests):
        await asyncio.sleep(0)
        iteration += 1
    assert len(resumed) == REQUESTS and len(set(resumed)) == 1
