"""Log lines about decisions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from vllm_lora_router.observability.decision_log import format_decision, log_decision, log_retry_without_edit
from vllm_lora_router.types import Affinity, Assignment

if TYPE_CHECKING:
    from .conftest import MakeDecision


def test_line_has_the_category_the_model_and_the_method(make_decision: MakeDecision) -> None:
    assert format_decision(make_decision()) == "medical -> medical-lora domain 0.91 (health) 3.1 ms chatcmpl-7"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("keyword", "medical -> medical-lora keyword 0.91 (blood pressure, fever) 3.1 ms chatcmpl-7"),
        ("embedding", "medical -> medical-lora embedding 0.91 (Is this medicine safe?) 3.1 ms chatcmpl-7"),
        ("mcp", "medical -> medical-lora mcp 0.91 3.1 ms chatcmpl-7"),
    ],
)
def test_line_has_the_evidence_of_each_method(make_decision: MakeDecision, method: str, expected: str) -> None:
    assert format_decision(make_decision(method=method)) == expected


def test_line_has_the_alternative_topic_and_the_arm(make_decision: MakeDecision) -> None:
    decision = make_decision(reason="affinity")
    affinity = Affinity("medical", True, "legal", 0.1, ())
    assignment = Assignment("medical", "0123", "user", "medical-lora#2", {"medical-lora#2": 1.0})
    decision = replace(decision, plan=replace(decision.plan, affinity=affinity, assignment=assignment))
    assert format_decision(decision) == (
        "medical -> medical-lora affinity 0.91 (instead of legal) [arm medical-lora#2] 3.1 ms chatcmpl-7"
    )
    no_alternative = replace(decision.plan, affinity=replace(affinity, alternative=None), assignment=None)
    assert "(instead of -)" in format_decision(replace(decision, plan=no_alternative))


def test_line_has_the_reason_below_threshold(make_decision: MakeDecision) -> None:
    decision = make_decision(None, "base", reason="below_threshold", confidence=None)
    assert format_decision(decision) == "- -> base below_threshold (health) 3.1 ms chatcmpl-7"


def test_line_has_the_failed_method_without_user_text(make_decision: MakeDecision) -> None:
    decision = make_decision(None, "base", reason="timeout", confidence=None, failure="timeout")
    assert format_decision(decision) == "- -> base timeout (domain) 3.1 ms chatcmpl-7"


def test_line_has_the_skipped_adapters(make_decision: MakeDecision) -> None:
    decision = make_decision(model="base", reason="not_loadable")
    assert format_decision(decision).startswith("medical -> base not_loadable 0.91")
    skipped = replace(decision, skipped=(("medical-lora", "its files are gone"),))
    assert "[skipped medical-lora: its files are gone]" in format_decision(skipped)


@pytest.mark.parametrize("part", ["category", "model", "id"])
def test_names_cannot_break_the_line(make_decision: MakeDecision, part: str) -> None:
    line = format_decision(make_decision(**{part: "a\r\nb\u2028c\x1b[31md\x85e\u202ef"}))
    assert len(line.splitlines()) == 1
    assert r"a\r\nb\u2028c\x1b[31md\x85e\u202ef" in line


def test_evidence_cannot_break_the_line(make_decision: MakeDecision) -> None:
    for evidence in ({"keywords": ["a\nb"]}, {"nearest": "a\nb"}, {"labels": {"a\nb": 1.0}}):
        assert r"(a\nb)" in format_decision(make_decision(evidence=evidence))


def test_the_number_of_further_keywords_is_logged(make_decision: MakeDecision) -> None:
    evidence = {"keywords": ["fever", "cough"], "more_keywords": 970}
    assert "(fever, cough and 970 more)" in format_decision(make_decision(evidence=evidence))


def test_line_is_logged_only_at_info(make_decision: MakeDecision, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm_lora_router.decisions"):
        log_decision(make_decision(category="100%s"))
    assert caplog.messages == ["100%s -> medical-lora domain 0.91 (health) 3.1 ms chatcmpl-7"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "vllm_lora_router.decisions"):
        log_decision(make_decision())
    assert caplog.messages == []


def test_retry_without_edit_is_logged(make_decision: MakeDecision, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm_lora_router.decisions"):
        log_retry_without_edit(make_decision(category="medi\ncal"))
    assert caplog.messages == [
        r"chatcmpl-7: vLLM answered 400 to the system prompt or reasoning setting of category medi\ncal; retrying "
        "without them"
    ]
