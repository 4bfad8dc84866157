"""`vllm-lora-router validate`: what a configuration is understood to say, or everything that is wrong with it."""

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
    """The cells of every table row."""
    return [[cell.strip() for cell in row.split("│")[1:-1]] for row in printed.splitlines() if row.startswith("│")]


@pytest.mark.parametrize("name", ["guide", "keyword", "embedding", "domain", "combined"])
def test_every_example_is_valid(run: Run, examples: Path, name: str) -> None:
    status, printed, errors = run("validate", examples / f"{name}.yaml")
    assert (status, errors) == (0, "")
    assert "Categories" in printed
    assert "Adapters" in printed


def test_a_valid_configuration_is_told_as_it_was_understood(run: Run, config: Config) -> None:
    file = config()
    status, printed, _ = run("validate", file)
    assert status == 0
    assert re.search(rf"^{re.escape(str(file))} \(version [0-9a-f]{{8}}\): base base, default base$", printed, re.M)
    assert (
        "methods, in this order: keyword, embedding (not configured), domain (not configured), mcp (not configured); "
        "together within 50 ms, or longer on a slow CPU"
    ) in printed
    assert ["medical", "keyword", "medical-lora", "not written", "inserts 25 characters"] in rows(printed)
    assert ["medical-lora", "on the command line", "not looked at", "Medicine and health care"] in rows(printed)


def test_the_guide_is_told_with_the_served_name_and_its_warnings(run: Run, examples: Path) -> None:
    _, printed, _ = run(
        *("validate", examples / "guide.yaml", "--model", "meta-llama/Llama-2-7b-hf"),
        *("--lora-modules", "technical-lora=/a/technical", "extra-lora=/a/extra"),
    )
    assert ["general", "domain", "meta-llama/Llama-2-7b-hf (the base)", "not written", "inserts 28 characters"] in rows(
        printed
    )
    assert [row[:2] for row in rows(printed) if row[0].endswith("-lora")] == [
        ["technical-lora", "/a/technical"],
        ["medical-lora", "on the command line"],
        ["legal-lora", "on the command line"],
        ["extra-lora", "/a/extra"],
    ]
    assert "info: keys that mean nothing here: vllm_endpoints, model_config.llama2-7b.preferred_endpoints" in printed
    assert "warning: reasoning_family 'llama2' has no preset" in printed
    assert "labels of the domain model: not known here, there is no folder models/category_classifier_" in printed


def test_what_stands_beside_the_table_is_told(run: Run, config: Config) -> None:
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
    assert ["legal", "keyword", "legal-lora, else base (the base)", "not written", "inserts 23 characters"] in rows(
        printed
    )
    assert ["medical", "keyword", "medical-lora", "enable_thinking: true", "inserts 25 characters"] in rows(printed)
    assert [row[1] for row in rows(printed) if row[0] == "technical"] == ["nothing"]
    assert "warning: category 'legal': legal-lora (1) takes every request; the base (0.5) is only tried when" in printed
    assert "warning: keyword_rules[2] does nothing: the methods of 'technical' leave keyword out" in printed
    assert "warning: no method can choose category 'technical'" in printed


def test_a_wrong_configuration_prints_every_problem_and_exits_with_1(run: Run, config: Config) -> None:
    file = config(("default_model", "defaultmodel"), ('lora_name: "medical-lora"', 'lora_name: "medcal-lora"'))
    status, printed, errors = run("validate", file)
    assert (status, printed) == (1, "")
    said = errors.splitlines()
    assert said[0] == f"{file}:2:1: needs the key 'default_model'"
    assert said[1] == f"{file}:12:1: defaultmodel: unknown key; did you mean 'default_model'?"
    assert said[2].endswith("is not declared under model_config.base.loras; did you mean 'medical-lora'?")
    assert said[3] == f"3 problems in {file}"


def test_an_adapter_of_the_command_line_need_not_stand_in_the_file(run: Run, config: Config) -> None:
    file = config(('lora_name: "medical-lora"', 'lora_name: "from-outside"'))
    assert "'from-outside' is not declared" in run("validate", file)[2]
    status, printed, _ = run("validate", file, "--lora-modules", "from-outside=/a/folder")
    assert status == 0
    assert ["from-outside", "/a/folder", "not looked at", ""] in rows(printed)


def test_one_problem_is_counted_as_one(run: Run, tmp_path: Path) -> None:
    status, _, errors = run("validate", tmp_path / "nowhere.yaml")
    assert (status, errors) == (1, f"{tmp_path}/nowhere.yaml:1:1: no such file\n1 problem in {tmp_path}/nowhere.yaml\n")


def test_a_served_name_that_points_to_no_base_is_a_problem(run: Run, config: Config) -> None:
    status, _, errors = run("validate", config(('  "base":', '  "other": {}\n  "base":')), "--model", "acme/tiny")
    assert status == 1
    assert "none of 'other', 'base' is the served model 'acme/tiny'" in errors


def test_names_that_look_like_markup_or_break_lines_are_printed_as_they_are(run: Run, config: Config) -> None:
    file = config(
        ('"base"', '"[/b][red]base"'), ('"medical"', '"two\\nlines [/i]"'), ('"medical-lora"', '"[bold]lora[/x]"')
    )
    status, printed, _ = run("validate", file, "--lora-modules", "[bold]lora[/x]=/a/[red]folder[/y]")
    assert status == 0
    assert "base [/b][red]base, default [/b][red]base" in printed
    assert [row[2] for row in rows(printed) if row[0] == r"two\nlines [/i]"] == ["[bold]lora[/x]"]
    assert [row[1] for row in rows(printed) if row[0] == "[bold]lora[/x]"] == ["/a/[red]folder[/y]"]


def test_the_configuration_may_be_named_by_the_variable_or_stand_in_its_usual_place(
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


def test_what_each_label_of_the_domain_model_stands_for_is_told(run: Run, config: Config) -> None:
    file = config(
        ('  - name: "technical"\n', '  - name: "technical"\n    mmlu_categories: [engineering, "line\\nbreak"]\n'),
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
    assert "warning: no label of the domain model leads to legal" in printed


def test_a_domain_model_of_a_wrong_form_is_a_problem(run: Run, config: Config) -> None:
    file = config(more=DOMAIN)
    write_labels(file.parent / "model", {"0": "medical", "2": "legal"})
    for arguments in ((), ("--files",)):
        status, _, errors = run("validate", file, *arguments)
        assert status == 1
        assert errors.count("its keys must be 0 to 1, each once; they are [0, 2]") == 1


def test_files_says_which_adapter_is_missing(run: Run, config: Config, tmp_path: Path) -> None:
    file = config(('      - name: "medical-lora"', f'      - name: "medical-lora"\n        path: "{tmp_path}/nowhere"'))
    assert run("validate", file)[0] == 0
    status, printed, errors = run("validate", file, "--files")
    assert status == 1
    assert f"{tmp_path}/nowhere" in errors
    assert "adapter 'legal-lora' is declared without a folder: give model_config.base.loras[] a path" in errors
    assert ["medical-lora", f"{tmp_path}/nowhere", "?", "Medicine and health care"] in rows(printed)
    assert run("validate", file, "--files", "--lora-modules", f"legal-lora={tmp_path}/nobody")[2].count("nobody") == 1
