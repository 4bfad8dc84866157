"""The smallest change of one number that tips a decision."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from vllm_lora_router.tools.audit.counterfactual import Change, smallest_change
from vllm_lora_router.tools.audit.replay import Again, decide_again

from .conftest import decision

Line = dict[str, Any]


def answer(again: Again) -> tuple[str | None, bool]:
    return again.category, again.method is None


def with_number(line: Line, place: int, kind: str, names: list[str], value: float) -> Line:
    steps = [*line["plan"]["steps"]]
    steps[place] = {**steps[place], kind: {**steps[place][kind], **dict.fromkeys(names, value)}}
    return {**line, "plan": {**line["plan"], "steps": steps}}


def smaller_changes(line: Line, amount: float, chance: Random) -> Iterator[Line]:
    """The line with each of its numbers changed by less: by every ten thousandth, or by a hundred of them at random."""
    steps = max(0, round(amount * 10_000) - 1)
    by = [n for n in range(-steps, steps + 1) if n]
    for place, step in enumerate(line["plan"]["steps"]):
        if step.get("scale") not in ("similarity", "probability"):
            continue
        low = 0 if step["scale"] == "probability" else -1
        # A domain model has one threshold for all its categories.
        together = [list(step["scores"])] if step["scale"] == "probability" else [[name] for name in step["scores"]]
        for kind, groups in (("scores", [[name] for name in step["scores"]]), ("thresholds", together)):
            for names in groups if step["scores"] else ():
                for n in by if len(by) <= 100 else [*chance.sample(by, 98), -steps, steps]:
                    value = round(step[kind][names[0]] + n / 10_000, 4)
                    if (low if kind == "scores" else 0) <= value <= 1:
                        yield with_number(line, place, kind, names, value)


def test_it_tips_the_decision_and_nothing_smaller_does(traffic: list[str]) -> None:
    chance, tried, tipping = Random(1), 0, 0
    for text in chance.sample(traffic, 500):
        line = json.loads(text)
        if not any(step.get("scores") and step["scale"] != "rule" for step in line["plan"]["steps"]):
            assert (change := smallest_change(line)) is None or change.what == "margin"
            continue
        change = smallest_change(line)
        if line["plan"]["reason"] == "mixed":
            assert change is None
            continue
        tried += 1
        amount = 1.0 if change is None else abs(change.amount)
        now = answer(decide_again(line))
        if change is not None:
            tipping += 1
            assert answer(change.again) != now and answer(applied(line, change)) == answer(change.again)
        for smaller in smaller_changes(line, amount, chance):
            assert answer(decide_again(smaller)) == now, (change, line)
    assert tried > 200 and tipping > 200


def applied(line: Line, change: Change) -> Again:
    """Decided again with the change written into a copy of the line."""
    changed = json.loads(json.dumps(line))
    if change.what == "margin":
        changed["plan"]["affinity"]["margin"] = change.new
        return decide_again(changed)
    (step,) = [step for step in changed["plan"]["steps"] if step["method"] == change.method]
    values = step["scores" if change.what == "score" else "thresholds"]
    assert all(values[name] == change.old for name in change.categories)
    values.update(dict.fromkeys(change.categories, change.new))
    return decide_again(changed)


def scored(method: str, scores: dict[str, float], thresholds: dict[str, float], **affinity: Any) -> Line:
    """A line of one method's step."""
    line = decision()
    scale = "similarity" if method == "embedding" else "probability"
    step = {"method": method, "scale": scale, "scores": scores, "thresholds": thresholds, "threshold": 0.6}
    line["plan"]["steps"] = [step]
    if affinity:
        line["plan"]["affinity"] = affinity
    return line


SIX = {"medical": 0.6, "legal": 0.6}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            scored("domain", {"medical": 0.64, "legal": 0.3}, SIX),
            "Had `medical`'s score in the domain model been 0.0401 lower (0.6400 -> 0.5999), no method that was asked "
            "would have been sure.",
        ),
        (
            scored("domain", {"medical": 0.54, "legal": 0.58}, {"medical": 0.5, "legal": 0.6}),
            "Had `legal`'s score in the domain model been 0.0200 higher (0.5800 -> 0.6000), the request would have "
            "gone to legal.",
        ),
        (
            scored("embedding", {"medical": 0.9, "legal": 0.53}, {"medical": 0.9, "legal": 0.6}),
            "Had `medical`'s score in the embedding rules been 0.0001 lower (0.9000 -> 0.8999), no method that was "
            "asked would have been sure.",
        ),
        (
            scored("embedding", {"medical": 0.55, "legal": 0.1}, {"medical": 0.5500001, "legal": 0.6}),
            "With a threshold of 0.55 instead of 0.5500001 for `medical` in the embedding rules, the request would "
            "have gone to medical.",
        ),
    ],
)
def test_it_says_what_would_have_been_enough(line: Line, said: str) -> None:
    assert str(smallest_change(line)) == said


def test_a_head_is_called_so_and_each_of_its_categories_has_a_threshold() -> None:
    line = scored("embedding", {"medical": 0.55, "legal": 0.1}, {"medical": 0.5500001, "legal": 0.5500001})
    line["plan"]["steps"][0]["scale"] = "probability"
    assert str(smallest_change(line)) == (
        "With a threshold of 0.55 instead of 0.5500001 for `medical` in the head, the request would have gone to "
        "medical."
    )


def test_a_threshold_is_named_where_it_is_the_nearest() -> None:
    line = scored("domain", {"medical": 0.9999, "legal": 0.0}, {"medical": 1.0, "legal": 1.0})
    change = smallest_change(line)
    assert change is not None and (change.what, change.new) == ("score", 1.0)
    # Scores end at 1, and thresholds need not have four digits.
    line = scored("domain", {"medical": 1.0, "legal": 0.0}, {"medical": 0.99997, "legal": 0.99997})
    change = smallest_change(line)
    assert change is not None and str(change).startswith("Had `medical`'s score in the domain model been 0.0001 lower")
    line = scored("domain", {"medical": 0.6, "legal": 0.0}, {"medical": 0.60003, "legal": 0.60003})
    change = smallest_change(line)
    assert change is not None and (change.what, change.new, change.categories) == (
        "threshold",
        0.6,
        ("medical", "legal"),
    )
    assert str(change) == (
        "With a threshold of 0.6 instead of 0.60003 for the domain model, the request would have gone to medical."
    )


TURN = {"back": 1, "category": "legal", "score": 0.9, "method": "domain", "held_score": 0.0}


def test_a_score_that_cannot_be_is_not_named() -> None:
    # Law would need more than 1.
    change = smallest_change(scored("domain", {"medical": 1.0, "legal": 0.9}, {"medical": 0.0, "legal": 0.0}))
    assert change is not None and (change.categories, change.new) == (("medical",), 0.8999)


def test_the_margin_is_named_where_it_is_the_nearest() -> None:
    scores, thresholds = {"legal": 0.6, "medical": 0.74}, {"legal": 0.3, "medical": 0.3}
    line = scored("domain", scores, thresholds, margin=0.14996, before=None, turns=[TURN], category="legal", held=True)
    assert str(smallest_change(line)) == (
        "With an affinity margin of 0.14 instead of 0.14996, the request would have gone to medical."
    )


def test_the_margin_may_have_decided_at_an_earlier_turn() -> None:
    turns = [{**TURN, "back": 2}, {**TURN, "category": "medical", "score": 0.5, "held_score": 0.3}]
    line = scored("domain", {"legal": 0.1}, {"legal": 0.6}, margin=0.15, before=None, turns=turns, held=True)
    assert decide_again(line).category == "medical"
    assert str(smallest_change(line)) == (
        "With an affinity margin of 0.2001 instead of 0.15, the conversation would have stayed with legal."
    )


def test_a_margin_that_would_have_changed_what_no_line_knows_is_not_tried() -> None:
    # With a margin of 0.3001 the second turn would have stayed with law, and nobody knows what the third says of that.
    turns = [
        {**TURN, "back": 3},
        {**TURN, "back": 2, "category": "medical", "score": 0.5, "held_score": 0.3},
        {**TURN, "back": 1, "category": "coding", "score": 0.6, "held_score": 0.3},
    ]
    line = scored("domain", {"medical": 0.1}, {"medical": 0.6}, margin=0.15, before=None, turns=turns, held=True)
    change = smallest_change(line)
    assert decide_again(line).category == "coding"
    assert change is not None and change.what == "score"


def test_what_no_score_decided_has_no_nearest_change() -> None:
    keyword = decision()
    keyword["plan"]["steps"] = [
        {
            "method": "keyword",
            "scale": "rule",
            "category": "medical",
            "score": 1.0,
            "sure": True,
            "scores": {"medical": 1.0},
        }
    ]
    assert smallest_change(keyword) is None
