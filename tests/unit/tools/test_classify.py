"""`vllm-lora-router classify`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Run

Config = Callable[..., Path]


def test_plan_is_printed_with_route_and_reason(run: Run, examples: Path) -> None:
    status, printed, errors = run(
        "classify", "What causes high blood pressure?", "--config", examples / "keyword.yaml", "--model", "acme/tiny"
    )
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    assert any("keywords: ['blood pressure']" in line and "yes" in line for line in lines)
    assert any(line.startswith("medical -> medical-lora (keyword; category medical, score 1) in ") for line in lines)
    assert "  fallback: acme/tiny (default_model)" in lines
    assert "  system prompt (insert): You are a medical expert." in lines


def test_text_without_accepted_category_is_printed_with_default_model(run: Run, examples: Path) -> None:
    status, printed, _ = run("classify", "Hello.", "--config", examples / "keyword.yaml")
    assert status == 0
    assert "- -> base (below_threshold; default_model) in " in printed


def as_json(run: Run, *arguments: object) -> dict[str, Any]:
    status, printed, errors = run("classify", *arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(printed)


def test_json_option_prints_only_json(run: Run, examples: Path) -> None:
    plan = as_json(run, "什么会引起高血压？", "--config", examples / "keyword.yaml", "--served-model-name", "chat")
    assert (plan["category"], plan["method"], plan["confidence"], plan["reason"]) == (
        "medical",
        "keyword",
        1.0,
        "routed",
    )
    assert [candidate["model"] for candidate in plan["candidates"]] == ["medical-lora", "chat"]
    (step,) = plan["steps"]
    assert step["classification"]["evidence"] == {"rule": 1, "operator": "OR", "keywords": ["高血压"]}
    assert step["classification"]["scores"] == {"medical": 1.0}
    assert len(plan["config_version"]) == 8


def test_dash_reads_text_from_standard_input(run: Run, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("line one\nabout a lawsuit\n"))
    assert as_json(run, "-", "--config", examples / "keyword.yaml")["category"] == "legal"


def test_reasoning_and_unusual_names_are_printed(run: Run, config: Config) -> None:
    file = config(
        ("    loras:", "    reasoning_family: gpt-oss\n    loras:"),
        ('        lora_name: "legal-lora"', '        lora_name: "legal-lora"\n        use_reasoning: true'),
        ('"legal"', '"[/b]law"'),
        ("You are a legal expert.", "[red]You\\nare[/i]"),
    )
    _, printed, _ = run("classify", "a lawsuit", "--config", file)
    assert "[/b]law -> legal-lora (keyword; category [/b]" in printed
    assert r"  system prompt (insert): [red]You\nare[/i]" in printed
    assert "  reasoning: medium" in printed


def test_invalid_configuration_exits_with_1(run: Run, config: Config) -> None:
    status, printed, errors = run("classify", "x", "--config", config(more="router: {deadline: 5}\n"))
    assert (status, printed) == (1, "")
    assert "router.deadline: unknown key; did you mean 'deadline_ms'?" in errors


def test_unusable_model_exits_with_1(run: Run, config: Config) -> None:
    file = config(more="classifier: {category_model: {model_id: model}}\n")
    (file.parent / "model").mkdir()
    status, _, errors = run("classify", "x", "--config", file)
    assert status == 1
    assert errors == (
        f"{file}: classifier.category_model.model_id: {file.parent}/model has no config.json; it must be a model "
        "saved by transformers\n"
    )


def test_pattern_with_nested_repetition_does_not_hang(config: Config) -> None:
    file = config(more="router: {text: {drop: ['(a+)+$']}}\n")
    command = [sys.executable, "-m", "vllm_lora_router.cli", "classify", "a" * 40 + "!", "--config", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "- -> base (below_threshold; default_model) in " in result.stdout
