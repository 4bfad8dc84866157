"""Spans, collected by the OpenTelemetry SDK."""

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
from vllm_lora_router.types import Affinity, Decision, Outcome, RequestInfo, Step

if TYPE_CHECKING:
    from .conftest import MakeDecision

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CLIENT_SPAN = 0xB7AD6B7169203331
PARENT_HEADERS = [(b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]


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


def start(traces: Traces, headers: list[tuple[bytes, bytes]] | None = None) -> RequestSpan:
    span = traces.start(headers or [], time.time_ns())
    assert span is not None
    return span


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def outcome(decision: Decision, status: int | None = 200, *, aborted: bool = False) -> Outcome:
    return Outcome(decision, status, 40.0, 50.0, aborted, "stop")


def test_span_is_a_child_of_the_clients_span_and_starts_with_the_request(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    span = traces.start([(b"host", b"x"), *PARENT_HEADERS], 1_000)
    assert span is not None
    span.close()
    result = only(exporter)
    assert (result.name, result.kind, result.start_time) == ("lora_router.request", SpanKind.SERVER, 1_000)
    assert result.parent is not None
    assert (result.parent.trace_id, result.parent.span_id, result.parent.is_remote) == (TRACE, CLIENT_SPAN, True)


@pytest.mark.parametrize("sent", [PARENT_HEADERS, []], ids=["the trace of the client", "a new trace"])
def test_vllms_span_is_a_child_of_the_routers_span(
    traces: Traces, provider: TracerProvider, exporter: InMemorySpanExporter, sent: list[tuple[bytes, bytes]]
) -> None:
    scope = {"type": "http", "headers": [(b"host", b"x"), *sent]}
    span = start(traces, scope["headers"])
    # As vllm/tracing/otel.py reads them: the first header of each name.
    headers = dict(reversed(asgi.with_headers(scope, span.headers)["headers"]))
    context = TraceContextTextMapPropagator().extract({key.decode(): value.decode() for key, value in headers.items()})
    provider.get_tracer("vllm").start_span("llm_request", context).end()
    span.close()
    vllm_span, router_span = exporter.get_finished_spans()
    assert vllm_span.parent is not None and router_span.context is not None and vllm_span.context is not None
    assert vllm_span.parent.span_id == router_span.context.span_id
    assert vllm_span.context.trace_id == router_span.context.trace_id
    assert (router_span.context.trace_id == TRACE) == bool(sent)


def test_clients_trace_state_is_forwarded_in_one_header(traces: Traces) -> None:
    span = start(traces, [*PARENT_HEADERS, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert span.headers[b"tracestate"] == b"a=1,b=2"


@pytest.mark.parametrize("parent", [b"", b"x", b"00-0-0-01", b"00-\xff", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"])
def test_invalid_parent_starts_a_new_trace_without_its_state(
    traces: Traces, exporter: InMemorySpanExporter, parent: bytes
) -> None:
    span = start(traces, [(b"traceparent", parent), (b"tracestate", b"a=1")])
    span.close()
    assert only(exporter).parent is None
    scope = asgi.with_headers({"type": "http", "headers": [(b"tracestate", b"a=1")]}, span.headers)
    assert dict(scope["headers"])[b"tracestate"] == b""


def test_request_that_the_client_does_not_sample_is_not_sampled(
    traces: Traces, exporter: InMemorySpanExporter, make_decision: MakeDecision
) -> None:
    span = start(traces, [(b"traceparent", PARENT_HEADERS[0][1][:-2] + b"00")])
    span.add_decision(make_decision())
    span.end(outcome(make_decision()))
    assert not exporter.get_finished_spans()
    assert span.headers[b"traceparent"].startswith(b"00-0af7651916cd43dd8448eb211c80319c-")
    assert span.headers[b"traceparent"].endswith(b"-00")


def test_span_is_a_child_of_the_span_of_an_instrumented_server(
    traces: Traces, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    with provider.get_tracer("fastapi").start_as_current_span("POST", kind=SpanKind.SERVER):
        start(traces, PARENT_HEADERS).close()
    router_span, server_span = exporter.get_finished_spans()
    assert router_span.kind is SpanKind.INTERNAL
    assert router_span.parent is not None and server_span.context is not None
    assert router_span.parent.span_id == server_span.context.span_id


def test_span_has_the_decision_and_an_event_for_each_step(
    traces: Traces, exporter: InMemorySpanExporter, make_decision: MakeDecision
) -> None:
    decision = make_decision()
    failed = Step("keyword", 1.5, failure="timeout", error="no answer")
    affinity = Affinity("medical", True, "legal", 0.1, ())
    plan = replace(decision.plan, steps=(failed, *decision.plan.steps), affinity=affinity)
    candidate = replace(decision.candidate, arm="medical-lora#2")
    decision = replace(decision, plan=plan, candidate=candidate, version="medical-lora@1a2b")
    span = start(traces)
    span.add_decision(decision)
    span.end(outcome(decision))
    result = only(exporter)
    assert result.attributes is not None and dict(result.attributes) == {
        "lora_router.id": "chatcmpl-7",
        "lora_router.category": "medical",
        "lora_router.adapter": "medical-lora",
        "lora_router.version": "medical-lora@1a2b",
        "lora_router.method": "domain",
        "lora_router.reason": "routed",
        "lora_router.confidence": 0.91,
        "lora_router.arm": "medical-lora#2",
        "lora_router.affinity.kept": True,
        "lora_router.affinity.alternative": "legal",
        "lora_router.config": "01234567",
        "lora_router.overhead_ms": 3.14159,
        "http.response.status_code": 200,
        "lora_router.finish_reason": "stop",
        "lora_router.aborted": False,
        "lora_router.first_byte_ms": 40.0,
    }
    assert [(event.name, dict(event.attributes or {})) for event in result.events] == [
        (
            "lora_router.step",
            {"lora_router.method": "keyword", "lora_router.duration_ms": 1.5, "lora_router.failure": "timeout"},
        ),
        (
            "lora_router.step",
            {
                "lora_router.method": "domain",
                "lora_router.duration_ms": 2.0,
                "lora_router.category": "medical",
                "lora_router.score": 0.91,
                "lora_router.threshold": 0.6,
                "lora_router.accepted": True,
                "lora_router.cached": False,
            },
        ),
    ]


def test_span_of_a_request_to_the_base_has_no_category(
    traces: Traces, exporter: InMemorySpanExporter, make_decision: MakeDecision
) -> None:
    span = start(traces)
    span.add_decision(make_decision(None, "base", reason="below_threshold", confidence=None))
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
def test_span_is_an_error_only_for_server_errors(
    traces: Traces,
    exporter: InMemorySpanExporter,
    make_decision: MakeDecision,
    status: int,
    aborted: bool,
    expected: StatusCode,
) -> None:
    span = start(traces)
    span.end(outcome(make_decision(), status, aborted=aborted))
    result = only(exporter)
    assert result.status.status_code is expected
    assert (result.attributes or {}).get("http.response.status_code") == status
    assert (result.attributes or {})["lora_router.aborted"] is aborted


def test_span_ends_exactly_once(
    traces: Traces, exporter: InMemorySpanExporter, make_decision: MakeDecision, caplog: pytest.LogCaptureFixture
) -> None:
    span = start(traces)
    span.end(outcome(make_decision()))
    span.close()
    start(traces).close()
    assert len(exporter.get_finished_spans()) == 2
    assert caplog.messages == []


def test_span_contains_no_user_text(
    traces: Traces, exporter: InMemorySpanExporter, make_decision: MakeDecision
) -> None:
    user_text = "my secret illness"
    evidence = {"nearest": user_text, "keywords": [user_text], "labels": {user_text: 1.0}}
    decision = make_decision(evidence=evidence)
    failed = Step("keyword", 1.5, failure="error", error=user_text)
    request = RequestInfo(user_text, user_text, user_text, user_text, user_text)
    plan = replace(decision.plan, steps=(failed, *decision.plan.steps))
    decision = replace(decision, plan=plan, request=request, skipped=((user_text, user_text),))
    span = start(traces)
    span.add_decision(decision)
    span.end(outcome(decision))
    result = only(exporter).to_json()
    assert len(json.loads(result)["events"]) == 2
    assert user_text not in result


def test_unpaired_surrogate_in_a_name_does_not_fail_the_export(
    traces: Traces, exporter: InMemorySpanExporter, make_decision: MakeDecision
) -> None:
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    span = start(traces)
    span.add_decision(make_decision("a\ud83d", "b\ud83d"))
    span.close()
    sent = encoder.encode_spans(exporter.get_finished_spans()).SerializeToString()
    assert b"lora_router.category" in sent and b"a?" in sent


class BrokenProcessor(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise OSError("the disk is full")


def test_tracing_failure_fails_no_request_and_is_logged_once_a_minute(
    provider: TracerProvider, make_decision: MakeDecision, caplog: pytest.LogCaptureFixture
) -> None:
    provider.add_span_processor(BrokenProcessor())
    traces = Traces(provider)
    with caplog.at_level(logging.WARNING, "vllm_lora_router.observability"):
        for _ in range(100):
            span = start(traces)
            span.add_decision(make_decision())
            span.end(outcome(make_decision()))
    assert caplog.messages == ["traces: recording a request failed; its span is lost or incomplete"]


def test_unreadable_headers_fail_no_request(traces: Traces, caplog: pytest.LogCaptureFixture) -> None:
    broken: Any = [(b"traceparent", None)]
    assert traces.start(broken, 0) is None
    assert len(caplog.messages) == 1


def test_no_span_is_started_with_a_no_op_provider() -> None:
    assert Traces(NoOpTracerProvider()).start(PARENT_HEADERS, 0) is None


# Separate processes, because the global provider can be set only once.
@pytest.mark.parametrize(
    ("code", "is_started"),
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
    ids=["no provider", "opentelemetry is not installed", "no-op provider", "SDK provider, as vLLM sets it"],
)
def test_spans_are_started_only_with_a_real_global_provider(code: str, is_started: bool) -> None:
    script = f"""
import sys
{code}
known = "opentelemetry.sdk" in sys.modules
from vllm_lora_router.observability.traces import Traces
traces = Traces()
print(traces.start([], 0) is not None, ("opentelemetry.sdk" in sys.modules) == known)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(is_started), "True"]
