"""OpenTelemetry spans: one for each request that the router records, if vLLM is configured to send traces."""

import logging
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from vllm_lora_router.types import Decision, Outcome, Step

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

SPAN_NAME = "lora_router.request"
STEP_EVENT = "lora_router.step"
WARNING_INTERVAL_S = 60.0

_PARENT_HEADERS = frozenset({b"traceparent", b"tracestate"})  # https://www.w3.org/TR/trace-context/

logger = logging.getLogger("vllm_lora_router.observability")

Attributes = dict[str, str | bool | int | float]


class Traces:
    """Starts spans. A failure in tracing never fails a request, and no span contains user text."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        """Get a tracer.

        Args:
            provider: defaults to the global provider, which vLLM sets before its engine is ready.
        """
        self._log_failures = _LogFailures()
        self._tracer: Tracer | None = None
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            return
        with self._log_failures:
            provider = provider or trace.get_tracer_provider()
            if not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
                self._propagator = TraceContextTextMapPropagator()
                self._tracer = provider.get_tracer("vllm_lora_router")

    def start(self, headers: Iterable[tuple[bytes, bytes]], began_ns: int) -> "RequestSpan | None":
        """Start the span of a request. Return None if no traces are sent.

        Args:
            headers: the request's ASGI headers, which can name the client's span as the parent.
            began_ns: when the request arrived, in nanoseconds since 1970.
        """
        if self._tracer is None:
            return None
        with self._log_failures:
            return self._start(self._tracer, headers, began_ns)
        return None

    def _start(self, tracer: "Tracer", headers: Iterable[tuple[bytes, bytes]], began_ns: int) -> "RequestSpan":
        from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context

        if get_current_span().get_span_context().is_valid:
            # Other instrumentation in this process, such as FastAPI's, already has a span below the client's span.
            span = tracer.start_span(SPAN_NAME, kind=SpanKind.INTERNAL, start_time=began_ns)
        else:
            carrier: dict[str, list[str]] = {}
            for name, value in headers:
                if name in _PARENT_HEADERS:
                    carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
            parent = self._propagator.extract(carrier)
            # A server span, because the client is another process, whether or not the client sends spans.
            span = tracer.start_span(SPAN_NAME, parent, SpanKind.SERVER, start_time=began_ns)
        # Begin with an empty trace state: the state that a client sends with an invalid parent belongs to no trace.
        injected = {"tracestate": ""}
        self._propagator.inject(injected, set_span_in_context(span))
        return RequestSpan(
            span, {name.encode(): value.encode() for name, value in injected.items()}, self._log_failures
        )


class RequestSpan:
    """The span of one request, from its first byte to the last byte of its response."""

    def __init__(self, span: "Span", headers: dict[bytes, bytes], log_failures: "_LogFailures") -> None:
        self.headers = headers  # send them with the request, so that vLLM's span `llm_request` is a child of this span
        self._span = span
        self._log_failures = log_failures
        self._has_ended = False

    def add_decision(self, decision: Decision) -> None:
        """Set the decision's attributes, and add an event for each classification step."""
        with self._log_failures:
            if self._span.is_recording():
                self._span.set_attributes(_decision_attributes(decision))
                for step in decision.plan.steps:
                    self._span.add_event(STEP_EVENT, _step_attributes(step))

    def end(self, outcome: Outcome) -> None:
        """Set the outcome's attributes, and end the span."""
        with self._log_failures:
            if self._span.is_recording():
                self._span.set_attributes(_outcome_attributes(outcome))
                if outcome.status is not None and outcome.status >= 500:
                    self._set_error()
        self.close()

    def close(self) -> None:
        """End the span if it has not ended: the client disconnected or got an error before a decision was made."""
        if not self._has_ended:
            self._has_ended = True
            with self._log_failures:
                self._span.end()

    def _set_error(self) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR)


def _decision_attributes(decision: Decision) -> Attributes:
    plan, affinity = decision.plan, decision.plan.affinity
    return _attributes(
        {
            "lora_router.id": decision.id,
            "lora_router.category": plan.category,
            "lora_router.adapter": decision.candidate.adapter or "base",
            "lora_router.version": decision.version,
            "lora_router.method": plan.method,
            "lora_router.reason": decision.reason,
            "lora_router.confidence": plan.confidence,
            "lora_router.arm": decision.candidate.arm,
            "lora_router.affinity.kept": affinity.kept if affinity is not None else None,
            "lora_router.affinity.alternative": affinity.alternative if affinity is not None else None,
            "lora_router.config": plan.config_version,
            "lora_router.overhead_ms": decision.overhead_ms,
        }
    )


def _step_attributes(step: Step) -> Attributes:
    # The evidence of a classification and the message of an error are left out: both can contain user text.
    classification = step.classification
    return _attributes(
        {
            "lora_router.method": step.method,
            "lora_router.duration_ms": step.duration_ms,
            "lora_router.failure": step.failure,
            "lora_router.category": classification.category if classification is not None else None,
            "lora_router.score": classification.score if classification is not None else None,
            "lora_router.threshold": classification.threshold if classification is not None else None,
            "lora_router.accepted": classification.accepted if classification is not None else None,
            "lora_router.cached": classification.cached if classification is not None else None,
        }
    )


def _outcome_attributes(outcome: Outcome) -> Attributes:
    return _attributes(
        {
            "http.response.status_code": outcome.status,
            "lora_router.finish_reason": outcome.finish_reason,
            "lora_router.aborted": outcome.aborted,
            "lora_router.first_byte_ms": outcome.first_byte_ms,
        }
    )


def _attributes(values: Mapping[str, str | bool | int | float | None]) -> Attributes:
    # An unpaired surrogate in a name would fail the whole export batch, including vLLM's own spans.
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


class _LogFailures:
    """A context manager that logs exceptions, at most once a minute, and suppresses them."""

    def __init__(self) -> None:
        self._logged_s = float("-inf")  # `time.monotonic()` of the last warning

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        now = time.monotonic()
        if now - self._logged_s > WARNING_INTERVAL_S:
            self._logged_s = now
            logger.warning("traces: recording a request failed; its span is lost or incomplete", exc_info=error)
        return True
