"""The recorder: passes every decision and its outcome to the log, the counts, the metrics and the audit record."""

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from vllm_lora_router.observability.audit_destination import AuditDestination
from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.observability.audit_schema import decision_line, feedback_line, keep_no_text, outcome_line
from vllm_lora_router.observability.decision_log import log_decision
from vllm_lora_router.observability.deferred import DeferredWork
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.observability.traces import RequestSpan, Traces
from vllm_lora_router.types import Client, Decision, Outcome

MAX_RECENT_DECISIONS = 1000  # decisions that are kept in memory
MAX_RECENT_SCORES = 16  # feedback scores that are kept for each of them


class DecisionCounts:
    """Counts for `/v1/router/health`. Each API-server process has its own."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self.in_progress = 0
        self.aborted = 0
        self.failed = 0  # responses with status 500 or higher

    def count_decision(self, decision: Decision) -> None:
        """Count a decision, and its request as in progress."""
        self.by_reason[decision.reason] += 1
        self.in_progress += 1

    def count_outcome(self, outcome: Outcome) -> None:
        """Count the end of a request."""
        self.in_progress -= 1
        self.aborted += outcome.aborted
        self.failed += outcome.status is not None and outcome.status >= 500


@dataclass(eq=False)
class RecentDecision:
    """A decision with its outcome and its latest feedback."""

    decision: Decision
    at_s: float  # seconds since 1970
    outcome: Outcome | None = None
    ended_s: float = 0.0  # seconds since 1970
    feedback: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RECENT_SCORES))


class UnknownDecisionError(LookupError):
    """No decision of this client has the response id, as far as this process knows."""


class Request(Protocol):
    """The attributes of a request that a trace needs."""

    @property
    def scope(self) -> Any:
        """The ASGI scope."""
        ...

    @property
    def began_ns(self) -> int:
        """When the request arrived, in nanoseconds since 1970."""
        ...


class Recorder:
    """Records the decisions of one API-server process. Neither requests nor the recorder wait for a disk.

    Decisions and outcomes are processed a little later, several together. Every method that reads results processes the
    pending ones first.
    """

    def __init__(self) -> None:
        self._deferred = DeferredWork()
        self._counts = DecisionCounts()
        # Startup sets both after vLLM has set up the multiprocess metrics folder and the trace exporter.
        self.metrics: Metrics | None = None
        self.traces: Traces | None = None
        self.records_all_requests = False  # also requests that are not routed
        self._recent: OrderedDict[str, RecentDecision] = OrderedDict()  # by `Decision.key`, oldest first
        self._destination = AuditDestination()
        self._log: AuditLog | None = None

    def set_destination(self, destination: AuditDestination) -> None:
        """Write the audit record to another destination from now on. Earlier lines go to the previous destination."""
        settings, folder = destination.settings, destination.folder
        if (self._destination.settings, self._destination.folder) == (settings, folder):
            return
        self.flush()
        previous, self._log = self._log, None
        if folder is not None:
            self._log = AuditLog(
                folder,
                rotate_bytes=int(settings.rotate_mb * 2**20),
                rotate_s=settings.rotate_hours * 3600,
                report=self._count_audit_lines,
            )
        self._destination = destination
        self.records_all_requests = folder is not None and settings.scope == "all"
        if previous is not None:
            previous.close(timeout_s=0)

    def start_span(self, decision: Decision, request: Request) -> RequestSpan | None:
        """Start the span of a request. Return None if no traces are sent.

        Forward the span's headers with the request, and pass the span to `record_outcome`.
        """
        if self.traces is None:
            return None
        span = self.traces.start(request.scope["headers"], request.began_ns)
        if span is not None:
            span.add_decision(decision)
        return span

    def record_decision(self, decision: Decision, texts: Sequence[str], *, log: bool = False) -> None:
        """Record a decision.

        Args:
            texts: the classified user texts, one for each prompt.
            log: also write a log line.
        """
        self._deferred.add(partial(self._record_decision, decision, texts, log, time.time()))

    def record_outcome(self, outcome: Outcome, span: RequestSpan | None = None) -> None:
        """Record how the response to a decision ended, and end the request's span."""
        if span is not None:
            span.end(outcome)
        self._deferred.add(partial(self._record_outcome, outcome, time.time()))

    def flush(self) -> None:
        """Flush pending work before metrics or logs are read."""
        self._deferred.run_now()

    @property
    def counts(self) -> DecisionCounts:
        """The counts of this process, including all decisions so far."""
        self.flush()
        return self._counts

    def _record_decision(self, decision: Decision, texts: Sequence[str], log: bool, now: float) -> None:
        if log:
            log_decision(decision)
        if decision.reason != "named":
            self._counts.count_decision(decision)
            if self.metrics is not None:
                self.metrics.count_decision(decision)
        self._recent[decision.key] = RecentDecision(decision, now)
        if len(self._recent) > MAX_RECENT_DECISIONS:
            self._recent.popitem(last=False)
        if self._log is not None:
            self._log.append(partial(decision_line, decision, now, texts, self._destination.retention))

    def _record_outcome(self, outcome: Outcome, now: float) -> None:
        if outcome.decision.reason != "named":
            self._counts.count_outcome(outcome)
            if self.metrics is not None:
                self.metrics.count_outcome(outcome)
        if (recent := self._recent.get(outcome.decision.key)) is not None:
            recent.outcome, recent.ended_s = outcome, now
        if self._log is not None:
            self._log.append(partial(outcome_line, outcome, now))

    def record_feedback(
        self, id: str, score: float, comment: str | None, client: Client | None = None
    ) -> Decision | None:
        """Record a user's feedback on a response.

        Args:
            client: the sender. Its feedback counts only for decisions of the same API key and tenant. None: an
                administrator, whose feedback counts for all decisions.

        Returns:
            The decision behind the response; None if it may be a decision of another process, which the audit record
            joins to the feedback.

        Raises:
            UnknownDecisionError: the recent decisions of this process have the id only for other clients, or they do
                not have it and no audit record is written.
        """
        self.flush()
        now = time.time()
        with_id = [recent for recent in reversed(self._recent.values()) if recent.decision.id == id]
        recent = next((recent for recent in with_id if _is_of(recent.decision, client)), None)
        if recent is None and (with_id or self._log is None):
            raise UnknownDecisionError(id)
        plan = recent.decision.plan if recent is not None else None
        if recent is not None:
            recent.feedback.append(score)
        if self.metrics is not None:
            arm = plan.assignment.arm if plan is not None and plan.assignment is not None else None
            self.metrics.observe_feedback(plan.category if plan is not None else None, arm, score)
        if self._log is not None:
            key = recent.decision.key if recent is not None else None
            self._log.append(partial(feedback_line, id, score, comment, now, key=key, client=client))
        return recent.decision if recent is not None else None

    @property
    def has_audit_record(self) -> bool:
        """Whether an audit record is written. It joins feedback to the decisions of every process."""
        return self._log is not None

    def recent_decisions(self, limit: int) -> list[dict[str, Any]]:
        """Return at most `limit` recent decisions of this process, newest first, without user text."""
        self.flush()
        lines: list[dict[str, Any]] = []
        for recent in list(reversed(self._recent.values()))[:limit]:
            line = decision_line(recent.decision, recent.at_s, (), keep_no_text)
            outcome = recent.outcome and outcome_line(recent.outcome, recent.ended_s)
            lines.append({**line, "outcome": outcome, "feedback": list(recent.feedback)})
        return lines

    def audit_status(self) -> dict[str, Any] | None:
        """Return the state of the audit record for `/v1/router/health`, or None without an audit record."""
        self.flush()
        log = self._log
        return log and {"written": log.written, "lost": log.lost, "problem": log.problem}

    def close(self) -> None:
        """Flush pending work and close the audit record."""
        self.flush()
        if self._log is not None:
            self._log.close()

    def _count_audit_lines(self, written: int, lost: int) -> None:
        if self.metrics is not None:
            self.metrics.count_audit_lines(written, lost)


def _is_of(decision: Decision, client: Client | None) -> bool:
    request = decision.request
    return client is None or (
        (request.tenant, request.api_key_fingerprint) == (client.tenant, client.api_key_fingerprint)
    )
