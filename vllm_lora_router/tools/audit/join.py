"""Joining of decisions with their outcomes and feedback, which can be in the files of other processes."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.reader import AuditRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JoinedDecision:
    """A decision with its outcome and feedback."""

    decision: AuditLine
    outcome: AuditLine | None = None  # None: the record has no outcome
    feedback: list[AuditLine] = field(default_factory=list)  # oldest first

    @property
    def line(self) -> AuditLine:
        """The decision's line with `outcome` and `feedback` added."""
        return {**self.decision, "outcome": self.outcome, "feedback": self.feedback}


def join_decisions(
    record: AuditRecord, matches: Callable[[AuditLine], bool] = lambda decision: True
) -> Iterator[JoinedDecision]:
    """Yield the decisions that match, in order of time.

    Reads the record twice, first to find decisions without an outcome. So memory holds only the requests that were in
    progress at the same time, and all feedback. If a client used one id for several requests, outcomes are joined to
    decisions in order, and feedback to the first decision.

    Args:
        matches: returns whether a decision's line is yielded.
    """
    without_outcome, feedback = _find_unended(record)
    pairs, in_progress = _Pairs[_Entry](), deque[_Entry]()
    for line in record.lines():
        if line["type"] == "decision":
            entry = _Entry(line if matches(line) else None, feedback.pop(line["id"], []))
            if (line["run"], line["seq"]) in without_outcome:
                entry.is_complete = True
            elif (outcome := pairs.add_decision(line["id"], entry)) is not None:
                entry.complete(outcome)
            if entry.decision is not None:
                in_progress.append(entry)
        elif line["type"] == "outcome" and (entry := pairs.add_outcome(line)) is not None:
            entry.complete(line)
        while in_progress and in_progress[0].is_complete:
            yield in_progress.popleft().joined()
    for entry in in_progress:
        yield entry.joined()


@dataclass(slots=True)
class _Entry:
    decision: AuditLine | None  # None: the decision does not match
    feedback: list[AuditLine]
    outcome: AuditLine | None = None
    is_complete: bool = False

    def complete(self, outcome: AuditLine) -> None:
        self.outcome, self.is_complete = outcome, True

    def joined(self) -> JoinedDecision:
        assert self.decision is not None
        return JoinedDecision(self.decision, self.outcome, self.feedback)


class _Pairs(Generic[T]):
    # Joins outcomes to decisions of the same id, the first to the first. The clocks of two processes can differ, so an
    # outcome can come before its decision.
    def __init__(self) -> None:
        self.waiting: dict[str, deque[T]] = {}
        self.early: dict[str, deque[AuditLine]] = {}

    def add_decision(self, id: str, decision: T) -> AuditLine | None:
        if (outcome := _pop_first(self.early, id)) is None:
            self.waiting.setdefault(id, deque()).append(decision)
        return outcome

    def add_outcome(self, outcome: AuditLine) -> T | None:
        if (decision := _pop_first(self.waiting, outcome["id"])) is None:
            self.early.setdefault(outcome["id"], deque()).append(outcome)
        return decision


def _pop_first(by_id: dict[str, deque[T]], id: str) -> T | None:
    if (entries := by_id.get(id)) is None:
        return None
    first = entries.popleft()
    if not entries:
        del by_id[id]
    return first


def _find_unended(record: AuditRecord) -> tuple[set[tuple[str, int]], dict[str, list[AuditLine]]]:
    # The (run, seq) of every decision without an outcome, and the feedback by id.
    pairs, feedback = _Pairs[tuple[str, int]](), dict[str, list[AuditLine]]()
    for line in record.lines():
        if line["type"] == "decision":
            pairs.add_decision(line["id"], (line["run"], line["seq"]))
        elif line["type"] == "outcome":
            pairs.add_outcome(line)
        elif line["type"] == "feedback":
            feedback.setdefault(line["id"], []).append(line)
    return {place for places in pairs.waiting.values() for place in places}, feedback
