"""The smallest change of one number that would have changed a decision."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm_lora_router.classifiers.thresholds import DIGITS
from vllm_lora_router.tools.audit.reader import Line
from vllm_lora_router.tools.audit.replay import TAKEN, Again, decide_again, first_sure, held_before, helds

STEP = 10**-DIGITS  # scores have no finer one
_PLACES = {
    "keyword": "the keyword rules",
    "embedding": "the embedding rules",
    "domain": "the domain model",
    "mcp": "the MCP classifier",
}
# What a score can be.
_RANGES = {"probability": (0.0, 1.0), "similarity": (-1.0, 1.0)}


def place_of(method: str, scale: str | None = None) -> str:
    """What a method is called in a sentence; embeddings speak by rules, in similarities, or by a head."""
    return "the head" if (method, scale) == ("embedding", "probability") else _PLACES.get(method, method)


@dataclass(frozen=True, slots=True)
class Change:
    """One number, as it was and as it would have tipped the decision."""

    what: Literal["score", "threshold", "margin"]
    method: str | None  # None: the margin belongs to none
    categories: tuple[str, ...]  # whose score or threshold it is: a domain model has one threshold for all
    old: float
    new: float
    again: Again  # what would have been decided
    scale: str | None = None  # of the method's scores

    @property
    def amount(self) -> float:
        """By how much it is more, or less."""
        return round(self.new - self.old, 9)

    def __str__(self) -> str:
        if self.what == "margin":
            return f"With an affinity margin of {self.new:.10g} instead of {self.old:.10g}, {self._then()}."
        place = place_of(self.method or "", self.scale)
        if self.what == "score":
            way = "higher" if self.amount > 0 else "lower"
            return (
                f"Had `{self.categories[0]}`'s score in {place} been {abs(self.amount):.4f} {way} "
                f"({self.old:.4f} -> {self.new:.4f}), {self._then()}."
            )
        whose = f"`{self.categories[0]}` in {place}" if self.method == "embedding" else place
        return f"With a threshold of {self.new:.10g} instead of {self.old:.10g} for {whose}, {self._then()}."

    def _then(self) -> str:
        if self.again.method is None:
            return "no method that was asked would have been sure"
        if self.again.planned == "affinity":
            return f"the conversation would have stayed with {self.again.category}"
        return f"the request would have gone to {self.again.category}"


def smallest_change(line: Line) -> Change | None:
    """The smallest change of a score or a threshold of the last turn, or of the affinity margin, that would have given
    another category, or would have made the methods sure or unsure; None where no single one does.

    A decision as a function of one number is constant between its tipping points, so each of them is tried, with its
    neighbours of four digits, from the nearest on. Of several prompts, the first is what a line tells of. Methods that
    were not asked any more are not known to a line: they might have been sure.
    """
    if line["plan"]["reason"] in TAKEN or not line["plan"]["steps"]:
        return None
    now = _answer(decide_again(line))
    for number in sorted(_numbers(line), key=lambda number: number.rank):
        again = decide_again(number.written(line))
        if _answer(again) != now:
            of = (number.what, number.method, number.categories, number.old, number.new)
            return Change(*of, again, scale=line["plan"]["steps"][number.place].get("scale"))
    return None


def _answer(again: Again) -> tuple[str | None, bool]:
    return again.category, again.method is None


@dataclass(frozen=True, slots=True)
class _Number:
    # One number of a line, and what it might be.
    what: Literal["score", "threshold", "margin"]
    place: int  # of its step
    method: str | None
    categories: tuple[str, ...]
    old: float
    new: float

    @property
    def rank(self) -> tuple[float, int, bool]:
        # Of equally near ones, rather another score than another setting.
        kind = ("score", "threshold", "margin").index(self.what)
        return round(abs(self.new - self.old), 9), kind, self.new < self.old

    def written(self, line: Line) -> Line:
        plan = line["plan"]
        if self.what == "margin":
            return {**line, "plan": {**plan, "affinity": {**plan["affinity"], "margin": self.new}}}
        step = plan["steps"][self.place]
        values = dict.fromkeys(self.categories, self.new)
        if self.what == "score":
            step = {**step, "scores": {**step["scores"], **values}}
        else:
            step = {**step, "thresholds": {**_thresholds(step), **values}}
        steps = plan["steps"]
        return {**line, "plan": {**plan, "steps": [*steps[: self.place], step, *steps[self.place + 1 :]]}}


def _numbers(line: Line) -> Iterator[_Number]:
    for place, step in enumerate(line["plan"]["steps"]):
        if step.get("scores") and step["scale"] != "rule":
            yield from _scores(line, place, step)
            yield from _step_thresholds(place, step)
    yield from _margins(line)


def _scores(line: Line, place: int, step: Line) -> Iterator[_Number]:
    scores, thresholds = step["scores"], _thresholds(step)
    tips = set(scores.values())
    if (affinity := line["plan"].get("affinity")) is not None:
        margin = affinity["margin"]
        # A category that holds and has no score here counts as 0.
        tips |= {score + way * margin for score in (*tips, 0.0) for way in (-1, 1)}
    low, high = _RANGES[step["scale"]]
    for name, old in scores.items():
        for new in {new for tip in (*tips, thresholds[name]) for new in _around(tip)} - {old}:
            if low <= new <= high:
                yield _Number("score", place, step["method"], (name,), old, new)


def _step_thresholds(place: int, step: Line) -> Iterator[_Number]:
    scores, thresholds = step["scores"], _thresholds(step)
    groups: dict[object, list[str]] = {}
    for name in scores:
        # Every embedding rule, and every category of a head, has its own threshold; a domain model has one for all.
        groups.setdefault(name if step["method"] == "embedding" else thresholds[name], []).append(name)
    for names in groups.values():
        old = thresholds[names[0]]
        for new in {new for name in names for new in (scores[name], round(scores[name] + STEP, DIGITS))} - {old}:
            if 0 <= new <= 1:
                yield _Number("threshold", place, step["method"], tuple(names), old, new)


def _margins(line: Line) -> Iterator[_Number]:
    affinity = line["plan"].get("affinity")
    if affinity is None:
        return
    leads = {round(turn["score"] - turn["held_score"], DIGITS) for turn in affinity["turns"]}
    before, sure = held_before(affinity), first_sure(line["plan"]["steps"])
    if sure is not None and before is not None:
        leads.add(round(sure.score - sure.turn(before).active_topic_score, DIGITS))
    old = affinity["margin"]
    for new in {new for lead in leads for new in (lead, round(lead + STEP, DIGITS))} - {old}:
        if 0 <= new <= 1 and _is_told(affinity, new):
            yield _Number("margin", 0, None, (), old, new)


def _is_told(affinity: Line, margin: float) -> bool:
    # What an earlier turn said of the category that held is in the line, and of no other that might have held.
    pairs = zip(helds(affinity, affinity["margin"]), helds(affinity, margin), affinity["turns"], strict=False)
    return all(
        other is None or held is None or other.category in (held.category, turn["category"])
        for held, other, turn in pairs
    )


def _thresholds(step: Line) -> dict[str, float]:
    return {name: step["thresholds"].get(name, step["threshold"]) for name in step["scores"]}


def _around(tip: float) -> Iterator[float]:
    below = math.floor(round(tip / STEP, 3))
    yield from (round(step * STEP, DIGITS) for step in range(below - 1, below + 3))
