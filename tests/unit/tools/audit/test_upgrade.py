"""Audit lines of schema version 1, written by an earlier release, are read like lines of the current version.

An earlier release wrote `records/version_1.jsonl`. `records/version_2.jsonl` has the same decisions, outcomes and
feedback in schema version 2.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from vllm_lora_router.observability.audit_schema import SCHEMA_VERSION
from vllm_lora_router.tools.audit.reader import AuditRecord
from vllm_lora_router.tools.audit.upgrade import upgrade
from vllm_lora_router.types import Reason

from .conftest import ADAPTERS, CATEGORIES, decision

if TYPE_CHECKING:
    from .conftest import Run, Write

RECORDS = Path(__file__).parent / "records"
CONFIG = f"""
model_config: {{base: {{loras: [{", ".join(f"{{name: {name}}}" for name in ADAPTERS)}]}}}}
default_model: base
classifier: {{category_model: {{threshold: 0.6}}}}
categories:
{"".join(f"  - {{name: {c}, model_scores: [{{model: base, lora_name: {c}-lora}}]}}" + chr(10) for c in CATEGORIES)}
"""


def lines_of(version: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECORDS / f"version_{version}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of the same name, with the record in version 1 and in version 2."""
    folders = tmp_path / "1" / "audit", tmp_path / "2" / "audit"
    for version, folder in enumerate(folders, start=1):
        folder.mkdir(parents=True)
        shutil.copy(RECORDS / f"version_{version}.jsonl", folder / "a.jsonl")
    return folders


def test_version_1_lines_cover_every_type_and_reason() -> None:
    lines = lines_of(1)
    decisions = [line for line in lines if line["type"] == "decision"]
    assert {line["type"] for line in lines} == {"decision", "outcome", "feedback", "lost"}
    old_names = {"affinity": "held", "below_threshold": "unsure", "not_in_share": "share"}
    assert {line["reason"] for line in decisions} == {old_names.get(reason, reason) for reason in get_args(Reason)}
    for key in ("affinity", "draw", "share"):
        assert any(key in line["plan"] for line in decisions)
    affinities = [line["plan"]["affinity"] for line in decisions if "affinity" in line["plan"]]
    assert any(affinity["turns"] for affinity in affinities) and any(affinity["before"] for affinity in affinities)
    assert any(line["refused"] for line in decisions) and any(line["prompts"] > 1 for line in decisions)
    steps = [step for line in decisions for step in line["plan"]["steps"]]
    assert {step["method"] for step in steps} == {"keyword", "embedding", "domain", "mcp"}
    assert {step.get("failure") for step in steps} == {None, "error", "timeout", "overload"}
    assert not any("schema" in line for line in lines)


def test_upgraded_lines_equal_the_lines_of_version_2() -> None:
    assert SCHEMA_VERSION == 2
    assert list(map(upgrade, lines_of(1))) == lines_of(2)


def test_evidence_of_the_mcp_classifier_is_upgraded() -> None:
    line = decision()
    for old, new in (("not_asked", "not_called"), ("not_by", "excluded")):
        line["plan"]["steps"][0]["evidence"] = {"tool": "classify_text", old: "a reason"}
        (step,) = upgrade(line)["plan"]["steps"]
        assert step["evidence"] == {"tool": "classify_text", new: "a reason"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit",),
        ("audit", "--json"),
        ("audit", "--lines"),
        ("audit", "--check"),
        ("audit", "--reason", "affinity", "--lines"),
        ("audit", "--text", " "),
        ("ab",),
        ("ab", "--json"),
    ],
    ids=" ".join,
)
def test_reports_on_both_versions_are_equal(run: Run, folders: tuple[Path, Path], arguments: Sequence[str]) -> None:
    command, *options = arguments
    old, new = (run(command, folder, *options) for folder in folders)
    assert old == new and old[1]


def test_explanations_of_both_versions_are_equal(run: Run, folders: tuple[Path, Path]) -> None:
    for line in lines_of(1):
        if line["type"] == "decision":
            old, new = (run("audit", folder, "--explain", line["id"]) for folder in folders)
            assert old == new and old[0] == 0
            assert "Replaying this line gives the same decision." in old[1].splitlines()


def test_calibration_on_both_versions_is_equal(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    old, new = (run("calibrate", tmp_path / "config.yaml", "--record", folder, "--share", "0.5") for folder in folders)
    assert old == new and "domain" in old[1]


def test_lines_of_both_versions_can_be_in_one_record(run: Run, folders: tuple[Path, Path]) -> None:
    old, new = folders
    text = (new / "a.jsonl").read_text("utf-8").replace('"run":"0a1b2c3d"', '"run":"another"')
    (old / "b.jsonl").write_text(text, "utf-8")
    lines = list(AuditRecord.open(old).lines())
    assert len(lines) == 2 * len(lines_of(1)) and {line["schema"] for line in lines} == {SCHEMA_VERSION}


@pytest.mark.parametrize("command", ["audit", "ab"])
def test_newer_schema_version_is_an_error(run: Run, write: Write, command: str) -> None:
    newer = json.dumps({"schema": 3, "run": "a", "seq": 2, "type": "decision", "at": "2026-11-25T12:00:00.000000Z"})
    folder = write("a", decision(), newer + "\n")
    status, output, errors = run(command, folder)
    assert (status, output) == (1, "")
    assert errors == (
        f"{folder}/a.jsonl:2: schema version 3 is newer than 2, the newest that this version of vllm-lora-router "
        "reads; install a newer version\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        {"type": "decision", "plan": None, "served": []},
        {
            "type": "decision",
            "plan": {"steps": 1, "affinity": {"turns": None}, "draw": "a"},
            "served": {},
            "refused": 1,
        },
        {"type": "another"},
    ],
)
def test_parts_of_unexpected_types_stay_unchanged(line: dict[str, Any]) -> None:
    renamed = {"refused": "skipped"}
    upgraded = upgrade(line)
    assert {**upgraded, "plan": None} == {
        **{renamed.get(key, key): value for key, value in line.items()},
        "schema": SCHEMA_VERSION,
        "plan": None,
    }
