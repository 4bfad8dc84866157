"""Two API-server processes as Prometheus, an OpenTelemetry collector and the audit record see them."""

import asyncio
import gzip
import json
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import ONE_ENGINE_PROCESS, START_SECONDS, lora_modules
from .traffic import session

CONFIG = """
model_config: {tiny: {loras: [{name: medical-lora}, {name: legal-lora}]}}
default_model: tiny
keyword_rules:
  - {category: medical, keywords: [fever]}
  - {category: legal, keywords: [contract]}
categories:
  - {name: medical, model_scores: [{model: tiny, lora_name: medical-lora}]}
  - {name: legal, model_scores: [{model: tiny, lora_name: legal-lora}]}
router: {audit: {path: audit, scope: all, text: full}}
"""
EACH = 4

# Words, and the category, adapter, method and reason that they are counted under.
QUESTIONS = {
    "A fever?": ("medical", "medical-lora", "keyword", "routed"),
    "A contract?": ("legal", "legal-lora", "keyword", "routed"),
    "A cat?": ("", "base", "", "below_threshold"),
}


class Collector:
    """What an OTLP endpoint was sent, over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Endpoint(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    content = gzip.decompress(content)
                for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    async def trace(self, trace_id: bytes, spans: int) -> dict[str, Span]:
        """The spans of one trace by their names, when there are so many."""
        async with asyncio.timeout(30):
            while len(found := {span.name: span for span in list(self.spans) if span.trace_id == trace_id}) < spans:
                await asyncio.sleep(0.1)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def pair(models: DemoModels, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two API-server processes that send their spans to the collector."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "config.yaml").write_text(CONFIG)
    server = Server(
        [
            *(str(models.base), "--served-model-name", "tiny", "--router-config", str(folder / "config.yaml")),
            *(*lora_modules(models), *FLAGS, "--api-server-count", "2", "--otlp-traces-endpoint", collector.url),
        ],
        log=folder / "server.log",
        directory=models.directory,
        environment={
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds
            "NO_PROXY": "127.0.0.1",
            **ONE_ENGINE_PROCESS,
        },
    )
    with server:
        server.wait(START_SECONDS)
        yield server


def requests(text: str) -> list[tuple[str, dict[str, Any]]]:
    """One of each kind."""
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
    return [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/completions", {"prompt": text, "max_tokens": 4}),
        ("/v1/responses", {"input": text, "max_output_tokens": 16}),
        ("/v1/messages", chat),
    ]


async def ask(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any], *, model: str = "MoM", **headers: str
) -> int:
    async with http.post(path, json={"model": model, **body}, headers=headers) as response:
        await response.read()
        return response.status


async def scrape(http: aiohttp.ClientSession, name: str, *labels: str) -> Counter[tuple[str, ...]]:
    """A counter's series by the values of these labels."""
    async with http.get("/metrics") as response:
        text = await response.text()
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
    return found


async def decisions(http: aiohttp.ClientSession) -> Counter[tuple[str, ...]]:
    return await scrape(http, "lora_router_decisions_total", "category", "adapter", "method", "reason")


async def responses(http: aiohttp.ClientSession) -> Counter[tuple[str, ...]]:
    return await scrape(http, "lora_router_responses_total", "adapter", "status")


async def test_what_both_processes_decided_and_answered_adds_up(pair: Server) -> None:
    expected_decisions: Counter[tuple[str, ...]] = Counter()
    expected_responses: Counter[tuple[str, ...]] = Counter()
    async with session(pair.url) as http:
        before = await decisions(http), await responses(http)
        asked = []
        for text, counted in QUESTIONS.items():
            for path, body in requests(text) * EACH:
                asked.append(ask(http, path, body))
                expected_decisions[counted] += 1
                expected_responses[counted[1], "2xx"] += 1
        wrong = {"messages": [{"role": "user", "content": "A fever?"}], "max_tokens": -1}
        for _ in range(EACH):
            asked.append(ask(http, "/v1/chat/completions", wrong))
            expected_decisions[QUESTIONS["A fever?"]] += 1
            expected_responses["medical-lora", "4xx"] += 1
        # Nothing is decided about these.
        path, body = requests("A fever?")[0]
        uncounted = [ask(http, path, body, model=model) for model in ("legal-lora", "tiny", "nobody")]
        uncounted.append(ask(http, "/tokenize", {"messages": body["messages"]}))
        statuses = Counter(await asyncio.gather(*asked))
        assert statuses == {200: len(asked) - EACH, 400: EACH}
        assert await asyncio.gather(*uncounted) == [200, 200, 404, 200]
        # A response is over for its client before it is for the server.
        async with asyncio.timeout(10):
            while await responses(http) - before[1] != expected_responses:
                await asyncio.sleep(0.1)
        assert await decisions(http) - before[0] == expected_decisions
        assert await scrape(http, "lora_router_config_generation") == {(): 1}
        shares = {}
        async with asyncio.timeout(20):
            while len(shares) < 2:
                async with http.get("/v1/router/health") as response:
                    health = await response.json()
                shares[health["process"]] = sum(health["decisions"].values())
        assert all(shares.values()), f"one process answered all, and nothing was summed: {shares}"


async def test_vllms_span_is_a_child_of_ours_and_ours_of_the_clients(pair: Server, collector: Collector) -> None:
    trace_id, client = secrets.token_bytes(16), secrets.token_bytes(8)
    path, body = requests("A fever?")[0]
    async with session(pair.url) as http:
        assert await ask(http, path, body, traceparent=f"00-{trace_id.hex()}-{client.hex()}-01") == 200
    spans = await collector.trace(trace_id, 2)
    ours, vllms = spans["lora_router.request"], spans["llm_request"]
    assert (ours.parent_span_id, vllms.parent_span_id) == (client, ours.span_id)
    assert ours.start_time_unix_nano <= vllms.start_time_unix_nano
    attributes = {one.key: one.value for one in ours.attributes}
    assert attributes["lora_router.category"].string_value == "medical"
    assert attributes["lora_router.adapter"].string_value == "medical-lora"
    assert [event.name for event in ours.events] == ["lora_router.step"]
    ids = {one.key: one.value for one in vllms.attributes}
    assert attributes["lora_router.id"].string_value == ids["gen_ai.request.id"].string_value


async def test_a_client_without_spans_gets_a_trace_all_the_same(pair: Server, collector: Collector) -> None:
    path, body = requests("A contract?")[0]
    request_id = secrets.token_hex(8)
    async with session(pair.url) as http:
        assert await ask(http, path, body, **{"x-request-id": request_id}) == 200
    async with asyncio.timeout(30):
        while (ours := ours_of(collector, request_id)) is None:
            await asyncio.sleep(0.1)
    spans = await collector.trace(ours.trace_id, 2)
    assert ours.parent_span_id == b""
    assert spans["llm_request"].parent_span_id == ours.span_id


def ours_of(collector: Collector, request_id: str) -> Span | None:
    for span in list(collector.spans):
        if span.name == "lora_router.request" and any(request_id in one.value.string_value for one in span.attributes):
            return span
    return None


def lines(server: Server) -> dict[str, list[dict[str, Any]]]:
    """The record's lines by file; the last of a file may have been cut off."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(server.log.with_name("audit").glob("*.jsonl")):
        *whole, rest = file.read_bytes().split(b"\n")
        found[file.name] = [json.loads(line) for line in whole]
        if rest:
            print(f"\n{file.name} ends within a line")
    return found


async def test_both_processes_record_every_request_and_its_end(pair: Server) -> None:
    async with session(pair.url) as http:
        marks = {secrets.token_hex(4): model for model in ("MoM", "legal-lora", "tiny", "nobody") for _ in range(8)}
        asked = []
        for mark, model in marks.items():
            chat = {"messages": [{"role": "user", "content": f"A fever? {mark}"}], "max_tokens": 2}
            asked.append(ask(http, "/v1/chat/completions", chat, model=model, **{"x-request-id": mark}))
        await asyncio.gather(*asked)
        score = {"id": f"chatcmpl-{next(iter(marks))}", "score": 1}
        async with http.post("/v1/router/feedback", json=score) as response:
            assert response.status == 200, await response.text()
        await asyncio.sleep(1)
    recorded = lines(pair)
    assert len(recorded) == 2
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for of_process in recorded.values():
        assert [line["seq"] for line in of_process] == list(range(1, len(of_process) + 1))
        for line in of_process:
            assert (line["id"], line["type"]) not in found
            found[line["id"], line["type"]] = line
    assert found[score["id"], "feedback"]["score"] == 1
    for mark, model in marks.items():
        decision, outcome = found[f"chatcmpl-{mark}", "decision"], found[f"chatcmpl-{mark}", "outcome"]
        routed = model == "MoM"
        assert (decision["reason"], decision["asked_for"]) == ("routed" if routed else "named", model)
        assert decision["served"]["model"] == ("medical-lora" if routed else model)
        assert decision.get("text") == (f"A fever? {mark}" if routed else None)
        assert (outcome["status"], outcome["finish"]) == ((200, "length") if model != "nobody" else (404, None))


async def test_kill_9_loses_at_most_the_last_second_of_the_record(pair: Server) -> None:
    """Last: the server is dead after it."""
    answered: list[tuple[str, float]] = []

    async def client(http: aiohttp.ClientSession) -> None:
        while True:
            mark = secrets.token_hex(8)
            chat = {"messages": [{"role": "user", "content": "A fever?"}], "max_tokens": 2}
            try:
                await ask(http, "/v1/chat/completions", chat, **{"x-request-id": mark})
            except aiohttp.ClientError:
                return
            answered.append((f"chatcmpl-{mark}", time.monotonic()))

    before = sum(map(len, lines(pair).values()))
    async with session(pair.url) as http:
        clients = [asyncio.create_task(client(http)) for _ in range(8)]
        await asyncio.sleep(6)
        killed = time.monotonic()
        assert pair.process is not None
        os.killpg(pair.process.pid, signal.SIGKILL)
        await asyncio.gather(*clients)
    recorded = lines(pair)  # each line but the last of a file is whole
    for of_process in recorded.values():
        assert [line["seq"] for line in of_process] == list(range(1, len(of_process) + 1))
    ended = {line["id"] for of_process in recorded.values() for line in of_process if line["type"] == "outcome"}
    missing = [(mark, killed - at) for mark, at in answered if mark not in ended]
    print(f"\nkill -9 after {len(answered)} answers, {sum(map(len, recorded.values())) - before} lines; not recorded: ")
    print(", ".join(f"{age:.2f} s" for _, age in missing) or "none")
    assert len(answered) > 100
    assert max((age for _, age in missing), default=0) < 1
