"""Replay of a recorded decision from its audit line, with the code that made the decision."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_lora_router.classifiers.thresholds import SelectedCategory, select_category
from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.routing.ab_assignment import rank_arms
from vllm_lora_router.routing.affinity_state import next_topic
from vllm_lora_router.types import FAILURES, ActiveTopic, Turn

# Reasons that no score decides: they follow from the configuration, the client, or several prompts compared.
REASONS_WITHOUT_SCORES = frozenset({"off", "named", "mixed"})
# Reasons why the first candidate did not serve. They depend on adapters and tenants, which are not in the line.
FALLBACK_REASONS = frozenset({"not_loadable", "not_allowed"})
# Reasons of requests to which the plan was not applied.
UNAPPLIED_REASONS = frozenset({"observe", "named"})


@dataclass(frozen=True, slots=True)
class ReplayedDecision:
    """The decision that the router makes on the values of a line."""

    reason: str
    category: str | None
    method: str | None
    confidence: float | None
    arm: str | None  # the key's arm; None: no A/B test, or its weights are not in the line
    model: str | None  # the serving model; None: the line does not contain the candidates of this category
    planned: str  # the plan's reason, before a candidate was skipped or the plan was not applied


@dataclass(frozen=True, slots=True)
class AcceptedStep:
    """The first step with an accepted category."""

    method: Any
    category: str
    score: float
    scores: Mapping[str, float]

    def turn(self, topic: ActiveTopic) -> Turn:
        """Return the step as the last turn of a conversation with an active topic."""
        return Turn(0, self.category, self.score, self.method, self.scores.get(topic.category, 0.0))


def replay(line: AuditLine) -> ReplayedDecision:
    """Return the decision that the router makes on the values of a line.

    Some values are taken from the line, because nothing else in it determines them: failures, whether the request had
    user text, the fallback category, the matches of keyword rules and the overrides of an MCP tool. The same applies to
    the reasons why several prompts are mixed and why an adapter was skipped.
    """
    plan = line["plan"]
    planned, category, topic = _plan(plan)
    if topic is not None:
        category, method, confidence = topic.category, topic.method, topic.score
    else:
        method = confidence = None
    arms = _arms(plan, category)
    arm = arms[0] if arms else None
    if line["reason"] in UNAPPLIED_REASONS:
        return ReplayedDecision(line["reason"], category, method, confidence, arm, line["served"]["model"], planned)
    if category != plan["category"]:
        return ReplayedDecision(planned, category, method, confidence, None, None, planned)
    model, is_first = _serving_model(line, arms)
    fallback_reason = line["reason"] if line["reason"] in FALLBACK_REASONS else "not_loadable"
    reason = planned if is_first else fallback_reason
    return ReplayedDecision(reason, category, method, confidence, arm, model, planned)


def differences(line: AuditLine) -> list[str]:
    """Return the fields that differ after a replay, each as "field: recorded VALUE, replayed VALUE"."""
    replayed, plan, assignment = replay(line), line["plan"], line["plan"].get("assignment")
    compared: list[tuple[str, object, object]] = [
        ("reason", line["reason"], replayed.reason),
        ("plan.reason", plan["reason"], replayed.planned),
        ("plan.category", plan["category"], replayed.category),
        ("plan.method", plan["method"], replayed.method),
        ("plan.confidence", plan["confidence"], replayed.confidence),
        ("plan.assignment.arm", assignment and assignment["arm"], replayed.arm),
        ("served.model", line["served"]["model"], replayed.model),
    ]
    for index, step in enumerate(plan["steps"]):
        if (selected := replay_step(step)) is not None:
            names = ("category", "score", "threshold", "accepted")
            compared += [(f"plan.steps[{index}].{name}", step[name], getattr(selected, name)) for name in names]
    if (affinity := plan.get("affinity")) is not None:
        topic = topic_before_last_turn(affinity)
        compared.append(("plan.affinity.category", affinity["category"], topic and topic.category))
        accepted = first_accepted(plan["steps"])
        compared.append(("plan.affinity.alternative", affinity["alternative"], accepted and accepted.category))
    return [f"{name}: recorded {old!r}, replayed {new!r}" for name, old, new in compared if old != new]


def replay_step(step: AuditLine) -> SelectedCategory | None:
    """Return the category that a step's scores select, or None if the step has no scores or is a keyword rule."""
    scores = step.get("scores")
    if not scores or step["scale"] == "rule":
        return None
    thresholds = step["thresholds"]
    if len(thresholds) < len(scores):
        thresholds = {name: thresholds.get(name, step["threshold"]) for name in scores}
    return select_category(scores, thresholds)


def first_accepted(steps: Sequence[AuditLine]) -> AcceptedStep | None:
    """Return the first step with an accepted category, or None."""
    for step in steps:
        if (selected := replay_step(step)) is not None:
            if selected.accepted:
                return AcceptedStep(step["method"], selected.category, selected.score, step["scores"])
        elif step.get("accepted"):
            return AcceptedStep(step["method"], step["category"], step["score"], step["scores"])
    return None


def topic_before_last_turn(affinity: AuditLine) -> ActiveTopic | None:
    """Return the conversation's active topic before its last turn."""
    return list(topics_before_turns(affinity, affinity["margin"]))[-1]


def topics_before_turns(affinity: AuditLine, margin: float) -> Iterator[ActiveTopic | None]:
    """Yield the active topic before each earlier turn, then the one before the last turn, with an affinity margin."""
    earlier = affinity["earlier_topic"]
    topic = ActiveTopic(**earlier) if earlier is not None else None
    yield topic
    for turn in affinity["turns"]:
        topic = next_topic(
            topic,
            Turn(turn["turns_ago"], turn["category"], turn["score"], turn["method"], turn["active_topic_score"]),
            margin,
        )
        yield topic


def split_by_prompt(steps: Sequence[AuditLine]) -> list[list[AuditLine]]:
    """Return the steps of each prompt of a request. A prompt begins where the first method occurs again."""
    prompts: list[list[AuditLine]] = []
    for step in steps:
        if step["method"] == steps[0]["method"]:
            prompts.append([])
        prompts[-1].append(step)
    return prompts


def _plan(plan: AuditLine) -> tuple[str, str | None, ActiveTopic | None]:
    # The reason, the category if there is no topic, and the conversation's topic after this request.
    reason, steps = plan["reason"], plan["steps"]
    if reason in REASONS_WITHOUT_SCORES or (reason in FAILURES and not steps):
        return reason, plan["category"], None
    share = plan.get("share")
    if share is not None and share["position"] >= share["share"]:
        return "not_in_share", None, None
    affinity, accepted = plan.get("affinity"), first_accepted(steps)
    if affinity is not None and (before := topic_before_last_turn(affinity)) is not None:
        topic = before if accepted is None else next_topic(before, accepted.turn(before), affinity["margin"])
        is_kept = topic.category == before.category and (accepted is None or accepted.category != before.category)
        return "affinity" if is_kept else "routed", None, topic
    if accepted is not None:
        return "routed", None, ActiveTopic(accepted.category, accepted.score, accepted.method)
    failure = next((step["failure"] for step in steps if step.get("failure") is not None), None)
    # The configuration names the fallback category. The line contains it if the request fell back to it.
    fallback = plan["category"] if plan["method"] is None else None
    return failure or ("no_text" if reason == "no_text" else "below_threshold"), fallback, None


def _arms(plan: AuditLine, category: str | None) -> list[str]:
    assignment = plan.get("assignment")
    if assignment is None or assignment["category"] != category:
        return []
    return rank_arms(assignment["key"], assignment["category"], assignment["weights"])


def _serving_model(line: AuditLine, arms: Sequence[str]) -> tuple[str | None, bool]:
    # The model that serves, and whether it is the first candidate.
    candidates = line["plan"]["candidates"]
    if arms:
        ranks = {arm: rank for rank, arm in enumerate(arms)}
        candidates = sorted(candidates, key=lambda candidate: ranks.get(candidate["arm"], len(ranks)))
    # Skipped adapters are in the order of the attempts. An adapter can be a candidate twice and serve at its second
    # attempt.
    skipped = [adapter["adapter"] for adapter in line["skipped"]]
    for index, candidate in enumerate(candidates):
        if candidate["adapter"] is None or index >= len(skipped) or skipped[index] != candidate["adapter"]:
            return candidate["model"], index == 0
    served = line["served"]
    return (served["model"] if served["adapter"] is None else None), False
