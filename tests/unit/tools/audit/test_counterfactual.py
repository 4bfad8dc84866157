"""The smallest change of one number that changes a decision."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.counterfactual import Change, smallest_change
from vllm_lora_router.tools.audit.replay import ReplayedDecision, replay

from .conftest import decision


def result(replayed: ReplayedDecision) -> tuple[str | None, bool]:
    return replayed.category, replayed.method is None


def with_value(line: AuditLine, index: int, key: str, names: list[str], value: float) -> AuditLine:
    steps = [*line["plan"]["steps"]]
    steps[index] = {**steps[index], key: {**steps[index][key], **dict.fromkeys(names, value)}}
    return {**line, "plan": {**line["plan"], "steps": steps}}


def smaller_changes(line: AuditLine, amount: float, rng: Random) -> Iterator[AuditLine]:
    """Yield the line with each of its numbers changed by less than `amount`.

    Changes by every multiple of 0.0001, or by 100 random ones of them.
    """
    largest = max(0, round(amount * 10_000) - 1)
    multiples = [n for n in range(-largest, largest + 1) if n]
    for index, step in enumerate(line["plan"]["steps"]):
        if step.get("scale") not in ("similarity", "probability"):
            continue
        lowest = 0 if step["scale"] == "probability" else -1
        single = [[name] for name in step["scores"]]
        # A domain model has one threshold for all its categories.
        thresholds = [list(step["scores"])] if step["scale"] == "probability" else single
        for key, groups in (("scores", single), ("thresholds", thresholds)):
            for names in groups if step["scores"] else ():
                for n in multiples if len(multiples) <= 100 else [*rng.sample(multiples, 98), -largest, largest]:
                    value = round(step[key][names[0]] + n / 10_000, 4)
                    if (lowest if key == "scores" else 0) <= value <= 1:
                        yield with_value(line, index, key, names, value)


def test_change_changes_the_decision_and_no_smaller_change_does(traffic: list[str]) -> None:
    rng, tried, changed = Random(1), 0, 0
    for text in rng.sample(traffic, 500):
        line = json.loads(text)
        if not any(step.get("scores") and step["scale"] != "rule" for step in line["plan"]["steps"]):
            assert (change := smallest_change(line)) is None or change.quantity == "margin"
            continue
        change = smallest_change(line)
        if line["plan"]["reason"] == "mixed":
            assert change is None
            continue
        tried += 1
        amount = 1.0 if change is None else abs(change.amount)
        recorded = result(replay(line))
        if change is not None:
            changed += 1
            assert result(change.replayed) != recorded and result(applied(line, change)) == result(change.replayed)
        for smaller in smaller_changes(line, amount, rng):
            assert result(replay(smaller)) == recorded, (change, line)
    assert tried > 200 and changed > 200


def applied(line: AuditLine, change: Change) -> ReplayedDecision:
    """Return the replay of a copy of the line with the change."""
    changed = json.loads(json.dumps(line))
    if change.quantity == "margin":
        changed["plan"]["affinity"]["margin"] = change.new
        return replay(changed)
    (step,) = [step for step in changed["plan"]["steps"] if step["method"] == change.method]
    values = step["scores" if change.quantity == "score" else "thresholds"]
    assert all(values[name] == change.old for name in change.categories)
    values.update(dict.fromkeys(change.categories, change.new))
    return replay(changed)


def scored(method: str, scores: dict[str, float], thresholds: dict[str, float], **affinity: Any) -> AuditLine:
    """Return a line with one step of a method."""
    line = decision()
    scale = "similarity" if method == "embedding" else "probability"
    step = {"method": method, "scale": scale, "scores": scores, "thresholds": thresholds, "threshold": 0.6}
    line["plan"]["steps"] = [step]
    if affinity:
        line["plan"]["affinity"] = affinity
    return line


EQUAL_THRESHOLDS = {"medical": 0.6, "legal": 0.6}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            scored("domain", {"medical": 0.64, "legal": 0.3}, EQUAL_THRESHOLDS),
            "If the score of `medical` in the domain model were 0.0401 lower (0.6400 -> 0.5999), none of these methods "
            "would accept a category.",
        ),
        (
            scored("domain", {"medical": 0.54, "legal": 0.58}, {"medical": 0.5, "legal": 0.6}),
            "If the score of `legal` in the domain model were 0.0200 higher (0.5800 -> 0.6000), the request would be "
            "routed to legal.",
        ),
        (
            scored("embedding", {"medical": 0.9, "legal": 0.53}, {"medical": 0.9, "legal": 0.6}),
            "If the score of `medical` in the embedding rules were 0.0001 lower (0.9000 -> 0.8999), none of these "
            "methods would accept a category.",
        ),
        (
            scored("embedding", {"medical": 0.55, "legal": 0.1}, {"medical": 0.5500001, "legal": 0.6}),
            "With a threshold of 0.55 instead of 0.5500001 for `medical` in the embedding rules, the request would be "
            "routed to medical.",
        ),
    ],
)
def test_change_is_described_in_a_sentence(line: AuditLine, sentence: str) -> None:
    assert str(smallest_change(line)) == sentence


def test_head_has_a_threshold_for_each_category() -> None:
    line = scored("embedding", {"medical": 0.55, "legal": 0.1}, {"medical": 0.5500001, "legal": 0.5500001})
    line["plan"]["steps"][0]["scale"] = "probability"
    assert str(smallest_change(line)) == (
        "With a threshold of 0.55 instead of 0.5500001 for `medical` in the head, the request would be routed to "
        "medical."
    )


def test_threshold_is_changed_if_that_change_is_the_smallest() -> None:
    line = scored("domain", {"medical": 0.9999, "legal": 0.0}, {"medical": 1.0, "legal": 1.0})
    change = smallest_change(line)
    assert change is not None and (change.quantity, change.new) == ("score", 1.0)
    # A score is at most 1, and a threshold can have more than four digits.
    line = scored("domain", {"medical": 1.0, "legal": 0.0}, {"medical": 0.99997, "legal": 0.99997})
    change = smallest_change(line)
    assert change is not None
    assert str(change).startswith("If the score of `medical` in the domain model were 0.0001 lower")
    line = scored("domain", {"medical": 0.6, "legal": 0.0}, {"medical": 0.60003, "legal": 0.60003})
    change = smallest_change(line)
    assert change is not None and (change.quantity, change.new, change.categories) == (
        "threshold",
        0.6,
        ("medical", "legal"),
    )
    assert str(change) == (
        "With a threshold of 0.6 instead of 0.60003 for the domain model, the request would be routed to medical."
    )


TURN = {"turns_ago": 1, "category": "legal", "score": 0.9, "method": "domain", "active_topic_score": 0.0}


def test_scores_outside_their_range_are_not_tried() -> None:
    # The score of legal would have to be above 1.
    change = smallest_change(scored("domain", {"medical": 1.0, "legal": 0.9}, {"medical": 0.0, "legal": 0.0}))
    assert change is not None and (change.categories, change.new) == (("medical",), 0.8999)


def test_margin_is_changed_if_that_change_is_the_smallest() -> None:
    scores, thresholds = {"legal": 0.6, "medical": 0.74}, {"legal": 0.3, "medical": 0.3}
    affinity = {"margin": 0.14996, "earlier_topic": None, "turns": [TURN], "category": "legal", "kept": True}
    line = scored("domain", scores, thresholds, **affinity)
    assert str(smallest_change(line)) == (
        "With an affinity margin of 0.14 instead of 0.14996, the request would be routed to medical."
    )


def test_margin_can_decide_at_an_earlier_turn() -> None:
    turns = [
        {**TURN, "turns_ago": 2},
        {**TURN, "category": "medical", "score": 0.5, "active_topic_score": 0.3},
    ]
    line = scored("domain", {"legal": 0.1}, {"legal": 0.6}, margin=0.15, earlier_topic=None, turns=turns, kept=True)
    assert replay(line).category == "medical"
    assert str(smallest_change(line)) == (
        "With an affinity margin of 0.2001 instead of 0.15, the conversation would stay with legal."
    )


def test_margin_that_the_line_cannot_replay_is_not_tried() -> None:
    # With a margin of 0.3001 the second turn would stay with legal, and the line has no score of legal for the third.
    turns = [
        {**TURN, "turns_ago": 3},
        {**TURN, "turns_ago": 2, "category": "medical", "score": 0.5, "active_topic_score": 0.3},
        {**TURN, "turns_ago": 1, "category": "coding", "score": 0.6, "active_topic_score": 0.3},
    ]
    line = scored("domain", {"medical": 0.1}, {"medical": 0.6}, margin=0.15, earlier_topic=None, turns=turns, kept=True)
    change = smallest_change(line)
    assert replay(line).category == "coding"
    assert change is not None and change.quantity == "score"


def test_keyword_rule_has_no_change() -> None:
    keyword = decision()
    keyword["plan"]["steps"] = [
        {
            "method": "keyword",
            "scale": "rule",
            "category": "medical",
            "score": 1.0,
            "accepted": True,
            "scores": {"medical": 1.0},
        }
    ]
    assert smallest_change(keyword) is None
