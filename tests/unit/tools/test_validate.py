"""`vllm-lora-router validate`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Run

Config = Callable[..., Path]


def rows(printed: str) -> list[list[str]]:
    """Return the cells of every table row."""
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in printed.splitlines() if row.startswith("│")]


@pytest.mark.parametrize("name", ["guide", "keyword", "embedding", "domain", "combined"])
def test_example_configuration_is_valid(run: Run, examples: Path, name: str) -> None:
    status, printed, errors = run("validate", examples / f"{name}.yaml")
    assert (status, errors) == (0, "")
    assert "Categories" in printed
    assert "Adapters" in printed


def test_valid_configuration_prints_its_interpretation(run: Run, config: Config) -> None:
    file = config()
    status, printed, _ = run("validate", file)
    assert status == 0
    assert re.search(rf"^{re.escape(str(file))} \(version [0-9a-f]{{8}}\): base base, default base$", printed, re.M)
    assert (
        "methods, in order: keyword, embedding (not configured), domain (not configured), mcp (not configured); "
        "deadline for all methods together: 50 ms, or longer on a slow CPU"
    ) in printed
    assert ["medical", "keyword", "medical-lora", "unchanged", "insert, 25 characters"] in rows(printed)
    assert ["medical-lora", "on the command line", "not checked", "Medicine and health care"] in rows(printed)


def test_guide_prints_served_name_and_warnings(run: Run, examples: Path) -> None:
    _, printed, _ = run(
        *("validate", examples / "guide.yaml", "--model", "meta-llama/Llama-2-7b-hf"),
        *("--lora-modules", "technical-lora=/a/technical", "extra-lora=/a/extra"),
    )
    assert ["general", "domain", "meta-llama/Llama-2-7b-hf (the base)", "unchanged", "insert, 28 characters"] in rows(
        printed
    )
    assert [row[:2] for row in rows(printed) if row[0].endswith("-lora")] == [
        ["technical-lora", "/a/technical"],
        ["medical-lora", "on the command line"],
        ["legal-lora", "on the command line"],
        ["extra-lora", "/a/extra"],
    ]
    assert (
        "info: keys without effect in this router: vllm_endpoints, model_config.llama2-7b.preferred_endpoints"
        in printed
    )
    assert "warning: reasoning_family 'llama2' is neither built in nor defined" in printed
    assert "domain model labels: unknown; there is no folder models/category_classifier_" in printed


def test_fallbacks_reasoning_and_unused_rules_are_printed(run: Run, config: Config) -> None:
    file = config(
        (
            '        lora_name: "legal-lora"',
            '        lora_name: "legal-lora"\n      - model: "base"\n        score: 0.5',
        ),
        ("    loras:", "    reasoning_family: qwen3\n    loras:"),
        ('        lora_name: "medical-lora"', '        lora_name: "medical-lora"\n        use_reasoning: true'),
        ('  - name: "technical"\n', '  - name: "technical"\n    methods: [domain]\n'),
    )
    status, printed, _ = run("validate", file)
    assert status == 0
    assert ["legal", "keyword", "legal-lora, then base (the base)", "unchanged", "insert, 23 characters"] in rows(
        printed
    )
    assert ["medical", "keyword", "medical-lora", "enable_thinking: true", "insert, 25 characters"] in rows(printed)
    assert [row[1] for row in rows(printed) if row[0] == "technical"] == ["none"]
    assert (
        "warning: category 'legal': legal-lora (1) serves every request; the base (0.5) is only tried when" in printed
    )
    assert (
        "warning: keyword_rules[2] has no effect: the methods of category 'technical' do not contain keyword" in printed
    )
    assert "warning: no method can choose category 'technical'" in printed


def test_invalid_configuration_prints_all_problems_and_exits_with_1(run: Run, config: Config) -> None:
    file = config(("default_model", "defaultmodel"), ('lora_name: "medical-lora"', 'lora_name: "medcal-lora"'))
    status, printed, errors = run("validate", file)
    assert (status, printed) == (1, "")
    lines = errors.splitlines()
    assert lines[0] == f"{file}:2:1: needs the key 'default_model'"
    assert lines[1] == f"{file}:12:1: defaultmodel: unknown key; did you mean 'default_model'?"
    assert lines[2].endswith("is not declared under model_config.base.loras; did you mean 'medical-lora'?")
    assert lines[3] == f"3 problems in {file}"


def test_adapter_may_be_declared_on_the_command_line_only(run: Run, config: Config) -> None:
    file = config(('lora_name: "medical-lora"', 'lora_name: "from-outside"'))
    assert "'from-outside' is not declared" in run("validate", file)[2]
    status, printed, _ = run("validate", file, "--lora-modules", "from-outside=/a/folder")
    assert status == 0
    assert ["from-outside", "/a/folder", "not checked", ""] in rows(printed)


def test_single_problem_is_counted_in_singular(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("validate", tmp_path / "nowhere.yaml")
    assert (status, errors) == (1, f"{tmp_path}/nowhere.yaml:1:1: no such file\n1 problem in {tmp_path}/nowhere.yaml\n")


def test_unknown_served_name_is_a_problem(run: Run, config: Config) -> None:
    status, _, errors = run("validate", config(('  "base":', '  "other": {}\n  "base":')), "--model", "acme/tiny")
    assert status == 1
    assert "none of 'other', 'base' is the served model 'acme/tiny'" in errors


def test_markup_and_line_breaks_in_names_are_printed_literally(run: Run, config: Config) -> None:
    file = config(('"base"', '"[/b][red]base"'), ('"medical"', '"two [/i]"'), ('"medical-lora"', '"[bold]lora[/x]"'))
    status, printed, _ = run("validate", file, "--lora-modules", "[bold]lora[/x]=/a/[red]folder[/y]")
    assert status == 0
    assert "base [/b][red]base, default [/b][red]base" in printed
    assert [row[2] for row in rows(printed) if row[0] == "two [/i]"] == ["[bold]lora[/x]"]
    assert [row[1] for row in rows(printed) if row[0] == "[bold]lora[/x]"] == ["/a/[red]folder[/y]"]


def test_configuration_is_found_by_variable_or_default_path(
    run: Run, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config()
    monkeypatch.setenv("VLLM_LORA_ROUTER_CONFIG", str(file))
    assert run("validate")[1].startswith(f"{file} (version")
    monkeypatch.delenv("VLLM_LORA_ROUTER_CONFIG")
    assert "config/config.yaml:1:1: no such file" in run("validate")[2]
    (file.parent / "config").mkdir()
    file.rename(file.parent / "config/config.yaml")
    assert run("validate")[1].startswith("config/config.yaml (version")


DOMAIN = "classifier: {category_model: {model_id: model}}\n"


def write_labels(folder: Path, labels: dict[str, str]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"id2label": labels}))
    (folder / "model.safetensors").touch()


def test_domain_model_labels_are_printed_with_their_categories(run: Run, config: Config) -> None:
    file = config(
        ('  - name: "technical"\n', '  - name: "technical"\n    mmlu_categories: [engineering, "line break"]\n'),
        more=DOMAIN,
    )
    write_labels(file.parent / "model", {"0": "medical", "1": "engineering", "2": "line\nbreak"})
    status, printed, errors = run("validate", file)
    assert (status, errors) == (0, "")
    assert [row for row in rows(printed) if row[-1] in ("name", "mmlu_categories")] == [
        ["medical", "medical", "name"],
        ["engineering", "technical", "mmlu_categories"],
        [r"line\nbreak", "technical", "mmlu_categories"],
    ]
    assert "warning: no domain model label maps to legal" in printed


def test_invalid_domain_model_is_reported_once(run: Run, config: Config) -> None:
    file = config(more=DOMAIN)
    write_labels(file.parent / "model", {"0": "medical", "2": "legal"})
    for arguments in ((), ("--files",)):
        status, _, errors = run("validate", file, *arguments)
        assert status == 1
        assert errors.count("its keys must be 0 to 1, each once; they are [0, 2]") == 1


def test_files_option_reports_missing_adapters(run: Run, config: Config, tmp_path: Path) -> None:
    file = config(('      - name: "medical-lora"', f'      - name: "medical-lora"\n        path: "{tmp_path}/nowhere"'))
    assert run("validate", file)[0] == 0
    status, printed, errors = run("validate", file, "--files")
    assert status == 1
    assert f"{tmp_path}/nowhere" in errors
    assert "adapter 'legal-lora' is declared without a folder: set path in model_config.base.loras[]" in errors
    assert ["medical-lora", f"{tmp_path}/nowhere", "unknown", "Medicine and health care"] in rows(printed)
    assert run("validate", file, "--files", "--lora-modules", f"legal-lora={tmp_path}/nobody")[2].count("nobody") == 1
