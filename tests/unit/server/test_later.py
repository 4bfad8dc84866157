"""What a request does not wait for is done all the same, and once."""

import asyncio
import logging
from typing import Any

import pytest

from vllm_lora_router.server.later import SOON_S, Later

from .conftest import App, ask


async def test_it_is_done_in_a_little_while() -> None:
    done: list[str] = []
    Later(lambda: done.append("it"))
    assert done == []
    await asyncio.sleep(SOON_S * 4)
    assert done == ["it"]


async def test_whoever_cannot_wait_has_it_done_now_and_it_is_not_done_again() -> None:
    done: list[str] = []
    later = Later(lambda: done.append("it"))
    later.now()
    assert done == ["it"]
    later.now()
    await asyncio.sleep(SOON_S * 4)
    assert done == ["it"]


async def test_a_decision_is_recorded_and_logged_while_the_engine_works(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    seen: list[tuple[int, int]] = []

    def noted() -> tuple[int, int]:
        lines = [record for record in caplog.records if "legal -> legal-lora" in record.getMessage()]
        return app.serving.record.tally.under_way, len(lines)

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        seen.append(noted())
        await asyncio.sleep(SOON_S * 10)
        seen.append(noted())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    answer = await ask(
        app.asgi, "/v1/chat/completions", {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    )
    assert seen == [(0, 0), (1, 1)]
    assert noted() == (0, 1)
    assert answer.headers["x-vsr-selected-model"] == "legal-lora"


async def test_a_request_that_waits_for_nothing_costs_no_task_of_its_own(app: App) -> None:
    tasks: list[int] = []

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(len(asyncio.all_tasks()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    before = len(asyncio.all_tasks())
    for model in ("MoM", "legal-lora"):
        await ask(
            app.asgi, "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "a lawsuit"}]}
        )
    assert tasks == [before, before]


async def test_a_server_that_ends_while_a_request_waits_is_heard_and_nothing_stays_leased(app: App) -> None:
    app.adapters.slot.clear()
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    running = asyncio.ensure_future(ask(app.asgi, "/v1/chat/completions", body))
    await asyncio.sleep(0.05)
    assert app.adapters.leased == ["legal-lora"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert app.adapters.leased == [] and app.reached.bodies == []
