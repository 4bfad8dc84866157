"""Recording: decisions are logged and counted while the engine works, and cost the request nothing."""

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vllm_lora_router.observability.deferred import DELAY_S
from vllm_lora_router.observability.metrics import Metrics

from .conftest import App, post_json


async def test_decision_is_logged_while_engine_works(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    logged_lines: list[int] = []

    def logged() -> int:
        return sum("legal -> legal-lora" in record.getMessage() for record in caplog.records)

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        logged_lines.append(logged())
        await asyncio.sleep(DELAY_S * 2)
        logged_lines.append(logged())
        assert app.serving.recorder.counts.in_progress == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    response = await post_json(
        app.asgi, "/v1/chat/completions", {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    )
    assert logged_lines == [0, 1] and logged() == 1
    assert app.serving.recorder.counts.in_progress == 0
    assert response.headers["x-vsr-selected-model"] == "legal-lora"


async def test_metrics_include_all_finished_requests(app: App) -> None:
    registry = CollectorRegistry()
    app.serving.recorder.metrics = Metrics(registry)
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    await post_json(app.asgi, "/v1/chat/completions", body)

    async def scrape(scope: Any, receive: Any, send: Any) -> None:
        metrics.append(generate_latest(registry).decode())

    metrics: list[str] = []
    app.asgi.app = scrape
    scope = {"type": "http", "path": "/metrics", "root_path": "", "headers": []}
    await app.asgi({**scope, "method": "GET"}, None, None)  # type: ignore[arg-type]
    assert 'lora_router_responses_total{adapter="dynamic",status="2xx"} 1.0' in metrics[0]


async def test_request_that_does_not_wait_creates_no_task(app: App) -> None:
    tasks: list[int] = []

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(len(asyncio.all_tasks()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = generation
    before = len(asyncio.all_tasks())
    for model in ("MoM", "legal-lora"):
        await post_json(
            app.asgi, "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "a lawsuit"}]}
        )
    assert tasks == [before, before]


async def test_cancelled_request_releases_lease_while_it_waits(app: App) -> None:
    app.adapters.slot.clear()
    body = {"model": "MoM", "messages": [{"role": "user", "content": "a lawsuit"}]}
    running = asyncio.ensure_future(post_json(app.asgi, "/v1/chat/completions", body))
    await asyncio.sleep(0.05)
    assert app.adapters.leased == ["legal-lora"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert app.adapters.leased == [] and app.received.bodies == []
