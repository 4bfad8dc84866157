"""A decision made again from its line alone is the same; a line that was changed shows."""

import json
from collections import Counter
from typing import Any

import pytest

from vllm_lora_router.tools.audit.replay import decide_again, differences, prompts

from .conftest import decision

Line = dict[str, Any]


def test_ten_thousand_of_ten_thousand_decisions_are_made_again_from_the_text_of_their_line(traffic: list[str]) -> None:
    wrong = {text: found for text in traffic if (found := differences(json.loads(text)))}
    assert wrong == {} and len(traffic) == 10_000


def test_they_are_decisions_of_every_kind(traffic: list[str]) -> None:
    lines = [json.loads(text) for text in traffic]
    reasons = Counter(line["reason"] for line in lines)
    assert all(
        reasons[reason] >= 20
        for reason in ("routed", "affinity", "below_threshold", "no_text", "mixed", "not_in_share", "named")
    )
    assert all(reasons[reason] >= 20 for reason in ("error", "timeout", "overload", "observe", "off"))
    assert all(reasons[reason] >= 20 for reason in ("not_loadable", "not_allowed"))
    assert len({line["plan"]["method"] for line in lines}) == 5
    for name in ("affinity", "draw", "share"):
        assert sum(name in line["plan"] for line in lines) > 1000
    # A conversation that was left for another topic, or is known by what an earlier answer was remembered for.
    affinities = [line["plan"]["affinity"] for line in lines if "affinity" in line["plan"]]
    left = [one for one in affinities if not one["held"] and one["against"] != one["category"]]
    assert len(left) > 100 and sum(one["before"] is not None for one in affinities) > 100
    assert sum(len(line["refused"]) > 1 for line in lines) > 100
    assert sum(line["plan"]["method"] is None and line["plan"]["category"] is not None for line in lines) > 100


@pytest.mark.parametrize(
    ("field", "path", "value"),
    [
        ("plan.category", ("plan", "steps", 0, "scores", "legal"), 0.9),
        ("plan.category", ("plan", "steps", 0, "thresholds", "medical"), 0.84),
        ("plan.category", ("plan", "category"), "legal"),
        ("plan.confidence", ("plan", "confidence"), 0.84),
        ("plan.method", ("plan", "method"), "embedding"),
        ("plan.reason", ("plan", "reason"), "affinity"),
        ("reason", ("reason",), "not_loadable"),
        ("served.model", ("served", "model"), "legal-lora"),
        ("plan.steps[0].sure", ("plan", "steps", 0, "sure"), False),
    ],
)
def test_a_line_that_was_changed_is_not_the_same_any_more(field: str, path: tuple[Any, ...], value: object) -> None:
    line = decision()
    assert differences(line) == []
    *outer, last = path
    place: Any = line
    for name in outer:
        place = place[name]
    place[last] = value
    assert field in [found.partition(":")[0] for found in differences(line)]


def with_draw(line: Line, key: str) -> Line:
    line["plan"]["draw"] = {"category": "medical", "key": key, "by": "user", "arm": "a", "weights": {"a": 1, "b": 1}}
    line["plan"]["candidates"] = [
        {"model": "a", "adapter": "a", "arm": "a"},
        {"model": "b", "adapter": "b", "arm": "b"},
        {"model": "base", "adapter": None, "arm": None},
    ]
    line["served"] |= {"model": "a", "adapter": "a", "arm": "a"}
    return line


def test_the_key_draws_the_arm_again() -> None:
    again = [decide_again(with_draw(decision(), f"{key:032x}")) for key in range(200)]
    assert all(one.arm == one.model and one.reason == "routed" for one in again)
    assert 70 < sum(one.arm == "a" for one in again) < 130
    other = next(key for key in range(200) if again[key].arm == "b")
    said = differences(with_draw(decision(), f"{other:032x}"))
    assert said == ["plan.draw.arm: 'a', decided again 'b'", "served.model: 'a', decided again 'b'"]


def test_what_could_not_serve_makes_room_for_the_next_candidate() -> None:
    line = decision() | {"refused": [{"adapter": "medical-lora", "why": "its files are gone"}]}
    again = decide_again(line)
    assert (again.reason, again.planned, again.model) == ("not_loadable", "routed", "base")


def test_an_adapter_that_serves_at_the_second_try_is_not_taken_for_refused() -> None:
    line: Line = decision() | {"refused": [{"adapter": "medical-lora", "why": "it was not ready"}]}
    line["plan"]["candidates"].insert(1, line["plan"]["candidates"][0])
    assert decide_again(line).model == "medical-lora"


def test_a_share_that_the_key_stands_above_is_not_routed() -> None:
    for stands, reason in ((0.49, "routed"), (0.5, "not_in_share")):
        line = decision()
        line["plan"]["share"] = {"key": "0" * 32, "by": "user", "share": 0.5, "at": stands}
        assert decide_again(line).planned == reason


def test_the_steps_of_several_prompts_are_told_apart() -> None:
    steps = [{"method": method} for method in ("keyword", "domain", "keyword", "keyword", "domain")]
    assert [len(of_prompt) for of_prompt in prompts(steps)] == [2, 1, 2]
    assert prompts([]) == []
