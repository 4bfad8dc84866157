"""A decision with how its response went and what its user thought of it, wherever the lines stand."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vllm_lora_router.tools.audit.reader import Line, Record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision and what came after it."""

    decision: Line
    outcome: Line | None = None  # None: it never ended, as far as the record says
    feedback: list[Line] = field(default_factory=list)  # oldest first

    @property
    def line(self) -> Line:
        """The decision's line with `outcome` and `feedback` in it."""
        return {**self.decision, "outcome": self.outcome, "feedback": self.feedback}


def joined(record: Record, wanted: Callable[[Line], bool] = lambda decision: True) -> Iterator[Recorded]:
    """The wanted decisions by time.

    Reads the record twice, first for what never ended: then only what is under way at one time is in memory, and all
    feedback. Where a client gave two requests one id, outcomes belong to decisions in their order, and feedback to the
    first.
    """
    unended, feedback = _unended_and_feedback(record)
    pairs, under_way = _Pairs[_Entry](), deque[_Entry]()
    for line in record.lines():
        if line["type"] == "decision":
            entry = _Entry(line if wanted(line) else None, feedback.pop(line["id"], []))
            if (line["run"], line["seq"]) in unended:
                entry.ended = True
            elif (outcome := pairs.decided(line["id"], entry)) is not None:
                entry.end(outcome)
            if entry.decision is not None:
                under_way.append(entry)
        elif line["type"] == "outcome" and (entry := pairs.went(line)) is not None:
            entry.end(line)
        while under_way and under_way[0].ended:
            yield under_way.popleft().recorded()
    for entry in under_way:
        yield entry.recorded()


@dataclass(slots=True)
class _Entry:
    decision: Line | None  # None: nobody wants it
    feedback: list[Line]
    outcome: Line | None = None
    ended: bool = False

    def end(self, outcome: Line) -> None:
        self.outcome, self.ended = outcome, True

    def recorded(self) -> Recorded:
        assert self.decision is not None
        return Recorded(self.decision, self.outcome, self.feedback)


class _Pairs(Generic[T]):
    # Which outcome belongs to which decision: of one id, the first to the first. Clocks of two processes may differ, so
    # an outcome may come before its decision.
    def __init__(self) -> None:
        self.waiting: dict[str, deque[T]] = {}
        self.early: dict[str, deque[Line]] = {}

    def decided(self, id: str, decision: T) -> Line | None:
        if (outcome := _first(self.early, id)) is None:
            self.waiting.setdefault(id, deque()).append(decision)
        return outcome

    def went(self, outcome: Line) -> T | None:
        if (decision := _first(self.waiting, outcome["id"])) is None:
            self.early.setdefault(outcome["id"], deque()).append(outcome)
        return decision


def _first(by_id: dict[str, deque[T]], id: str) -> T | None:
    if (found := by_id.get(id)) is None:
        return None
    first = found.popleft()
    if not found:
        del by_id[id]
    return first


def _unended_and_feedback(record: Record) -> tuple[set[tuple[str, int]], dict[str, list[Line]]]:
    pairs, feedback = _Pairs[tuple[str, int]](), dict[str, list[Line]]()
    for line in record.lines():
        if line["type"] == "decision":
            pairs.decided(line["id"], (line["run"], line["seq"]))
        elif line["type"] == "outcome":
            pairs.went(line)
        elif line["type"] == "feedback":
            feedback.setdefault(line["id"], []).append(line)
    return {place for places in pairs.waiting.values() for place in places}, feedback
