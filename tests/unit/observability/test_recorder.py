"""What becomes of decisions: the latest ones, and the record that a configuration asks for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from vllm_lora_router.config import load
from vllm_lora_router.observability.audit_destination import Destination, RecordError, destination, hmac_key
from vllm_lora_router.observability.audit_schema import hmac_of
from vllm_lora_router.observability.recorder import LATEST, Recorder
from vllm_lora_router.types import Client, Decision, Outcome, RequestInfo

if TYPE_CHECKING:
    from .conftest import Decide

CONFIG = """
model_config: {base: {loras: [{name: a}]}}
default_model: base
categories: [{name: medical, model_scores: [{model: base, lora_name: a}]}]
router: {audit: %s}
"""
WORDS = "my blood 🩺"


def to(folder: Path, audit: str) -> Destination:
    (folder / "config.yaml").write_text(CONFIG % audit)
    return destination(load(folder / "config.yaml"))


def outcome(decision: Decision) -> Outcome:
    return Outcome(decision, 200, 12.0, 34.0, aborted=False, finish_reason="stop")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def record(destination: Destination, decision: Decision) -> Recorder:
    recorder = Recorder()
    recorder.write_to(destination)
    recorder.decided(decision, [WORDS])
    recorder.ended(outcome(decision))
    recorder.feedback(decision.id, 1, "good")
    recorder.close()
    return recorder


def test_a_decision_its_outcome_and_what_the_user_thought_of_it_are_a_line_each(tmp_path: Path, decide: Decide) -> None:
    decision = replace(decide(), request=RequestInfo("/v1/chat/completions", "chat", "MoM", Client("acme", "f00")))
    recorder = record(to(tmp_path, "{path: audit}"), decision)
    decided, ended, feedback = lines(tmp_path / "audit")
    assert [line["seq"] for line in (decided, ended, feedback)] == [1, 2, 3]
    assert {line["id"] for line in (decided, ended, feedback)} == {"chatcmpl-7"}
    assert (decided["type"], decided["tenant"], decided["client"], decided["asked_for"]) == (
        *("decision", "acme", "f00", "MoM"),
    )
    assert decided["plan"]["steps"][0]["evidence"] == {"labels": {"health": 0.91, "biology": 0.05}}
    assert (ended["type"], ended["status"], ended["finish"], ended["aborted"]) == ("outcome", 200, "stop", False)
    assert (feedback["type"], feedback["score"], feedback["comment"]) == ("feedback", 1, "good")
    assert recorder.status() == {"written": 3, "lost": 0, "problem": None}


@pytest.mark.parametrize(("text", "kept"), [("full", True), ("hmac", False), ("none", False)])
def test_the_users_words_are_kept_as_the_configuration_says(
    tmp_path: Path, decide: Decide, text: str, kept: bool
) -> None:
    record(to(tmp_path, f"{{path: audit, text: {text}}}"), decide(failure="error", reason="error", confidence=None))
    (decided, *_) = lines(tmp_path / "audit")
    assert (decided.get("text") == WORDS) is kept
    assert ("text_hmac" in decided) is (text == "hmac")
    assert "blood" not in json.dumps(decided) or kept
    assert "the user's words" not in json.dumps(decided)  # of a classifier's error
    if text == "hmac":
        key = (tmp_path / "audit/hmac.key").read_bytes()
        assert decided["text_hmac"] == hmac_of(WORDS, key) != hmac_of(WORDS, b"another")


def test_the_key_of_the_texts_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    key = hmac_key(tmp_path / "audit")
    assert len(key) == 32 and hmac_key(tmp_path / "audit") == key
    assert [file.name for file in (tmp_path / "audit").iterdir()] == ["hmac.key"]
    assert (tmp_path / "audit/hmac.key").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_written_to_is_said_when_the_configuration_is_taken(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(RecordError, match=r"config\.yaml: router\.audit\.path: .*audit"):
        to(tmp_path, "{path: audit}")


def test_without_a_path_nothing_is_recorded(tmp_path: Path, decide: Decide) -> None:
    recorder = record(to(tmp_path, "{text: full}"), decide())
    assert recorder.status() is None and not recorder.keeps_feedback
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_another_configuration_may_record_elsewhere_and_loses_nothing(tmp_path: Path, decide: Decide) -> None:
    recorder = Recorder()
    for folder in ("one", "one", "two"):
        recorder.write_to(to(tmp_path, f"{{path: {folder}}}"))
        recorder.decided(decide(), [WORDS])
    recorder.close()
    until = time.monotonic() + 5
    while len(lines(tmp_path / "one")) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert [line["seq"] for line in lines(tmp_path / "one")] == [1, 2]
    assert [line["seq"] for line in lines(tmp_path / "two")] == [1]


def test_the_latest_decisions_are_kept_and_no_more(decide: Decide) -> None:
    recorder = Recorder()
    for number in range(LATEST + 5):
        recorder.decided(decide(id=f"c{number}"), [WORDS])
    first, *_, last = recorder.latest(LATEST + 5)
    assert (first["id"], last["id"]) == (f"c{LATEST + 4}", "c5")
    assert len(recorder.latest(3)) == 3
    assert "blood pressure" not in json.dumps(recorder.latest(3)) and WORDS not in json.dumps(recorder.latest(3))


def test_feedback_finds_the_decision_behind_an_answer(decide: Decide) -> None:
    recorder = Recorder()
    recorder.decided(decide(), [WORDS])
    recorder.ended(outcome(decide()))
    assert recorder.feedback("chatcmpl-7", 0.5, None) is not None
    assert recorder.feedback("chatcmpl-8", 0.5, None) is None
    (kept,) = recorder.latest(1)
    assert kept["feedback"] == [0.5] and kept["outcome"]["finish"] == "stop"


def test_what_was_not_routed_is_recorded_and_not_counted(tmp_path: Path, decide: Decide) -> None:
    recorder = record(to(tmp_path, "{path: audit, scope: all}"), decide(reason="named"))
    assert recorder.records_all and recorder.tally.reasons == {} and recorder.tally.under_way == 0
    assert [line["type"] for line in lines(tmp_path / "audit")] == ["decision", "outcome", "feedback"]
