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
    progress at the same time, and all feedback. Clients can use one id for several requests: outcomes are joined by the
    unique `key` of the decision (in records without it, to decisions of the id in order), and feedback to the first
    decision of the id that has the key, or the API key and tenant, of the feedback.

    Args:
        matches: returns whether a decision's line is yielded.
    """
    without_outcome, feedback = _find_unended(record)
    pairs, in_progress = _Pairs[_Entry](), deque[_Entry]()
    for line in record.lines():
        if line["type"] == "decision":
            entry = _Entry(line if matches(line) else None, _take_feedback(feedback, line))
            if (line["run"], line["seq"]) in without_outcome:
                entry.is_complete = True
            elif (outcome := pairs.add_decision(line, entry)) is not None:
                entry.complete(outcome)
            if entry.decision is not None:
                in_progress.append(entry)
        elif line["type"] == "outcome" and (entry := pairs.add_outcome(line)) is not None:
            entry.complete(line)
        while in_progress and in_progress[0].is_complete:
            yield in_progress.popleft().joined()
    record.unmatched_feedback = sum(map(len, feedback.values()))
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
    # Joins outcomes to decisions of the same key or id, the first to the first. The clocks of two processes can differ,
    # so an outcome can come before its decision.
    def __init__(self) -> None:
        self.waiting: dict[str, deque[T]] = {}
        self.early: dict[str, deque[AuditLine]] = {}

    def add_decision(self, line: AuditLine, decision: T) -> AuditLine | None:
        if (outcome := _pop_first(self.early, _key(line))) is None:
            self.waiting.setdefault(_key(line), deque()).append(decision)
        return outcome

    def add_outcome(self, outcome: AuditLine) -> T | None:
        if (decision := _pop_first(self.waiting, _key(outcome))) is None:
            self.early.setdefault(_key(outcome), deque()).append(outcome)
        return decision


def _take_feedback(feedback: dict[str, list[AuditLine]], decision: AuditLine) -> list[AuditLine]:
    with_id = feedback.pop(decision["id"], [])
    if others := [line for line in with_id if not _is_for(line, decision)]:
        feedback[decision["id"]] = others
    return [line for line in with_id if _is_for(line, decision)]


def _is_for(feedback: AuditLine, decision: AuditLine) -> bool:
    if "key" in feedback:
        return feedback["key"] == decision.get("key")
    # Earlier releases wrote no sender.
    return all(feedback.get(name, decision.get(name)) == decision.get(name) for name in ("tenant", "client"))


def _key(line: AuditLine) -> str:
    # Earlier releases wrote no key.
    return line.get("key") or line["id"]


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
            pairs.add_decision(line, (line["run"], line["seq"]))
        elif line["type"] == "outcome":
            pairs.add_outcome(line)
        elif line["type"] == "feedback":
            feedback.setdefault(line["id"], []).append(line)
    return {place for places in pairs.waiting.values() for place in places}, feedback
