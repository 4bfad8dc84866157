"""Replays of recorded decisions: unchanged lines replay identically, and changed lines differ."""

import json
from collections import Counter
from typing import Any

import pytest

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.replay import differences, replay, split_by_prompt

from .conftest import decision


def test_ten_thousand_decisions_replay_identically(traffic: list[str]) -> None:
    changed = {text: fields for text in traffic if (fields := differences(json.loads(text)))}
    assert changed == {} and len(traffic) == 10_000


def test_replayed_decisions_cover_every_case(traffic: list[str]) -> None:
    lines = [json.loads(text) for text in traffic]
    reasons = Counter(line["reason"] for line in lines)
    assert all(
        reasons[reason] >= 20
        for reason in ("routed", "affinity", "below_threshold", "no_text", "mixed", "not_in_share", "named")
    )
    assert all(reasons[reason] >= 20 for reason in ("error", "timeout", "overload", "observe", "off"))
    assert all(reasons[reason] >= 20 for reason in ("not_loadable", "not_allowed"))
    assert len({line["plan"]["method"] for line in lines}) == 5
    for key in ("affinity", "assignment", "share"):
        assert sum(key in line["plan"] for line in lines) > 1000
    # Conversations that changed their topic, and conversations with a remembered earlier topic.
    affinities = [line["plan"]["affinity"] for line in lines if "affinity" in line["plan"]]
    changed = [a for a in affinities if not a["kept"] and a["alternative"] != a["category"]]
    assert len(changed) > 100 and sum(a["earlier_topic"] is not None for a in affinities) > 100
    assert sum(len(line["skipped"]) > 1 for line in lines) > 100
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
        ("plan.steps[0].accepted", ("plan", "steps", 0, "accepted"), False),
    ],
)
def test_changed_line_differs(field: str, path: tuple[Any, ...], value: object) -> None:
    line = decision()
    assert differences(line) == []
    *parents, key = path
    part: Any = line
    for name in parents:
        part = part[name]
    part[key] = value
    assert field in [difference.partition(":")[0] for difference in differences(line)]


def with_assignment(line: AuditLine, key: str) -> AuditLine:
    """Return a line with a key that is assigned to arm a."""
    line["plan"]["assignment"] = {
        "category": "medical",
        "key": key,
        "key_source": "user",
        "arm": "a",
        "weights": {"a": 1, "b": 1},
    }
    line["plan"]["candidates"] = [
        {"model": "a", "adapter": "a", "arm": "a"},
        {"model": "b", "adapter": "b", "arm": "b"},
        {"model": "base", "adapter": None, "arm": None},
    ]
    line["served"] |= {"model": "a", "adapter": "a", "arm": "a"}
    return line


def test_key_determines_the_arm() -> None:
    replayed = [replay(with_assignment(decision(), f"{key:032x}")) for key in range(200)]
    assert all(each.arm == each.model and each.reason == "routed" for each in replayed)
    assert 70 < sum(each.arm == "a" for each in replayed) < 130
    other = next(key for key in range(200) if replayed[key].arm == "b")
    assert differences(with_assignment(decision(), f"{other:032x}")) == [
        "plan.assignment.arm: recorded 'a', replayed 'b'",
        "served.model: recorded 'a', replayed 'b'",
    ]


def test_skipped_adapter_is_replaced_by_the_next_candidate() -> None:
    line = decision() | {"skipped": [{"adapter": "medical-lora", "reason": "its files are gone"}]}
    replayed = replay(line)
    assert (replayed.reason, replayed.planned, replayed.model) == ("not_loadable", "routed", "base")


def test_adapter_can_serve_at_its_second_attempt() -> None:
    line: AuditLine = decision() | {"skipped": [{"adapter": "medical-lora", "reason": "it was not ready"}]}
    line["plan"]["candidates"].insert(1, line["plan"]["candidates"][0])
    assert replay(line).model == "medical-lora"


def test_key_position_determines_whether_a_request_is_in_the_share() -> None:
    for position, reason in ((0.49, "routed"), (0.5, "not_in_share")):
        line = decision()
        line["plan"]["share"] = {"key": "0" * 32, "key_source": "user", "share": 0.5, "position": position}
        assert replay(line).planned == reason


def test_steps_are_split_by_prompt() -> None:
    steps = [{"method": method} for method in ("keyword", "domain", "keyword", "keyword", "domain")]
    assert [len(prompt) for prompt in split_by_prompt(steps)] == [2, 1, 2]
    assert split_by_prompt([]) == []
