"""Counterfactuals: the smallest change of one number that changes a recorded decision."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm_lora_router.classifiers.thresholds import SCORE_DIGITS
from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.replay import (
    REASONS_WITHOUT_SCORES,
    ReplayedDecision,
    first_accepted,
    replay,
    topic_before_last_turn,
    topics_before_turns,
)

STEP = 10**-SCORE_DIGITS  # the smallest difference between two scores
_METHOD_NAMES = {
    "keyword": "the keyword rules",
    "embedding": "the embedding rules",
    "domain": "the domain model",
    "mcp": "the MCP classifier",
}
_SCORE_RANGES = {"probability": (0.0, 1.0), "similarity": (-1.0, 1.0)}

Quantity = Literal["score", "threshold", "margin"]


def describe_method(method: str, scale: str | None = None) -> str:
    """Return a method's name for a sentence. The embedding method is a head if its scores are probabilities."""
    return "the head" if (method, scale) == ("embedding", "probability") else _METHOD_NAMES.get(method, method)


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one number, and the decision that follows from it."""

    quantity: Quantity
    method: str | None  # None for the affinity margin
    categories: tuple[str, ...]  # the categories of the score or threshold; a domain model has one threshold for all
    old: float
    new: float
    replayed: ReplayedDecision  # the decision with the new value
    scale: str | None = None  # the scale of the method's scores

    @property
    def amount(self) -> float:
        """The difference between the new and the old value."""
        return round(self.new - self.old, 9)

    def __str__(self) -> str:
        if self.quantity == "margin":
            return f"With an affinity margin of {self.new:.10g} instead of {self.old:.10g}, {self._result()}."
        method = describe_method(self.method or "", self.scale)
        if self.quantity == "score":
            direction = "higher" if self.amount > 0 else "lower"
            return (
                f"If the score of `{self.categories[0]}` in {method} were {abs(self.amount):.4f} {direction} "
                f"({self.old:.4f} -> {self.new:.4f}), {self._result()}."
            )
        place = f"`{self.categories[0]}` in {method}" if self.method == "embedding" else method
        return f"With a threshold of {self.new:.10g} instead of {self.old:.10g} for {place}, {self._result()}."

    def _result(self) -> str:
        if self.replayed.method is None:
            return "none of these methods would accept a category"
        if self.replayed.planned == "affinity":
            return f"the conversation would stay with {self.replayed.category}"
        return f"the request would be routed to {self.replayed.category}"


def smallest_change(line: AuditLine) -> Change | None:
    """Return the smallest change of one number that changes a decision, or None if no single change does.

    The numbers are the scores and thresholds of the last turn, and the affinity margin. A decision changes if its
    category changes, or if a category is accepted instead of none or the reverse.

    As a function of one number, a decision is constant between the values at which a comparison changes. So the
    function tries these values and their neighbours of four digits, the nearest first. For a request with several
    prompts, only the first prompt counts, because the line contains only its scores. Methods that did not run are not
    in the line; they might have accepted a category.
    """
    if line["plan"]["reason"] in REASONS_WITHOUT_SCORES or not line["plan"]["steps"]:
        return None
    recorded = _result(replay(line))
    for attempt in sorted(_attempts(line), key=lambda attempt: attempt.rank):
        replayed = replay(attempt.apply(line))
        if _result(replayed) != recorded:
            scale = line["plan"]["steps"][attempt.step_index].get("scale")
            return Change(
                attempt.quantity, attempt.method, attempt.categories, attempt.old, attempt.new, replayed, scale
            )
    return None


def _result(replayed: ReplayedDecision) -> tuple[str | None, bool]:
    return replayed.category, replayed.method is None


@dataclass(frozen=True, slots=True)
class _Attempt:
    # A number of a line, and a value to replace it with.
    quantity: Quantity
    step_index: int
    method: str | None
    categories: tuple[str, ...]
    old: float
    new: float

    @property
    def rank(self) -> tuple[float, int, bool]:
        # Of equally large changes, a score comes before a threshold, and a threshold before the margin.
        order = ("score", "threshold", "margin").index(self.quantity)
        return round(abs(self.new - self.old), 9), order, self.new < self.old

    def apply(self, line: AuditLine) -> AuditLine:
        plan = line["plan"]
        if self.quantity == "margin":
            return {**line, "plan": {**plan, "affinity": {**plan["affinity"], "margin": self.new}}}
        steps = plan["steps"]
        step = steps[self.step_index]
        values = dict.fromkeys(self.categories, self.new)
        if self.quantity == "score":
            step = {**step, "scores": {**step["scores"], **values}}
        else:
            step = {**step, "thresholds": {**_thresholds(step), **values}}
        steps = [*steps[: self.step_index], step, *steps[self.step_index + 1 :]]
        return {**line, "plan": {**plan, "steps": steps}}


def _attempts(line: AuditLine) -> Iterator[_Attempt]:
    for index, step in enumerate(line["plan"]["steps"]):
        if step.get("scores") and step["scale"] != "rule":
            yield from _score_attempts(line, index, step)
            yield from _threshold_attempts(index, step)
    yield from _margin_attempts(line)


def _score_attempts(line: AuditLine, index: int, step: AuditLine) -> Iterator[_Attempt]:
    scores, thresholds = step["scores"], _thresholds(step)
    limits = set(scores.values())
    if (affinity := line["plan"].get("affinity")) is not None:
        margin = affinity["margin"]
        # If the active topic has no score in this step, its score counts as 0.
        limits |= {score + sign * margin for score in (*limits, 0.0) for sign in (-1, 1)}
    low, high = _SCORE_RANGES[step["scale"]]
    for name, old in scores.items():
        for new in {new for limit in (*limits, thresholds[name]) for new in _around(limit)} - {old}:
            if low <= new <= high:
                yield _Attempt("score", index, step["method"], (name,), old, new)


def _threshold_attempts(index: int, step: AuditLine) -> Iterator[_Attempt]:
    scores, thresholds = step["scores"], _thresholds(step)
    groups: dict[object, list[str]] = {}
    for name in scores:
        # Each embedding rule, and each category of a head, has its own threshold; a domain model has one for all.
        groups.setdefault(name if step["method"] == "embedding" else thresholds[name], []).append(name)
    for names in groups.values():
        old = thresholds[names[0]]
        for new in {new for name in names for new in (scores[name], round(scores[name] + STEP, SCORE_DIGITS))} - {old}:
            if 0 <= new <= 1:
                yield _Attempt("threshold", index, step["method"], tuple(names), old, new)


def _margin_attempts(line: AuditLine) -> Iterator[_Attempt]:
    affinity = line["plan"].get("affinity")
    if affinity is None:
        return
    leads = {round(turn["score"] - turn["active_topic_score"], SCORE_DIGITS) for turn in affinity["turns"]}
    topic, accepted = topic_before_last_turn(affinity), first_accepted(line["plan"]["steps"])
    if accepted is not None and topic is not None:
        leads.add(round(accepted.score - accepted.turn(topic).active_topic_score, SCORE_DIGITS))
    old = affinity["margin"]
    for new in {new for lead in leads for new in (lead, round(lead + STEP, SCORE_DIGITS))} - {old}:
        if 0 <= new <= 1 and _can_replay(affinity, new):
            yield _Attempt("margin", 0, None, (), old, new)


def _can_replay(affinity: AuditLine, margin: float) -> bool:
    # For each earlier turn, the line contains the score of the topic that was active, and of no other topic that could
    # have been active with another margin.
    topics = zip(
        topics_before_turns(affinity, affinity["margin"]),
        topics_before_turns(affinity, margin),
        affinity["turns"],
        strict=False,
    )
    return all(
        other is None or topic is None or other.category in (topic.category, turn["category"])
        for topic, other, turn in topics
    )


def _thresholds(step: AuditLine) -> dict[str, float]:
    return {name: step["thresholds"].get(name, step["threshold"]) for name in step["scores"]}


def _around(limit: float) -> Iterator[float]:
    below = math.floor(round(limit / STEP, 3))
    yield from (round(step * STEP, SCORE_DIGITS) for step in range(below - 1, below + 3))
