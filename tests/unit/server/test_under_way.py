"""What happens to a request while the engine works on it, and what does not."""

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vllm_lora_router.observability.deferred import SOON_S
from vllm_lora_router.observability.metrics import Metrics

from .conftest import App, ask


async def test_a_decision_is_logged_while_the_engine_works_and_not_before(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    seen: list[int] = []

    def logged() -> int:
        return sum("legal -> legal-lora" in record.getMessage() for record in caplog.records)

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        seen.append(logged())
        await asyncio.sleep(SOON_S * 2)
        seen.append(logged())
        assert app.serving.record.tally.under_way == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    answer = await ask(
        app.asgi, "/v1/chat/completions", {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    )
    assert seen == [0, 1] and logged() == 1
    assert app.serving.record.tally.under_way == 0
    assert answer.headers["x-vsr-selected-model"] == "legal-lora"


async def test_who_reads_metrics_finds_every_answer_counted(app: App) -> None:
    registry = CollectorRegistry()
    app.serving.record.metrics = Metrics(registry)
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    await ask(app.asgi, "/v1/chat/completions", body)

    async def scrape(scope: Any, receive: Any, send: Any) -> None:
        read.append(generate_latest(registry).decode())

    read: list[str] = []
    app.asgi.app = scrape
    nothing = {"type": "http", "path": "/metrics", "root_path": "", "headers": []}
    await app.asgi({**nothing, "method": "GET"}, None, None)  # type: ignore[arg-type]
    assert 'lora_router_responses_total{adapter="dynamic",status="2xx"} 1.0' in read[0]


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
