"""What becomes of every decision: a log line, counts, metrics, the audit record and the latest ones."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from vllm_lora_router.observability.audit_destination import Destination
from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.observability.audit_schema import decision_line, feedback_line, none_at_all, outcome_line
from vllm_lora_router.observability.decision_log import log
from vllm_lora_router.observability.deferred import Later
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.observability.tally import Tally
from vllm_lora_router.observability.traces import RequestSpan, Traces
from vllm_lora_router.types import Decision, Outcome

LATEST = 1000  # decisions that are kept in memory


@dataclass(eq=False)
class Recorded:
    """A decision with what followed."""

    decision: Decision
    at_s: float
    outcome: Outcome | None = None
    ended_s: float = 0.0
    feedback: list[float] = field(default_factory=list)


class Request(Protocol):
    """What a trace takes from a request."""

    @property
    def scope(self) -> Any: ...

    @property
    def began_ns(self) -> int: ...


class Recorder:
    """One process's. Nothing here waits for a disk, and no request for any of it.

    What is told of a decision and its outcome is worked off a little later, several together; who asks for what came of
    them gets all of it.
    """

    def __init__(self) -> None:
        self._later = Later()
        self._tally = Tally()
        # Both are set when vLLM has said where several processes sum theirs, and where traces go.
        self.metrics: Metrics | None = None
        self.traces: Traces | None = None
        self.records_all = False  # what was not routed, too
        self._latest: OrderedDict[str, Recorded] = OrderedDict()
        self._to = Destination()
        self._log: AuditLog | None = None

    def write_to(self, destination: Destination) -> None:
        """Where the audit record goes from now on. What was recorded before is still written where it was to go."""
        settings, folder = destination.settings, destination.folder
        if (self._to.settings, self._to.folder) == (settings, folder):
            return
        self.settle()
        before, self._log = self._log, None
        if folder is not None:
            self._log = AuditLog(
                folder,
                rotate_bytes=int(settings.rotate_mb * 2**20),
                rotate_s=settings.rotate_hours * 3600,
                counted=self._counted,
            )
        self._to = destination
        self.records_all = folder is not None and settings.scope == "all"
        if before is not None:
            before.close(timeout_s=0)

    def begin(self, decision: Decision, request: Request) -> RequestSpan | None:
        """A request's span, where traces are sent: its headers go with the request, and it with the outcome."""
        if self.traces is None:
            return None
        span = self.traces.begin(request.scope["headers"], request.began_ns)
        if span is not None:
            span.decided(decision)
        return span

    def decided(self, decision: Decision, texts: Sequence[str], *, say: bool = False) -> None:
        """
        Args:
            texts: the words that were classified, one text a prompt.
            say: in a log line, too.
        """
        self._later.add(partial(self._decided, decision, texts, say, time.time()))

    def ended(self, outcome: Outcome, span: RequestSpan | None = None) -> None:
        """`span` is the request's, where traces are sent."""
        if span is not None:
            span.ended(outcome)
        self._later.add(partial(self._ended, outcome, time.time()))

    def settle(self) -> None:
        """Works off what was told so far: who reads metrics or logs at once finds it there."""
        self._later.now()

    @property
    def tally(self) -> Tally:
        self.settle()
        return self._tally

    def _decided(self, decision: Decision, texts: Sequence[str], say: bool, now: float) -> None:
        if say:
            log(decision)
        if decision.reason != "named":
            self._tally.decided(decision)
            if self.metrics is not None:
                self.metrics.decided(decision)
        self._latest[decision.id] = Recorded(decision, now)
        if len(self._latest) > LATEST:
            self._latest.popitem(last=False)
        if self._log is not None:
            self._log.append(partial(decision_line, decision, now, texts, self._to.words))

    def _ended(self, outcome: Outcome, now: float) -> None:
        if outcome.decision.reason != "named":
            self._tally.ended(outcome)
            if self.metrics is not None:
                self.metrics.ended(outcome)
        if (recorded := self._latest.get(outcome.decision.id)) is not None:
            recorded.outcome, recorded.ended_s = outcome, now
        if self._log is not None:
            self._log.append(partial(outcome_line, outcome, now))

    def feedback(self, id: str, score: float, comment: str | None) -> Decision | None:
        """What a user thought of an answer; the decision behind it, where this process made it lately."""
        self.settle()
        now = time.time()
        recorded = self._latest.get(id)
        plan = recorded.decision.plan if recorded is not None else None
        if recorded is not None:
            recorded.feedback.append(score)
        if self.metrics is not None:
            arm = plan.assignment.arm if plan is not None and plan.assignment is not None else None
            self.metrics.feedback(plan.category if plan is not None else None, arm, score)
        if self._log is not None:
            self._log.append(partial(feedback_line, id, score, comment, now))
        return recorded.decision if recorded is not None else None

    @property
    def keeps_feedback(self) -> bool:
        """Whether feedback on an answer of any process finds its decision: in the audit record."""
        return self._log is not None

    def latest(self, most: int) -> list[dict[str, Any]]:
        """The latest decisions of this process, the newest first, without the users' words."""
        self.settle()
        found: list[dict[str, Any]] = []
        for recorded in list(reversed(self._latest.values()))[:most]:
            line = decision_line(recorded.decision, recorded.at_s, (), none_at_all)
            outcome = recorded.outcome and outcome_line(recorded.outcome, recorded.ended_s)
            found.append({**line, "outcome": outcome, "feedback": recorded.feedback})
        return found

    def status(self) -> dict[str, Any] | None:
        """Of the audit record, for JSON; None without one."""
        self.settle()
        log = self._log
        return log and {"written": log.written, "lost": log.lost, "problem": log.problem}

    def close(self) -> None:
        """Writes what is left."""
        self.settle()
        if self._log is not None:
            self._log.close()

    def _counted(self, written: int, lost: int) -> None:
        if self.metrics is not None:
            self.metrics.recorded(written, lost)
