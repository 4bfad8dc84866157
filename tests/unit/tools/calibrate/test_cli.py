"""`vllm-lora-router calibrate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ..evaluate.encoder import RULES, needs_encoder, write_encoder

if TYPE_CHECKING:
    from ..conftest import Run

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


def patch_of(printed: str) -> Any:
    return yaml.safe_load(printed[printed.index("paste into config.yaml:") :].partition("\n")[2])


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """Write a configuration of two embedding rules over an encoder of nine words."""

    def write(more: str = "") -> Path:
        if not (tmp_path / "encoder").exists():
            write_encoder(tmp_path / "encoder")
        file = tmp_path / "config.yaml"
        file.write_text(RULES + more, "utf-8")
        return file

    return write


def prompts(file: Path, counts: Mapping[tuple[str, str | None], int]) -> Path:
    """Write a number of prompts for each word and label; unknown words make them unique."""
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
def test_thresholds_are_the_lowest_with_the_minimum_precision(run: Run, rules: Rules, tmp_path: Path) -> None:
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
    assert patch_of(printed)["embedding_rules"] == [
        {"category": "medical", "threshold": 0.5},
        {"category": "legal", "threshold": 0.7},
    ]
    assert "chosen on, so they are too high" in printed


@needs_encoder
def test_confident_option_raises_the_threshold(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {**COUNTS, ("knee", None): 4})
    observed = patch_of(run("calibrate", rules(), "--data", data, "--precision", 0.94)[1])
    status, printed, _ = run("calibrate", rules(), "--data", data, "--precision", 0.94, "--confident")
    assert status == 0
    # From 0.5 on, 76 of 80 prompts are correct, and the interval's lower end is below 94 %; from 0.7 on, 70 of 70.
    assert observed["embedding_rules"][0] == {"category": "medical", "threshold": 0.5}
    assert patch_of(printed)["embedding_rules"] == [{"category": "medical", "threshold": 0.7}]


@needs_encoder
def test_thresholds_accept_the_requested_share(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    status, printed, _ = run("calibrate", rules(), "--data", data, "--share", 0.9)
    assert status == 0
    assert cells(printed)["all"][4] == "100.0% (161)"
    rules_patch = patch_of(printed)["embedding_rules"]
    assert rules_patch == [{"category": "medical", "threshold": 0.4}, {"category": "legal", "threshold": 0.5}]


@needs_encoder
def test_category_with_few_labels_stays_unchanged_with_a_message(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {**COUNTS, ("judge", "legal"): 3})
    status, printed, errors = run("calibrate", rules(), "--data", data)
    assert status == 0
    assert errors == (
        "embedding_rules[1].threshold stays unchanged: 13 prompts are labelled legal, and 20 are needed\n"
    )
    assert patch_of(printed)["embedding_rules"] == [{"category": "medical", "threshold": 0.5}]
    data = prompts(tmp_path / "data.jsonl", {("fever", "medical"): 19, ("judge", "legal"): 3})
    status, printed, errors = run("calibrate", rules(), "--data", data)
    assert status == 1 and "paste into" not in printed
    assert "19 prompts are labelled medical" in errors and "3 prompts are labelled legal" in errors
    assert errors.endswith("no threshold could be chosen\n")


@needs_encoder
def test_unreachable_precision_is_reported(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {**COUNTS, ("fever", None): 40, ("medicine", None): 40})
    status, _, errors = run("calibrate", rules(), "--data", data)
    assert status == 0
    expected = "embedding_rules[0].threshold stays unchanged: no threshold reaches a precision of 0.95: the highest is "
    assert expected in errors


@needs_encoder
def test_configured_examples_among_the_prompts_are_warned_about(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    with data.open("a") as file:
        file.write('{"text": "Medicine", "category": "medical"}\n')
    errors = run("calibrate", rules(), "--data", data)[2]
    assert errors == (
        f"warning: 1 of the prompts are examples of {tmp_path}/config.yaml, so figures are too high; "
        "use other prompts\n"
    )


@needs_encoder
def test_mcp_threshold_stays_unchanged(run: Run, rules: Rules, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", COUNTS)
    file = rules()
    mcp = "mcp_category_model: {enabled: true, command: nowhere}, "
    file.write_text(file.read_text().replace("classifier: {", "classifier: {" + mcp))
    status, printed, _ = run("calibrate", file, "--data", data)
    assert status == 0 and "The MCP threshold (classifier.mcp_category_model.threshold) stays unchanged" in printed


def test_configuration_without_thresholds_is_reported(run: Run, tmp_path: Path, examples: Path) -> None:
    data = prompts(tmp_path / "data.jsonl", {("a", "legal"): 30})
    status, printed, errors = run("calibrate", examples / "keyword.yaml", "--data", data)
    assert (status, printed) == (1, "")
    assert "keyword.yaml: has no threshold to choose; configure embedding rules, a head or a domain model" in errors


def record(folder: Path, *, named: bool = False, feedback: bool = False, count: int = 200) -> Path:
    """Write decisions of a domain model that is correct more often at higher scores."""
    random = Random(5)
    lines: list[dict[str, Any]] = []
    for number in range(count):
        category = random.choice(["medical", "legal"])
        other = "legal" if category == "medical" else "medical"
        score = round(0.5 + number / count / 2, 4)
        correct = random.random() < score
        accepted = score >= 0.6
        step = {
            "method": "domain",
            "duration_ms": 1.0,
            "category": category,
            "score": score,
            "threshold": 0.6,
            "accepted": accepted,
            "scale": "probability",
            "scores": {category: score, other: round(1 - score, 4)},
            "thresholds": {category: 0.6, other: 0.6},
            "evidence": {},
            "cached": False,
        }
        plan = {
            "reason": "routed" if accepted else "below_threshold",
            "category": category if accepted else None,
            "steps": [step],
        }
        at = f"2026-11-25T12:{number // 60:02d}:{number % 60:02d}.000000Z"
        model = f"{category if correct else other}-lora" if named else "MoM"
        reason = "observe" if named else plan["reason"]
        line = {"type": "decision", "at": at, "id": f"c-{number}", "config": "0a1b2c3d", "requested_model": model}
        served = {"model": model, "adapter": None}
        lines.append({**line, "prompts": 1, "reason": reason, "plan": plan, "served": served, "timings_ms": {}})
        if feedback:
            lines.append({"type": "feedback", "at": at, "id": f"c-{number}", "score": float(correct), "comment": None})
    folder.mkdir(exist_ok=True)
    text = "".join(
        json.dumps({"schema": 2, "run": "r", "seq": seq, **line}) + "\n" for seq, line in enumerate(lines, start=1)
    )
    (folder / "r.jsonl").write_text(text, "utf-8")
    return folder


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    """Write a configuration whose model does not exist; the record has its scores."""
    file = tmp_path / "config.yaml"
    file.write_text(DOMAIN, "utf-8")
    return file


def test_share_needs_no_labels(run: Run, domain: Path, tmp_path: Path) -> None:
    status, printed, errors = run("calibrate", domain, "--record", record(tmp_path / "audit"), "--share", 0.4)
    assert status == 0
    assert printed.startswith("200 decisions; scored prompts: domain model 200; labels: none\n")
    row = cells(printed)["classifier.category_model.threshold"]
    assert row[3:6] == ["0.8", "40.0% (80)", "-"]
    assert patch_of(printed) == {"classifier": {"category_model": {"threshold": 0.8}}}
    assert "warning: some decisions are by other configurations than " in errors and "0a1b2c3d (200)" in errors


def test_record_without_labels_is_reported_with_alternatives(run: Run, domain: Path, tmp_path: Path) -> None:
    status, printed, errors = run("calibrate", domain, "--record", record(tmp_path / "audit"), "--precision", 0.9)
    assert status == 1 and "paste into" not in printed
    assert "contains no labels, so precision is unknown" in errors
    assert "--share 0.8" in errors and "router.mode: observe" in errors


def test_model_requested_in_observe_mode_is_the_label(run: Run, domain: Path, tmp_path: Path) -> None:
    folder = record(tmp_path / "audit", named=True)
    status, printed, _ = run("calibrate", domain, "--record", folder, "--precision", 0.85)
    assert status == 0
    assert "labels: requested model 200" in printed
    row = cells(printed)["classifier.category_model.threshold"]
    assert float(row[5].rstrip("%")) >= 85 > float(row[2].rstrip("%"))
    assert patch_of(printed)["classifier"]["category_model"]["threshold"] == float(row[3]) > 0.6


def test_feedback_is_a_label(run: Run, domain: Path, tmp_path: Path) -> None:
    folder = record(tmp_path / "audit", feedback=True)
    status, printed, _ = run("calibrate", domain, "--record", folder, "--precision", 0.85)
    assert status == 0
    assert "labels: feedback 160" in printed
    assert patch_of(printed)["classifier"]["category_model"]["threshold"] > 0.6


def test_since_and_until_select_part_of_the_record(run: Run, domain: Path, tmp_path: Path) -> None:
    folder = record(tmp_path / "audit")
    since = ("--since", "2026-11-25T12:01:00Z", "--until", "2026-11-25T12:02:00Z")
    assert run("calibrate", domain, "--record", folder, "--share", 0.5, *since)[1].startswith("60 decisions; ")
    status, _, errors = run("calibrate", domain, "--record", folder, "--share", 0.5, "--since", "2026-11-26")
    assert status == 1 and "no decision has scores" in errors
    status, _, errors = run("calibrate", domain, "--record", tmp_path / "nowhere", "--share", 0.5)
    assert status == 1 and "no such folder or file" in errors


@pytest.mark.parametrize(
    "options", [(), ("--precision", "1.5"), ("--share", "0"), ("--precision", "0.9", "--share", "0.5")]
)
def test_invalid_options_are_refused(run: Run, domain: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run("calibrate", domain, *(("--record", record(tmp_path / "audit")) if options else ()), *options)


def test_confident_option_with_share_is_refused(run: Run, domain: Path, tmp_path: Path) -> None:
    status, _, errors = run("calibrate", domain, "--record", tmp_path, "--share", 0.5, "--confident")
    assert (status, errors.startswith("--confident applies to --precision")) == (1, True)
