"""Spans, as OpenTelemetry's own SDK collects them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vllm_lora_router.observability.traces import RequestSpan, Traces
from vllm_lora_router.server import asgi
from vllm_lora_router.types import Affinity, Client, Decision, Outcome, RequestInfo, Step

if TYPE_CHECKING:
    from .conftest import Decide

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CLIENT = 0xB7AD6B7169203331
FROM_CLIENT = [(b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def traces(provider: TracerProvider) -> Traces:
    return Traces(provider)


def begin(traces: Traces, headers: list[tuple[bytes, bytes]] | None = None) -> RequestSpan:
    span = traces.begin(headers or [], time.time_ns())
    assert span is not None
    return span


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def outcome(decision: Decision, status: int | None = 200, *, aborted: bool = False) -> Outcome:
    return Outcome(decision, status, 40.0, 50.0, aborted, "stop")


def test_a_request_is_a_child_of_its_clients_span_and_began_when_it_came(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    span = traces.begin([(b"host", b"x"), *FROM_CLIENT], 1_000)
    assert span is not None
    span.close()
    found = only(exporter)
    assert (found.name, found.kind, found.start_time) == ("lora_router.request", SpanKind.SERVER, 1_000)
    assert found.parent is not None
    assert (found.parent.trace_id, found.parent.span_id, found.parent.is_remote) == (TRACE, CLIENT, True)


@pytest.mark.parametrize("sent", [FROM_CLIENT, []], ids=["the client's trace", "a trace of its own"])
def test_what_vllm_makes_of_the_headers_is_a_child_of_ours(
    traces: Traces, provider: TracerProvider, exporter: InMemorySpanExporter, sent: list[tuple[bytes, bytes]]
) -> None:
    scope = {"type": "http", "headers": [(b"host", b"x"), *sent]}
    span = begin(traces, scope["headers"])
    # As in vllm/tracing/otel.py: the request's headers, the first of each name.
    headers = dict(reversed(asgi.with_headers(scope, span.headers)["headers"]))
    context = TraceContextTextMapPropagator().extract({key.decode(): value.decode() for key, value in headers.items()})
    provider.get_tracer("vllm").start_span("llm_request", context).end()
    span.close()
    vllms, ours = exporter.get_finished_spans()
    assert vllms.parent is not None and ours.context is not None and vllms.context is not None
    assert vllms.parent.span_id == ours.context.span_id
    assert vllms.context.trace_id == ours.context.trace_id
    assert (ours.context.trace_id == TRACE) == bool(sent)


def test_the_clients_trace_state_is_handed_on_in_one_header(traces: Traces) -> None:
    span = begin(traces, [*FROM_CLIENT, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert span.headers[b"tracestate"] == b"a=1,b=2"


@pytest.mark.parametrize("parent", [b"", b"x", b"00-0-0-01", b"00-\xff", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"])
def test_a_broken_parent_begins_a_new_trace_and_its_state_is_dropped(
    traces: Traces, exporter: InMemorySpanExporter, parent: bytes
) -> None:
    span = begin(traces, [(b"traceparent", parent), (b"tracestate", b"a=1")])
    span.close()
    assert only(exporter).parent is None
    scope = asgi.with_headers({"type": "http", "headers": [(b"tracestate", b"a=1")]}, span.headers)
    assert dict(scope["headers"])[b"tracestate"] == b""


def test_what_the_client_does_not_sample_is_not_sampled_here_nor_in_vllm(
    traces: Traces, exporter: InMemorySpanExporter, decide: Decide
) -> None:
    span = begin(traces, [(b"traceparent", FROM_CLIENT[0][1][:-2] + b"00")])
    span.decided(decide())
    span.ended(outcome(decide()))
    assert not exporter.get_finished_spans()
    assert span.headers[b"traceparent"].startswith(b"00-0af7651916cd43dd8448eb211c80319c-")
    assert span.headers[b"traceparent"].endswith(b"-00")


def test_within_an_instrumented_server_it_is_a_part_of_that_ones_span(
    traces: Traces, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    with provider.get_tracer("fastapi").start_as_current_span("POST", kind=SpanKind.SERVER):
        begin(traces, FROM_CLIENT).close()
    ours, servers = exporter.get_finished_spans()
    assert ours.kind is SpanKind.INTERNAL
    assert ours.parent is not None and servers.context is not None
    assert ours.parent.span_id == servers.context.span_id


def test_the_decision_stands_in_the_span_with_each_method_that_was_asked(
    traces: Traces, exporter: InMemorySpanExporter, decide: Decide
) -> None:
    decision = decide()
    failed = Step("keyword", 1.5, failure="timeout", error="no answer")
    affinity = Affinity("medical", True, "legal", 0.1, ())
    plan = replace(decision.plan, steps=(failed, *decision.plan.steps), affinity=affinity)
    candidate = replace(decision.candidate, arm="medical-lora#2")
    decision = replace(decision, plan=plan, candidate=candidate, version="medical-lora@1a2b")
    span = begin(traces)
    span.decided(decision)
    span.ended(outcome(decision))
    found = only(exporter)
    assert found.attributes is not None and dict(found.attributes) == {
        "lora_router.id": "chatcmpl-7",
        "lora_router.category": "medical",
        "lora_router.adapter": "medical-lora",
        "lora_router.version": "medical-lora@1a2b",
        "lora_router.method": "domain",
        "lora_router.reason": "routed",
        "lora_router.confidence": 0.91,
        "lora_router.arm": "medical-lora#2",
        "lora_router.affinity.held": True,
        "lora_router.affinity.against": "legal",
        "lora_router.config": "01234567",
        "lora_router.overhead_ms": 3.14159,
        "http.response.status_code": 200,
        "lora_router.finish": "stop",
        "lora_router.aborted": False,
        "lora_router.first_byte_ms": 40.0,
    }
    assert [(event.name, dict(event.attributes or {})) for event in found.events] == [
        (
            "lora_router.step",
            {"lora_router.method": "keyword", "lora_router.ms": 1.5, "lora_router.failure": "timeout"},
        ),
        (
            "lora_router.step",
            {
                "lora_router.method": "domain",
                "lora_router.ms": 2.0,
                "lora_router.category": "medical",
                "lora_router.score": 0.91,
                "lora_router.threshold": 0.6,
                "lora_router.sure": True,
                "lora_router.cached": False,
            },
        ),
    ]


def test_what_served_the_base_says_so(traces: Traces, exporter: InMemorySpanExporter, decide: Decide) -> None:
    span = begin(traces)
    span.decided(decide(None, "base", reason="below_threshold", confidence=None))
    span.close()
    attributes = only(exporter).attributes or {}
    assert (attributes["lora_router.adapter"], attributes["lora_router.reason"]) == ("base", "below_threshold")
    assert not {"lora_router.category", "lora_router.method", "lora_router.confidence"} & attributes.keys()


@pytest.mark.parametrize(
    ("status", "aborted", "expected"),
    [
        (200, False, StatusCode.UNSET),
        (400, False, StatusCode.UNSET),
        (503, False, StatusCode.ERROR),
        (None, True, StatusCode.UNSET),
    ],
)
def test_only_the_servers_own_faults_are_errors(
    traces: Traces, exporter: InMemorySpanExporter, decide: Decide, status: int, aborted: bool, expected: StatusCode
) -> None:
    span = begin(traces)
    span.ended(outcome(decide(), status, aborted=aborted))
    found = only(exporter)
    assert found.status.status_code is expected
    assert (found.attributes or {}).get("http.response.status_code") == status
    assert (found.attributes or {})["lora_router.aborted"] is aborted


def test_a_span_ends_once_also_where_nothing_was_decided(
    traces: Traces, exporter: InMemorySpanExporter, decide: Decide, caplog: pytest.LogCaptureFixture
) -> None:
    span = begin(traces)
    span.ended(outcome(decide()))
    span.close()
    begin(traces).close()
    assert len(exporter.get_finished_spans()) == 2
    assert caplog.messages == []


def test_nothing_that_a_user_wrote_stands_in_a_span(
    traces: Traces, exporter: InMemorySpanExporter, decide: Decide
) -> None:
    words = "my secret illness"
    evidence = {"nearest": words, "keywords": [words], "labels": {words: 1.0}}
    decision = decide(evidence=evidence)
    failed = Step("keyword", 1.5, failure="error", error=words)
    asked = RequestInfo(words, words, words, Client(words, words, {words: words}))
    plan = replace(decision.plan, steps=(failed, *decision.plan.steps))
    decision = replace(decision, plan=plan, request=asked, skipped=((words, words),))
    span = begin(traces)
    span.decided(decision)
    span.ended(outcome(decision))
    found = only(exporter).to_json()
    assert len(json.loads(found)["events"]) == 2
    assert words not in found


def test_half_an_emoji_in_a_name_does_not_lose_the_batch_it_is_sent_in(
    traces: Traces, exporter: InMemorySpanExporter, decide: Decide
) -> None:
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    span = begin(traces)
    span.decided(decide("a\ud83d", "b\ud83d"))
    span.close()
    sent = encoder.encode_spans(exporter.get_finished_spans()).SerializeToString()
    assert b"lora_router.category" in sent and b"a?" in sent


class BrokenProcessor(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise OSError("the disk is full")


def test_a_tracing_library_that_fails_fails_no_request_and_says_so_once_a_minute(
    provider: TracerProvider, decide: Decide, caplog: pytest.LogCaptureFixture
) -> None:
    provider.add_span_processor(BrokenProcessor())
    traces = Traces(provider)
    with caplog.at_level(logging.WARNING, "vllm_lora_router.record"):
        for _ in range(100):
            span = begin(traces)
            span.decided(decide())
            span.ended(outcome(decide()))
    assert caplog.messages == ["traces: a request's span is lost or not complete"]


def test_headers_that_cannot_be_read_fail_no_request(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    broken: Any = [(b"traceparent", None)]
    assert traces.begin(broken, 0) is None
    assert len(caplog.messages) == 1


def test_a_provider_that_does_nothing_is_none() -> None:
    assert Traces(NoOpTracerProvider()).begin(FROM_CLIENT, 0) is None


# In processes of their own: the global provider can be set once only.
@pytest.mark.parametrize(
    ("code", "begins"),
    [
        ("", False),
        ("sys.modules['opentelemetry'] = None", False),
        ("from opentelemetry import trace; trace.set_tracer_provider(trace.NoOpTracerProvider())", False),
        (
            "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
            "trace.set_tracer_provider(TracerProvider())",
            True,
        ),
    ],
    ids=["nobody set one", "opentelemetry is not installed", "one that does nothing", "as vLLM sets it"],
)
def test_spans_are_made_where_the_global_provider_is_a_real_one(code: str, begins: bool) -> None:
    script = f"""
import sys
{code}
known = "opentelemetry.sdk" in sys.modules
from vllm_lora_router.observability.traces import Traces
traces = Traces()
print(traces.begin([], 0) is not None, ("opentelemetry.sdk" in sys.modules) == known)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(begins), "True"]
