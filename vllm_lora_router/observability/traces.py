"""A span for every request that is looked into, where vLLM has been told to send traces."""

import logging
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from vllm_lora_router.types import Decision, Outcome, Step

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

NAME = "lora_router.request"
STEP = "lora_router.step"
SAY_AGAIN_S = 60.0

_PARENT = frozenset({b"traceparent", b"tracestate"})  # https://www.w3.org/TR/trace-context/

logger = logging.getLogger("vllm_lora_router.record")

Attributes = dict[str, str | bool | int | float]


class Traces:
    """Begins spans. None of it ever fails a request, and nothing that a user wrote stands in a span."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        """`provider`: the global one unless given, as vLLM has set it by the time its engine is up."""
        self._quietly = _Quietly()
        self._tracer: Tracer | None = None
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            return
        with self._quietly:
            provider = provider or trace.get_tracer_provider()
            if not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
                self._propagator = TraceContextTextMapPropagator()
                self._tracer = provider.get_tracer("vllm_lora_router")

    def begin(self, headers: Iterable[tuple[bytes, bytes]], began_ns: int) -> "RequestSpan | None":
        """The span of a request; None where no traces are sent.

        Args:
            headers: the request's, in ASGI's form, with the client's span in them if there is one.
            began_ns: since 1970.
        """
        if self._tracer is None:
            return None
        with self._quietly:
            return self._begin(self._tracer, headers, began_ns)
        return None

    def _begin(self, tracer: "Tracer", headers: Iterable[tuple[bytes, bytes]], began_ns: int) -> "RequestSpan":
        from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context

        if get_current_span().get_span_context().is_valid:
            # Somebody in this process has taken the client's span already: FastAPI, instrumented.
            span = tracer.start_span(NAME, kind=SpanKind.INTERNAL, start_time=began_ns)
        else:
            sent: dict[str, list[str]] = {}
            for name, value in headers:
                if name in _PARENT:
                    sent.setdefault(name.decode(), []).append(value.decode("latin-1"))
            parent = self._propagator.extract(sent)
            # Of what answers a caller in another process, whether or not that one sends spans of its own.
            span = tracer.start_span(NAME, parent, SpanKind.SERVER, start_time=began_ns)
        # An empty state, too: what a client sent beside a broken parent belongs to no trace.
        written = {"tracestate": ""}
        self._propagator.inject(written, set_span_in_context(span))
        return RequestSpan(span, {name.encode(): value.encode() for name, value in written.items()}, self._quietly)


class RequestSpan:
    """The span of one request, from its first byte to the response's last."""

    def __init__(self, span: "Span", headers: dict[bytes, bytes], quietly: "_Quietly") -> None:
        self.headers = headers  # with these in the request, vLLM's span `llm_request` is a child of this one
        self._span = span
        self._quietly = quietly
        self._is_over = False

    def decided(self, decision: Decision) -> None:
        with self._quietly:
            if self._span.is_recording():
                self._span.set_attributes(_of_decision(decision))
                for step in decision.plan.steps:
                    self._span.add_event(STEP, _of_step(step))

    def ended(self, outcome: Outcome) -> None:
        """Ends the span."""
        with self._quietly:
            if self._span.is_recording():
                self._span.set_attributes(_of_outcome(outcome))
                if outcome.status is not None and outcome.status >= 500:
                    self._fail()
        self.close()

    def close(self) -> None:
        """Ends the span if it has not ended yet: the client left before anything was decided, or got an error."""
        if not self._is_over:
            self._is_over = True
            with self._quietly:
                self._span.end()

    def _fail(self) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR)


def _of_decision(decision: Decision) -> Attributes:
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
            "lora_router.affinity.held": affinity.kept if affinity is not None else None,
            "lora_router.affinity.against": affinity.alternative if affinity is not None else None,
            "lora_router.config": plan.config_version,
            "lora_router.overhead_ms": decision.overhead_ms,
        }
    )


def _of_step(step: Step) -> Attributes:
    # Neither a classification's evidence nor the text of an error: both may hold the user's words.
    found = step.classification
    return _attributes(
        {
            "lora_router.method": step.method,
            "lora_router.ms": step.duration_ms,
            "lora_router.failure": step.failure,
            "lora_router.category": found.category if found is not None else None,
            "lora_router.score": found.score if found is not None else None,
            "lora_router.threshold": found.threshold if found is not None else None,
            "lora_router.sure": found.accepted if found is not None else None,
            "lora_router.cached": found.cached if found is not None else None,
        }
    )


def _of_outcome(outcome: Outcome) -> Attributes:
    return _attributes(
        {
            "http.response.status_code": outcome.status,
            "lora_router.finish": outcome.finish_reason,
            "lora_router.aborted": outcome.aborted,
            "lora_router.first_byte_ms": outcome.first_byte_ms,
        }
    )


def _attributes(values: Mapping[str, str | bool | int | float | None]) -> Attributes:
    # One half of an emoji in a name would fail the whole batch that is sent, vLLM's own spans with it.
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


class _Quietly:
    """Around what may go wrong: it is logged, once a minute, and goes no further."""

    def __init__(self) -> None:
        self._said_s = float("-inf")  # `time.monotonic()`

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        now = time.monotonic()
        if now - self._said_s > SAY_AGAIN_S:
            self._said_s = now
            logger.warning("traces: a request's span is lost or not complete", exc_info=error)
        return True
