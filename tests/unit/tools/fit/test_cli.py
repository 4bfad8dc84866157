"""`vllm-lora-router fit`, and `validate` on its result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..evaluate.encoder import VECTORS, needs_encoder, write_encoder

if TYPE_CHECKING:
    from ..conftest import Run

pytest.importorskip("sklearn")
pytestmark = needs_encoder

CONFIG = """
classifier: {embedding_model: {model_id: encoder%s}}
model_config: {base: {loras: [{name: medical-lora}, {name: legal-lora}]}}
default_model: base
router: {deadline_ms: 5000}
categories:
  - {name: medical, model_scores: [{model: base, lora_name: medical-lora}]}
  - {name: legal, model_scores: [{model: base, lora_name: legal-lora}]}
  - {name: general, model_scores: [{model: base}]}
"""
MEDICAL, LEGAL = ("fever", "cough", "medicine"), ("judge", "lawsuit", "law")


def write_config(folder: Path, more: str = "", categories: str = "") -> Path:
    if not (folder / "encoder").exists():
        write_encoder(folder / "encoder")
    file = folder / "config.yaml"
    file.write_text(CONFIG % more + categories, "utf-8")
    return file


def write_data(folder: Path, *more: tuple[str, str | None]) -> Path:
    rows: list[tuple[str, str | None]] = [(f"{word} {other}", "medical") for word in MEDICAL for other in MEDICAL]
    rows += [(f"{word} {other}", "legal") for word in LEGAL for other in LEGAL]
    file = folder / "data.jsonl"
    lines = (json.dumps({"text": text, "category": label}) for text, label in (*rows, *more))
    file.write_text("\n".join(lines), "utf-8")
    return file


def test_written_head_is_used_by_classify_and_reported_by_validate(run: Run, tmp_path: Path) -> None:
    assert set(MEDICAL + LEGAL) <= set(VECTORS)
    config, data, head = write_config(tmp_path), write_data(tmp_path), tmp_path / "head"
    status, printed, errors = run("fit", config, "--data", data, "--output", head)
    assert (status, errors) == (0, "")
    assert "no examples and no description of general: the head has no output for them" in printed
    assert f'embedding_model: {{head: "{head}"}}' in printed
    stored = json.loads((head / "head.json").read_text())
    assert set(stored["outputs"]) == {"medical", "legal"}
    assert stored["about"]["held_out"]["best_guess"][0] >= 0.9
    assert len(stored["about"]["data_sha256"]) == 64
    with_head = write_config(tmp_path, f", head: {head}")
    _, plan, _ = run("classify", "--config", with_head, "--json", "a lawsuit before the judge")
    (step,) = json.loads(plan)["steps"]
    assert (step["classification"]["category"], step["classification"]["scale"]) == ("legal", "probability")
    status, printed, _ = run("validate", with_head)
    assert status == 0
    assert f"head: {stored['about']['chosen']} from 18 examples, on encoder; held out: best_guess" in printed
    assert "head: has no output for general" in printed


def test_head_of_another_encoder_is_refused_by_validate_and_classify_alike(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("fit", write_config(tmp_path), "--data", write_data(tmp_path), "--output", tmp_path / "head")
    config = write_config(tmp_path, ", head: head")
    assert "another encoder" not in run("validate", config, "--files")[2]
    monkeypatch.setitem(VECTORS, "weather", (0.0, 0.9))  # a word of the texts that identify an encoder
    shutil.rmtree(tmp_path / "encoder")
    config = write_config(tmp_path, ", head: head")
    problem = (
        f"{config}: classifier.embedding_model.head: head was fitted on encoder, which is another encoder than "
        "encoder; set model_id to that encoder, or fit the head again"
    )
    status, _, errors = run("validate", config, "--files")
    assert (status, errors.splitlines().count(problem)) == (1, 1)
    assert run("classify", "--config", config, "a lawsuit")[::2] == (1, f"{problem}\n")


def test_invalid_data_is_reported_with_its_line_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    config, head = write_config(tmp_path), tmp_path / "head"
    data = write_data(tmp_path, ("x", "leagl"))
    status, _, errors = run("fit", config, "--data", data, "--output", head)
    assert status == 1
    assert errors == f"{data}:19: category 'leagl' is not in the configuration; did you mean 'legal'?\n"
    data.write_text('{"text": "a", "category": "legal"}\n{"text": "b", "category": "legal"}\n')
    status, _, errors = run("fit", config, "--data", data, "--output", head)
    assert (status, errors.startswith("examples of at least two categories are needed")) == (1, True)
    assert not head.exists()


def test_folder_with_other_files_is_refused(run: Run, tmp_path: Path) -> None:
    config, data = write_config(tmp_path), write_data(tmp_path)
    status, _, errors = run("fit", config, "--data", data, "--output", tmp_path / "encoder")
    assert (status, "contains other files than a head" in errors) == (1, True)


def test_duplicate_and_conflicting_texts_are_warned_about(run: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path, ("fever fever", "medical"), ("cough cough", "legal"))
    status, printed, _ = run("fit", write_config(tmp_path), "--data", data, "--output", tmp_path / "head")
    assert status == 0
    assert f"warning: {data}:19: duplicate of the text in {data}:1; counted once" in printed
    assert f"warning: {data}:20: 'cough cough' is 'legal' here and 'medical' in {data}:5; both are left out" in printed


def test_configured_examples_need_no_fit(run: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    text = config.read_text()
    text = text.replace("{name: medical,", "{name: medical, examples: [fever, cough, medicine, fever cough],")
    config.write_text(text.replace("{name: legal,", "{name: legal, examples: [judge, lawsuit, law, judge law],"))
    _, plan, _ = run("classify", "--config", config, "--json", "the judge")
    assert json.loads(plan)["category"] == "legal"
    _, printed, _ = run("validate", config, "--files")
    assert (
        "head: fitted at startup from 8 texts (examples) in 2 categories; leave-one-out: 8 of 8 examples are" in printed
    )
