"""A decision made again from its line alone, by the code that made it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.classifiers.thresholds import Chosen, choose
from vllm_lora_router.routing.ab_assignment import order
from vllm_lora_router.routing.affinity_state import follow
from vllm_lora_router.tools.audit.reader import Line
from vllm_lora_router.types import FAILURES, ActiveTopic, Turn

# Reasons that follow from no score: the configuration's, the client's, or a comparison of several prompts.
TAKEN = frozenset({"off", "named", "mixed"})
# Why the first candidate does not serve: what adapters there are, and whose, stands in no line.
INSTEAD = frozenset({"not_loadable", "not_allowed"})
# What was really done did not follow from the plan.
UNAPPLIED = frozenset({"observe", "named"})


@dataclass(frozen=True, slots=True)
class Again:
    """A decision made again."""

    reason: str  # of what was done
    category: str | None
    method: str | None
    confidence: float | None
    arm: str | None  # that the key draws; None: no A/B test, or none that the line knows the weights of
    model: str | None  # that serves; None: the line does not say what serves this category
    planned: str  # the reason of the plan, before a candidate could not serve or the plan was not applied


@dataclass(frozen=True, slots=True)
class Sure:
    """The first method that was sure."""

    method: Any
    category: str
    score: float
    scores: Mapping[str, float]

    def turn(self, held: ActiveTopic) -> Turn:
        return Turn(0, self.category, self.score, self.method, self.scores.get(held.category, 0.0))


def decide_again(line: Line) -> Again:
    """What the router would decide on what the line says.

    Taken from the line, because nothing in it says otherwise: failures, whether there were words at all, the fallback
    category, what keyword rules matched, why several prompts do not go together, what a tool asked for, and why an
    adapter was refused.
    """
    plan = line["plan"]
    planned, category, held = _planned(plan)
    if held is not None:
        category, method, confidence = held.category, held.method, held.score
    else:
        method = confidence = None
    arms = _arms(plan, category)
    arm = arms[0] if arms else None
    if line["reason"] in UNAPPLIED:
        return Again(line["reason"], category, method, confidence, arm, line["served"]["model"], planned)
    if category != plan["category"]:
        return Again(planned, category, method, confidence, None, None, planned)
    model, first = _served(line, arms)
    instead = line["reason"] if line["reason"] in INSTEAD else "not_loadable"
    return Again(planned if first else instead, category, method, confidence, arm, model, planned)


def differences(line: Line) -> list[str]:
    """What is not as it would be decided again, as "field: recorded, decided again"; empty when all is the same."""
    again, plan, draw = decide_again(line), line["plan"], line["plan"].get("draw")
    compared: list[tuple[str, object, object]] = [
        ("reason", line["reason"], again.reason),
        ("plan.reason", plan["reason"], again.planned),
        ("plan.category", plan["category"], again.category),
        ("plan.method", plan["method"], again.method),
        ("plan.confidence", plan["confidence"], again.confidence),
        ("plan.draw.arm", draw and draw["arm"], again.arm),
        ("served.model", line["served"]["model"], again.model),
    ]
    for place, step in enumerate(plan["steps"]):
        if (chosen := chosen_in(step)) is not None:
            names = ("category", "score", "threshold", "sure")
            compared += [(f"plan.steps[{place}].{name}", step[name], getattr(chosen, name)) for name in names]
    if (affinity := plan.get("affinity")) is not None:
        before = held_before(affinity)
        compared.append(("plan.affinity.category", affinity["category"], before and before.category))
        sure = first_sure(plan["steps"])
        compared.append(("plan.affinity.against", affinity["against"], sure and sure.category))
    return [f"{name}: {was!r}, decided again {now!r}" for name, was, now in compared if was != now]


def chosen_in(step: Line) -> Chosen | None:
    """What a step's scores choose; None where it has none, or where they are facts: a rule matched or did not."""
    scores = step.get("scores")
    if not scores or step["scale"] == "rule":
        return None
    thresholds = step["thresholds"]
    if len(thresholds) < len(scores):
        thresholds = {name: thresholds.get(name, step["threshold"]) for name in scores}
    return choose(scores, thresholds)


def first_sure(steps: Sequence[Line]) -> Sure | None:
    """The first step that is sure; None when none is."""
    for step in steps:
        if (chosen := chosen_in(step)) is not None:
            if chosen.sure:
                return Sure(step["method"], chosen.category, chosen.score, step["scores"])
        elif step.get("sure"):
            return Sure(step["method"], step["category"], step["score"], step["scores"])
    return None


def held_before(affinity: Line) -> ActiveTopic | None:
    """What the conversation was about before its last turn."""
    return list(helds(affinity, affinity["margin"]))[-1]


def helds(affinity: Line, margin: float) -> Iterator[ActiveTopic | None]:
    """What the conversation was about before each of its earlier turns, and last before its last one."""
    held = ActiveTopic(**affinity["before"]) if affinity["before"] is not None else None
    yield held
    for turn in affinity["turns"]:
        held = follow(
            held, Turn(turn["back"], turn["category"], turn["score"], turn["method"], turn["held_score"]), margin
        )
        yield held


def prompts(steps: Sequence[Line]) -> list[list[Line]]:
    """The steps of each prompt of a request with several: a prompt begins where the first method comes again."""
    found: list[list[Line]] = []
    for step in steps:
        if step["method"] == steps[0]["method"]:
            found.append([])
        found[-1].append(step)
    return found


def _planned(plan: Line) -> tuple[str, str | None, ActiveTopic | None]:
    # Reason, the category where nothing holds, and what the conversation is about from here on.
    reason, steps = plan["reason"], plan["steps"]
    if reason in TAKEN or (reason in FAILURES and not steps):
        return reason, plan["category"], None
    share = plan.get("share")
    if share is not None and share["at"] >= share["share"]:
        return "not_in_share", None, None
    affinity, sure = plan.get("affinity"), first_sure(steps)
    if affinity is not None and (before := held_before(affinity)) is not None:
        held = before if sure is None else follow(before, sure.turn(before), affinity["margin"])
        stays = held.category == before.category and (sure is None or sure.category != before.category)
        return "affinity" if stays else "routed", None, held
    if sure is not None:
        return "routed", None, ActiveTopic(sure.category, sure.score, sure.method)
    failure = next((step["failure"] for step in steps if step.get("failure") is not None), None)
    # What then takes the request is the configuration's, and stands in the line of one that it took.
    fallback = plan["category"] if plan["method"] is None else None
    return failure or ("no_text" if reason == "no_text" else "below_threshold"), fallback, None


def _arms(plan: Line, category: str | None) -> list[str]:
    draw = plan.get("draw")
    if draw is None or draw["category"] != category:
        return []
    return order(draw["key"], draw["category"], draw["weights"])


def _served(line: Line, arms: Sequence[str]) -> tuple[str | None, bool]:
    # The model that serves, and whether it is the first of the candidates.
    candidates = line["plan"]["candidates"]
    if arms:
        places = {arm: place for place, arm in enumerate(arms)}
        candidates = sorted(candidates, key=lambda one: places.get(one["arm"], len(places)))
    # An adapter may stand among them twice, and serve at the second try: they were tried in this order.
    refused = [one["adapter"] for one in line["refused"]]
    for place, candidate in enumerate(candidates):
        if candidate["adapter"] is None or place >= len(refused) or refused[place] != candidate["adapter"]:
            return candidate["model"], place == 0
    served = line["served"]
    return (served["model"] if served["adapter"] is None else None), False
