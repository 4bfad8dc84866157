"""The recorder: recent decisions, counts, and the audit record that a configuration asks for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from vllm_lora_router.config import load
from vllm_lora_router.observability.audit_destination import (
    AuditDestination,
    AuditDestinationError,
    hmac_key,
    prepare_destination,
)
from vllm_lora_router.observability.audit_schema import text_hmac
from vllm_lora_router.observability.recorder import (
    MAX_RECENT_DECISIONS,
    MAX_RECENT_SCORES,
    DecisionCounts,
    Recorder,
    UnknownDecisionError,
)
from vllm_lora_router.types import Decision, Outcome, RequestInfo

if TYPE_CHECKING:
    from .conftest import MakeDecision

CONFIG = """
model_config: {base: {loras: [{name: a}]}}
default_model: base
categories: [{name: medical, model_scores: [{model: base, lora_name: a}]}]
router: {audit: %s}
"""
USER_TEXT = "my blood 🩺"


def destination_of(folder: Path, audit: str) -> AuditDestination:
    (folder / "config.yaml").write_text(CONFIG % audit)
    return prepare_destination(load(folder / "config.yaml"))


def outcome(decision: Decision, status: int | None = 200, *, aborted: bool = False) -> Outcome:
    return Outcome(decision, status, 12.0, 34.0, aborted=aborted, finish_reason="stop")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def record(destination: AuditDestination, decision: Decision) -> Recorder:
    """Record a decision, its outcome and feedback, and close the recorder."""
    recorder = Recorder()
    recorder.set_destination(destination)
    recorder.record_decision(decision, [USER_TEXT])
    recorder.record_outcome(outcome(decision))
    recorder.record_feedback(decision.id, 1, "good")
    recorder.close()
    return recorder


def test_decision_outcome_and_feedback_are_one_line_each(tmp_path: Path, make_decision: MakeDecision) -> None:
    request = RequestInfo("/v1/chat/completions", "chat", "MoM", "acme", "f00")
    recorder = record(destination_of(tmp_path, "{path: audit}"), replace(make_decision(), request=request))
    decision, ended, feedback = lines(tmp_path / "audit")
    assert [line["seq"] for line in (decision, ended, feedback)] == [1, 2, 3]
    assert {line["id"] for line in (decision, ended, feedback)} == {"chatcmpl-7"}
    assert (decision["type"], decision["tenant"], decision["client"], decision["requested_model"]) == (
        *("decision", "acme", "f00", "MoM"),
    )
    assert decision["plan"]["steps"][0]["evidence"] == {"labels": {"health": 0.91, "biology": 0.05}}
    assert (ended["type"], ended["status"], ended["finish_reason"], ended["aborted"]) == (
        *("outcome", 200, "stop", False),
    )
    assert (feedback["type"], feedback["score"], feedback["comment"]) == ("feedback", 1, "good")
    assert recorder.audit_status() == {"written": 3, "lost": 0, "problem": None}


@pytest.mark.parametrize(("text", "is_kept"), [("full", True), ("hmac", False), ("none", False)])
def test_user_text_is_kept_as_configured(tmp_path: Path, make_decision: MakeDecision, text: str, is_kept: bool) -> None:
    failed = make_decision(failure="error", reason="error", confidence=None)
    record(destination_of(tmp_path, f"{{path: audit, text: {text}}}"), failed)
    (decision, *_) = lines(tmp_path / "audit")
    assert (decision.get("text") == USER_TEXT) is is_kept
    assert ("text_hmac" in decision) is (text == "hmac")
    assert "blood" not in json.dumps(decision) or is_kept
    assert "user text" not in json.dumps(decision)  # the message of the classifier's error
    if text == "hmac":
        key = (tmp_path / "audit/hmac.key").read_bytes()
        assert decision["text_hmac"] == text_hmac(USER_TEXT, key) != text_hmac(USER_TEXT, b"another")


def test_hmac_key_is_created_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    key = hmac_key(tmp_path / "audit")
    assert len(key) == 32 and hmac_key(tmp_path / "audit") == key
    assert [file.name for file in (tmp_path / "audit").iterdir()] == ["hmac.key"]
    assert (tmp_path / "audit/hmac.key").stat().st_mode & 0o777 == 0o600


def test_unusable_folder_is_an_error_with_the_configuration_key(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(AuditDestinationError, match=r"config\.yaml: router\.audit\.path: .*audit"):
        destination_of(tmp_path, "{path: audit}")


def test_no_record_is_written_without_a_path(tmp_path: Path, make_decision: MakeDecision) -> None:
    recorder = record(destination_of(tmp_path, "{text: full}"), make_decision())
    assert recorder.audit_status() is None and not recorder.has_audit_record
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_changed_destination_loses_no_line(tmp_path: Path, make_decision: MakeDecision) -> None:
    recorder = Recorder()
    for folder in ("one", "one", "two"):
        recorder.set_destination(destination_of(tmp_path, f"{{path: {folder}}}"))
        recorder.record_decision(make_decision(), [USER_TEXT])
    recorder.close()
    until = time.monotonic() + 60
    while len(lines(tmp_path / "one")) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert [line["seq"] for line in lines(tmp_path / "one")] == [1, 2]
    assert [line["seq"] for line in lines(tmp_path / "two")] == [1]


def test_recent_decisions_are_bounded_and_have_no_user_text(make_decision: MakeDecision) -> None:
    recorder = Recorder()
    for number in range(MAX_RECENT_DECISIONS + 5):
        recorder.record_decision(make_decision(id=f"c{number}"), [USER_TEXT])
    first, *_, last = recorder.recent_decisions(MAX_RECENT_DECISIONS + 5)
    assert (first["id"], last["id"]) == (f"c{MAX_RECENT_DECISIONS + 4}", "c5")
    assert len(recorder.recent_decisions(3)) == 3
    recent = json.dumps(recorder.recent_decisions(3))
    assert "blood pressure" not in recent and USER_TEXT not in recent


def test_feedback_is_added_to_its_decision(make_decision: MakeDecision) -> None:
    recorder = Recorder()
    decision = make_decision()
    recorder.record_decision(decision, [USER_TEXT])
    recorder.record_outcome(outcome(decision))
    assert recorder.record_feedback("chatcmpl-7", 0.5, None) is not None
    with pytest.raises(UnknownDecisionError):
        recorder.record_feedback("chatcmpl-8", 0.5, None)
    (recent,) = recorder.recent_decisions(1)
    assert recent["feedback"] == [0.5] and recent["outcome"]["finish_reason"] == "stop"


def test_latest_feedback_on_a_decision_is_kept(make_decision: MakeDecision) -> None:
    recorder = Recorder()
    recorder.record_decision(make_decision(), [USER_TEXT])
    for score in range(100):
        recorder.record_feedback("chatcmpl-7", score, None)
    (recent,) = recorder.recent_decisions(1)
    assert recent["feedback"] == list(range(100 - MAX_RECENT_SCORES, 100))


def test_request_that_names_its_model_is_recorded_but_not_counted(tmp_path: Path, make_decision: MakeDecision) -> None:
    recorder = record(destination_of(tmp_path, "{path: audit, scope: all}"), make_decision(reason="named"))
    assert recorder.records_all_requests
    assert recorder.counts.by_reason == {} and recorder.counts.in_progress == 0
    assert [line["type"] for line in lines(tmp_path / "audit")] == ["decision", "outcome", "feedback"]


def test_decisions_are_counted_by_reason_and_as_in_progress(make_decision: MakeDecision) -> None:
    counts, routed = DecisionCounts(), make_decision()
    below_threshold = make_decision(None, "base", reason="below_threshold", confidence=None)
    for decision in (routed, routed, below_threshold):
        counts.count_decision(decision)
    assert (dict(counts.by_reason), counts.in_progress) == ({"routed": 2, "below_threshold": 1}, 3)
    counts.count_outcome(outcome(routed))
    assert (dict(counts.by_reason), counts.in_progress) == ({"routed": 2, "below_threshold": 1}, 2)


def test_failed_and_aborted_responses_are_counted(make_decision: MakeDecision) -> None:
    counts, decision = DecisionCounts(), make_decision()
    ends = [(200, False), (400, False), (499, True), (500, False), (503, True), (None, True)]
    for status, aborted in ends:
        counts.count_decision(decision)
        counts.count_outcome(outcome(decision, status, aborted=aborted))
    assert (counts.in_progress, counts.failed, counts.aborted) == (0, 2, 3)
