"""`vllm-lora-router calibrate`: thresholds by labelled prompts or by the record of what was routed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .evaluate.encoder import RULES, needs_encoder, write_encoder

if TYPE_CHECKING:
    from .conftest import Run

DOMAIN = """
model_config: {base: {loras: [{name: medical-lora}, {name: legal-lora}]}}
default_model: base
classifier: {category_model: {model_id: nowhere, threshold: 0.6}}
categories:
  - {name: medical, model_scores: [{model: base, lora_name: medical-lora}]}
  - {name: legal, model_scores: [{model: base, lora_name: legal-lora}]}
"""

Rules = Callable[..., Path]


def cells(printed: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in row.strip("│").split("│")] for row in printed.splitlines() if row.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def pasted(printed: str) -> Any:
    return yaml.safe_load(printed[printed.index("to paste into config.yaml:") :].partition("\n")[2])


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """A configuration of two embedding rules over an encoder of nine words."""

    def write(more: str = "") -> Path:
        if not (tmp_path / "encoder").exists():
            write_encoder(tmp_path / "encoder")
        file = tmp_path / "config.yaml"
        file.write_text(RULES + more, "utf-8")
        return file

    return write


def prompts(file: Path, counts: Mapping[tuple[str, str | None], int]) -> Path:
    """So many prompts of one word each, with its label: words that the encoder does not know tell them apart."""
    lines = [
        {"text": f"{word} number {n} of {label}", "category": label}
        for (word, label), count in counts.items()
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


COUNTS = {
    ("fever", "medical"): 40,
    ("cough", "medical"): 30,
    ("knee", "medical"): 6,
    ("weather", None): 30,
    ("judge", "legal"): 25,
    ("lawsuit", "legal"): 10,
    ("rent", None): 20,
}


@needs_encoder
def test_thresholds_for_a_precision_are_the_lowest_that_have_it(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    status, printed, errors = run("calibrate", rules(), "--data", data, "--precision", 0.95)
    assert (status, errors) == (0, "")
    rows = cells(printed)
    # fever 0.9, cough 0.7 and knee 0.5 are all medical; the weather, at 0.4, is out of scope.
    assert rows["embedding_rules[0].threshold (medical)"] == (
        ["0.6", "43.5% (70)", "100.00%", "0.5", "47.2% (76)", "100.00%", "95.19% to 100.00%"]
    )
    assert rows["embedding_rules[1].threshold (legal)"][:3] == ["0.6", "21.7% (35)", "100.00%"]
    assert rows["embedding_rules[1].threshold (legal)"][3] == "0.7"
    assert rows["all"][4] == "68.9% (111)"
    assert pasted(printed)["embedding_rules"] == [
        {"category": "medical", "threshold": 0.5},
        {"category": "legal", "threshold": 0.7},
    ]
    assert "chosen on, which flatters" in printed


@needs_encoder
def test_a_confident_threshold_is_higher(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {**COUNTS, ("knee", None): 4})
    plain = pasted(run("calibrate", rules(), "--data", data, "--precision", 0.94)[1])
    status, printed, _ = run("calibrate", rules(), "--data", data, "--precision", 0.94, "--confident")
    assert status == 0
    # 76 of 80 are right from 0.5 on, which may well be fewer than 94 %; from 0.7 on 70 of 70.
    assert plain["embedding_rules"][0] == {"category": "medical", "threshold": 0.5}
    assert pasted(printed)["embedding_rules"] == [{"category": "medical", "threshold": 0.7}]


@needs_encoder
def test_thresholds_for_a_share_answer_it(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    status, printed, _ = run("calibrate", rules(), "--data", data, "--share", 0.9)
    assert status == 0
    assert cells(printed)["all"][4] == "100.0% (161)"
    found = pasted(printed)["embedding_rules"]
    assert found == [{"category": "medical", "threshold": 0.4}, {"category": "legal", "threshold": 0.5}]


@needs_encoder
def test_a_category_with_too_few_prompts_is_named_and_left_alone(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {**COUNTS, ("judge", "legal"): 3})
    status, printed, errors = run("calibrate", rules(), "--data", data)
    assert status == 0
    said = "embedding_rules[1].threshold is left as it is: 13 prompts of legal are labelled, and 20 are needed\n"
    assert errors == said
    assert pasted(printed)["embedding_rules"] == [{"category": "medical", "threshold": 0.5}]
    data = prompts(tmp_path / "data.jsonl", {("fever", "medical"): 19, ("judge", "legal"): 3})
    status, printed, errors = run("calibrate", rules(), "--data", data)
    assert status == 1 and "to paste" not in printed
    assert "19 prompts of medical" in errors and "3 prompts of legal" in errors
    assert errors.endswith("no threshold could be chosen\n")


@needs_encoder
def test_a_precision_that_no_threshold_has_is_told(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {**COUNTS, ("fever", None): 40, ("medicine", None): 40})
    status, _, errors = run("calibrate", rules(), "--data", data)
    assert status == 0
    assert "embedding_rules[0].threshold is left as it is: no threshold has a precision of 0.95: the best is " in errors


@needs_encoder
def test_prompts_that_are_the_configurations_own_examples_are_told_of(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    with data.open("a") as file:
        file.write('{"text": "Medicine", "category": "medical"}\n')
    errors = run("calibrate", rules(), "--data", data)[2]
    assert errors == (
        f"warning: 1 of the prompts are examples of {tmp_path}/config.yaml itself, which flatters; use others\n"
    )


@needs_encoder
def test_the_tool_is_left_alone(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    file = rules()
    tool = "mcp_category_model: {enabled: true, command: nowhere}, "
    file.write_text(file.read_text().replace("classifier: {", "classifier: {" + tool))
    status, printed, _ = run("calibrate", file, "--data", data)
    assert status == 0 and "The tool's threshold (classifier.mcp_category_model.threshold) is left alone" in printed


def test_a_configuration_without_thresholds_is_told(run: Run, tmp_path: Path, examples: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {("a", "legal"): 30})
    status, printed, errors = run("calibrate", examples / "keyword.yaml", "--data", data)
    assert (status, printed) == (1, "")
    assert "keyword.yaml: has no threshold to choose: embedding rules, a head and a domain model have one" in errors


def record(folder: Path, *, named: bool = False, feedback: bool = False, count: int = 200) -> Path:
    """Decisions of a domain model that is right the more often the surer it is."""
    chance = Random(5)
    lines: list[dict[str, Any]] = []
    for number in range(count):
        category = chance.choice(["medical", "legal"])
        other = "legal" if category == "medical" else "medical"
        score = round(0.5 + number / count / 2, 4)
        right = chance.random() < score
        sure = score >= 0.6
        step = {
            "method": "domain",
            "ms": 1.0,
            "category": category,
            "score": score,
            "threshold": 0.6,
            "sure": sure,
            "scale": "probability",
            "scores": {category: score, other: round(1 - score, 4)},
            "thresholds": {category: 0.6, other: 0.6},
            "evidence": {},
            "cached": False,
        }
        plan = {
            "reason": "routed" if sure else "below_threshold",
            "category": category if sure else None,
            "steps": [step],
        }
        at = f"2026-11-25T12:{number // 60:02d}:{number % 60:02d}.000000Z"
        asked_for = f"{category if right else other}-lora" if named else "MoM"
        reason = "observe" if named else plan["reason"]
        line = {"type": "decision", "at": at, "id": f"c-{number}", "config": "0a1b2c3d", "asked_for": asked_for}
        served = {"model": asked_for, "adapter": None}
        lines.append({**line, "prompts": 1, "reason": reason, "plan": plan, "served": served, "ms": {}})
        if feedback:
            lines.append({"type": "feedback", "at": at, "id": f"c-{number}", "score": float(right), "comment": None})
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps({"run": "r", "seq": seq, **line}) + "\n" for seq, line in enumerate(lines, start=1))
    (folder / "r.jsonl").write_text(text, "utf-8")
    return folder


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    """A configuration whose model is not there: the record has its scores."""
    file = tmp_path / "config.yaml"
    file.write_text(DOMAIN, "utf-8")
    return file


def test_a_share_can_be_had_from_traffic_without_labels(run: Run, domain: Path, tmp_path: Path) -> None:
    status, printed, errors = run("calibrate", domain, "--record", record(tmp_path / "audit"), "--share", 0.4)
    assert status == 0
    assert printed.startswith("200 decisions; scored by domain model 200; labelled by none\n")
    row = cells(printed)["classifier.category_model.threshold"]
    assert row[3:6] == ["0.8", "40.0% (80)", "-"]
    assert pasted(printed) == {"classifier": {"category_model": {"threshold": 0.8}}}
    assert "warning: decisions by other configurations than " in errors and "0a1b2c3d (200)" in errors


def test_without_labels_it_is_said_what_can_be_had(run: Run, domain: Path, tmp_path: Path) -> None:
    status, printed, errors = run("calibrate", domain, "--record", record(tmp_path / "audit"), "--precision", 0.9)
    assert status == 1 and "to paste" not in printed
    assert "nothing in it says which category would have been right, so no precision can be had" in errors
    assert "--share 0.8" in errors and "router.mode: observe" in errors


def test_what_clients_name_while_routing_observes_is_the_label(run: Run, domain: Path, tmp_path: Path) -> None:
    folder = record(tmp_path / "audit", named=True)
    status, printed, _ = run("calibrate", domain, "--record", folder, "--precision", 0.85)
    assert status == 0
    assert "labelled by the model that the client names 200" in printed
    row = cells(printed)["classifier.category_model.threshold"]
    assert float(row[5].rstrip("%")) >= 85 > float(row[2].rstrip("%"))
    assert pasted(printed)["classifier"]["category_model"]["threshold"] == float(row[3]) > 0.6


def test_feedback_is_a_label_of_what_was_routed(run: Run, domain: Path, tmp_path: Path) -> None:
    folder = record(tmp_path / "audit", feedback=True)
    status, printed, _ = run("calibrate", domain, "--record", folder, "--precision", 0.85)
    assert status == 0
    assert "labelled by feedback 160" in printed
    assert pasted(printed)["classifier"]["category_model"]["threshold"] > 0.6


def test_a_part_of_the_record_is_taken(run: Run, domain: Path, tmp_path: Path) -> None:
    folder = record(tmp_path / "audit")
    since = ("--since", "2026-11-25T12:01:00Z", "--until", "2026-11-25T12:02:00Z")
    assert run("calibrate", domain, "--record", folder, "--share", 0.5, *since)[1].startswith("60 decisions; ")
    status, _, errors = run("calibrate", domain, "--record", folder, "--share", 0.5, "--since", "2026-11-26")
    assert status == 1 and "no decision in it has scores" in errors
    status, _, errors = run("calibrate", domain, "--record", tmp_path / "nowhere", "--share", 0.5)
    assert status == 1 and "no such folder or file" in errors


@pytest.mark.parametrize(
    "options", [(), ("--precision", "1.5"), ("--share", "0"), ("--precision", "0.9", "--share", "0.5")]
)
def test_what_cannot_be_meant_is_refused(run: Run, domain: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run("calibrate", domain, *(("--record", record(tmp_path / "audit")) if options else ()), *options)


def test_confidence_is_of_a_precision(run: Run, domain: Path, tmp_path: Path) -> None:
    status, _, errors = run("calibrate", domain, "--record", tmp_path, "--share", 0.5, "--confident")
    assert (status, errors.startswith("--confident is of a precision")) == (1, True)
