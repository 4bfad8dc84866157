"""One log line a decision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.observability.decision_log import line, log, printable

if TYPE_CHECKING:
    from .conftest import Decide


def test_the_line_says_where_a_request_went_and_why(decide: Decide) -> None:
    assert line(decide()) == "medical -> medical-lora domain 0.91 (health) 3.1 ms chatcmpl-7"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("keyword", "medical -> medical-lora keyword 0.91 (blood pressure, fever) 3.1 ms chatcmpl-7"),
        ("embedding", "medical -> medical-lora embedding 0.91 (Is this medicine safe?) 3.1 ms chatcmpl-7"),
        ("mcp", "medical -> medical-lora mcp 0.91 3.1 ms chatcmpl-7"),
    ],
)
def test_each_method_names_its_evidence(decide: Decide, method: str, expected: str) -> None:
    assert line(decide(method=method)) == expected


def test_what_nobody_was_sure_of_says_so(decide: Decide) -> None:
    unsure = decide(None, "base", reason="below_threshold", confidence=None)
    assert line(unsure) == "- -> base below_threshold (health) 3.1 ms chatcmpl-7"


def test_a_failure_names_the_method_that_failed_and_none_of_the_users_words(decide: Decide) -> None:
    failed = decide(None, "base", reason="timeout", confidence=None, failure="timeout")
    assert line(failed) == "- -> base timeout (domain) 3.1 ms chatcmpl-7"


def test_a_candidate_that_could_not_be_served_says_so(decide: Decide) -> None:
    assert line(decide(model="base", reason="not_loadable")).startswith("medical -> base not_loadable 0.91")


@pytest.mark.parametrize("part", ["category", "model", "id"])
def test_nothing_in_a_name_breaks_the_line(decide: Decide, part: str) -> None:
    said = line(decide(**{part: "a\r\nb\u2028c\x1b[31md\x85e\u202ef"}))
    assert len(said.splitlines()) == 1
    assert r"a\r\nb\u2028c\x1b[31md\x85e\u202ef" in said


def test_line_breaks_in_evidence_do_not_break_the_line(decide: Decide) -> None:
    for evidence in ({"keywords": ["a\nb"]}, {"nearest": "a\nb"}, {"labels": {"a\nb": 1.0}}):
        assert r"(a\nb)" in line(decide(evidence=evidence))


def test_other_scripts_stay_readable_and_half_an_emoji_does_no_harm() -> None:
    assert printable("Größe/量 🩺") == "Größe/量 🩺"
    assert printable("a\ud83d") == r"a\ud83d"


def test_the_line_is_logged_at_info_and_only_when_that_is_on(decide: Decide, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm_lora_router.decisions"):
        log(decide(category="100%s"))
    assert caplog.messages == ["100%s -> medical-lora domain 0.91 (health) 3.1 ms chatcmpl-7"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "vllm_lora_router.decisions"):
        log(decide())
    assert caplog.messages == []
