"""Two API-server processes as Prometheus, an OpenTelemetry collector and the audit record see them."""

import asyncio
import json
import os
import secrets
import signal
import time
from collections import Counter
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_lora_router.tools.demo.build import DemoModels

from .collector import Collector
from .conftest import ADMIN, ADMIN_KEY_ENV, HANG_GUARD_S, ConfiguredServer
from .traffic import session

CONFIG = """
model_config:
  base: {{loras: [{{name: medical-lora, path: {medical}}}, {{name: legal-lora, path: {legal}}}]}}
default_model: base
keyword_rules:
  - {{category: medical, keywords: [fever]}}
  - {{category: legal, keywords: [contract]}}
categories:
  - {{name: medical, model_scores: [{{model: base, lora_name: medical-lora}}]}}
  - {{name: legal, model_scores: [{{model: base, lora_name: legal-lora}}]}}
router:
  admin_key_env: {admin_key_env}
  audit: {{path: audit, scope: all, text: full}}
  adapters: {{max_loads_per_s: 0, max_wait_ms: 120000}}
"""
REPEATS = 4

# Text -> the category, adapter, method and reason that it is counted under.
QUESTIONS = {
    "A fever?": ("medical", "medical-lora", "keyword", "routed"),
    "A contract?": ("legal", "legal-lora", "keyword", "routed"),
    "A cat?": ("", "base", "", "below_threshold"),
}


@pytest.fixture
def url(two_processes: ConfiguredServer, models: DemoModels) -> str:
    """Two API-server processes with an audit record."""
    config = CONFIG.format(
        medical=models.adapters["medical-lora"],
        legal=models.adapters["legal-lora"],
        admin_key_env=ADMIN_KEY_ENV,
    )
    two_processes.configure(config)
    return two_processes.url


def requests(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return a request of each kind."""
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
    return [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/completions", {"prompt": text, "max_tokens": 4}),
        ("/v1/responses", {"input": text, "max_output_tokens": 16}),
        ("/v1/messages", chat),
    ]


async def send(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any], *, model: str = "MoM", **headers: str
) -> int:
    async with http.post(path, json={"model": model, **body}, headers=headers) as response:
        await response.read()
        return response.status


async def scrape(http: aiohttp.ClientSession, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """Return a counter's series by the values of these labels."""
    async with http.get("/metrics") as response:
        text = await response.text()
    series: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                series[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    return series


async def decisions(http: aiohttp.ClientSession) -> Counter[tuple[str, ...]]:
    return await scrape(http, "lora_router_decisions_total", "category", "adapter", "method", "reason")


async def responses(http: aiohttp.ClientSession) -> Counter[tuple[str, ...]]:
    return await scrape(http, "lora_router_responses_total", "adapter", "status")


async def decisions_by_process(http: aiohttp.ClientSession) -> tuple[int, dict[int, int]]:
    """Return the generation of the configuration, and the number of decisions of each process."""
    by_process: dict[int, int] = {}
    async with asyncio.timeout(HANG_GUARD_S):
        while True:
            async with http.get("/v1/router/health", headers=ADMIN) as response:
                health = await response.json()
            by_process[health["process"]] = sum(health["decisions"].values())
            if len(by_process) == 2:
                return health["config"]["generation"], by_process


async def test_metrics_add_up_the_decisions_and_responses_of_both_processes(url: str) -> None:
    expected_decisions: Counter[tuple[str, ...]] = Counter()
    expected_responses: Counter[tuple[str, ...]] = Counter()
    async with session(url) as http:
        before = await decisions(http), await responses(http)
        _, decisions_before = await decisions_by_process(http)
        routed = []
        for text, labels in QUESTIONS.items():
            for path, body in requests(text) * REPEATS:
                routed.append(send(http, path, body))
                expected_decisions[labels] += 1
                expected_responses[labels[1], "2xx"] += 1
        invalid = {"messages": [{"role": "user", "content": "A fever?"}], "max_tokens": -1}
        for _ in range(REPEATS):
            routed.append(send(http, "/v1/chat/completions", invalid))
            expected_decisions[QUESTIONS["A fever?"]] += 1
            expected_responses["medical-lora", "4xx"] += 1
        # These requests are not counted.
        path, body = requests("A fever?")[0]
        uncounted = [send(http, path, body, model=model) for model in ("legal-lora", "base", "missing")]
        uncounted.append(send(http, "/tokenize", {"messages": body["messages"]}))
        statuses = Counter(await asyncio.gather(*routed))
        assert statuses == {200: len(routed) - REPEATS, 400: REPEATS}
        assert await asyncio.gather(*uncounted) == [200, 200, 404, 200]
        # A response ends for its client before the server counts it.
        async with asyncio.timeout(HANG_GUARD_S):
            while await responses(http) - before[1] != expected_responses:
                await asyncio.sleep(0.1)
        assert await decisions(http) - before[0] == expected_decisions
        generation, by_process = await decisions_by_process(http)
        assert await scrape(http, "lora_router_config_generation") == {(): generation}
        shares = {process: count - decisions_before[process] for process, count in by_process.items()}
        assert all(shares.values()), f"one process answered everything, so nothing was added up: {shares}"


async def test_vllms_span_is_a_child_of_the_routers_span_and_that_of_the_clients(
    url: str, collector: Collector
) -> None:
    trace_id, client = secrets.token_bytes(16), secrets.token_bytes(8)
    path, body = requests("A fever?")[0]
    async with session(url) as http:
        assert await send(http, path, body, traceparent=f"00-{trace_id.hex()}-{client.hex()}-01") == 200
    spans = await collector.trace(trace_id, 2)
    router_span, vllm_span = spans["lora_router.request"], spans["llm_request"]
    assert (router_span.parent_span_id, vllm_span.parent_span_id) == (client, router_span.span_id)
    assert router_span.start_time_unix_nano <= vllm_span.start_time_unix_nano
    attributes = {attribute.key: attribute.value for attribute in router_span.attributes}
    assert attributes["lora_router.category"].string_value == "medical"
    assert attributes["lora_router.adapter"].string_value == "medical-lora"
    assert [event.name for event in router_span.events] == ["lora_router.step"]
    ids = {attribute.key: attribute.value for attribute in vllm_span.attributes}
    assert attributes["lora_router.id"].string_value == ids["gen_ai.request.id"].string_value


async def test_a_request_without_a_trace_gets_a_new_trace(url: str, collector: Collector) -> None:
    path, body = requests("A contract?")[0]
    request_id = secrets.token_hex(8)
    async with session(url) as http:
        assert await send(http, path, body, **{"x-request-id": request_id}) == 200
    router_span = await collector.request_span(request_id)
    spans = await collector.trace(router_span.trace_id, 2)
    assert router_span.parent_span_id == b""
    assert spans["llm_request"].parent_span_id == router_span.span_id


def audit_lines(server: ConfiguredServer) -> dict[str, list[dict[str, Any]]]:
    """Return the record's lines by file. The last line of a file may have been cut off by a kill."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((server.file.parent / "audit").glob("*.jsonl")):
        *complete, incomplete = file.read_bytes().split(b"\n")
        lines[file.name] = [json.loads(line) for line in complete]
        if incomplete:
            print(f"\n{file.name} ends within a line")
    return lines


def outcome_ids(server: ConfiguredServer) -> set[str]:
    """Return the ids of the requests with a recorded end. Each file must have every line from the first on."""
    recorded = audit_lines(server)
    for lines in recorded.values():
        first = lines[0]["seq"] if lines else 1
        assert [line["seq"] for line in lines] == list(range(first, first + len(lines)))
    return {line["id"] for lines in recorded.values() for line in lines if line["type"] == "outcome"}


async def recorded(server: ConfiguredServer, ids: set[str]) -> None:
    """Wait until the end of each of these requests is recorded."""
    async with asyncio.timeout(HANG_GUARD_S):
        while not ids <= outcome_ids(server):
            await asyncio.sleep(0.1)


async def test_both_processes_record_every_request_and_its_end(url: str, two_processes: ConfiguredServer) -> None:
    async with session(url) as http:
        marks = {secrets.token_hex(4): model for model in ("MoM", "legal-lora", "base", "missing") for _ in range(8)}
        sent = []
        for mark, model in marks.items():
            chat = {"messages": [{"role": "user", "content": f"A fever? {mark}"}], "max_tokens": 2}
            sent.append(send(http, "/v1/chat/completions", chat, model=model, **{"x-request-id": mark}))
        await asyncio.gather(*sent)
        await recorded(two_processes, {f"chatcmpl-{mark}" for mark in marks})
        score = {"id": f"chatcmpl-{next(iter(marks))}", "score": 1}
        async with http.post("/v1/router/feedback", json=score) as response:
            answer = await response.json()
        # 200 from the process that decided; the other one cannot know the answer, and the record joins the score.
        assert (response.status, answer["joined"]) in {(200, True), (202, False)}, answer
        lines: dict[tuple[str, str], dict[str, Any]] = {}
        async with asyncio.timeout(HANG_GUARD_S):
            while (score["id"], "feedback") not in lines:
                await asyncio.sleep(0.1)
                every_line = [line for of_file in audit_lines(two_processes).values() for line in of_file]
                lines = {(line["id"], line["type"]): line for line in every_line}
                assert len(lines) == len(every_line), "a line is recorded twice"
    assert len(audit_lines(two_processes)) >= 2
    assert lines[score["id"], "feedback"]["score"] == 1
    for mark, model in marks.items():
        decision, outcome = lines[f"chatcmpl-{mark}", "decision"], lines[f"chatcmpl-{mark}", "outcome"]
        routed = model == "MoM"
        assert (decision["reason"], decision["requested_model"]) == ("routed" if routed else "named", model)
        assert decision["served"]["model"] == ("medical-lora" if routed else model)
        assert decision.get("text") == (f"A fever? {mark}" if routed else None)
        assert (outcome["status"], outcome["finish_reason"]) == ((200, "length") if model != "missing" else (404, None))


async def test_kill_9_loses_only_the_last_lines_of_the_record(
    url: str, two_processes: ConfiguredServer, full: bool
) -> None:
    """The server is dead afterwards; `two_processes` starts another one for the next test."""
    answered: list[tuple[str, float]] = []

    async def client(http: aiohttp.ClientSession) -> None:
        while True:
            mark = secrets.token_hex(8)
            chat = {"messages": [{"role": "user", "content": "A fever?"}], "max_tokens": 2}
            try:
                await send(http, "/v1/chat/completions", chat, **{"x-request-id": mark})
            except aiohttp.ClientError:
                return
            answered.append((f"chatcmpl-{mark}", time.monotonic()))

    async with session(url) as http:
        clients = [asyncio.create_task(client(http)) for _ in range(8)]
        async with asyncio.timeout(HANG_GUARD_S):
            while len(answered) < 100:
                await asyncio.sleep(0.1)
        written = {request_id for request_id, _ in answered}
        await recorded(two_processes, written)
        await asyncio.sleep(3 if full else 0.5)
        killed = time.monotonic()
        os.killpg(two_processes.pid, signal.SIGKILL)
        await asyncio.gather(*clients)
    ended = outcome_ids(two_processes)
    missing = [(request_id, killed - at) for request_id, at in answered if request_id not in ended]
    ages = ", ".join(f"{age:.2f} s" for _, age in missing) or "none"
    print(f"\nkill -9 after {len(answered)} answers; not recorded: {ages}")
    assert written <= ended and len(answered) > len(written)
    if full:
        assert max((age for _, age in missing), default=0) < 1
