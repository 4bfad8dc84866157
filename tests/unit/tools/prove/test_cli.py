"""`vllm-lora-router prove`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import BASE, RefusedError, ToyServer

if TYPE_CHECKING:
    from ..conftest import Run

Write = Callable[..., Path]
ANSWERS = {"A": "ax", "B": "bx", "C": "cx"}
SWAPPED = (
    ("lora_name: a-lora, score: 0.9", "lora_name: b-lora, score: 0.9"),
    ("[{model: base}]", "[{model: base, lora_name: a-lora}]"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write eight pairs of each category but D; the right model prefers one of the answer's two letters."""
    file = tmp_path / "pairs.jsonl"
    lines = [
        json.dumps({"prompt": f"question {n}", "answer": answer, "category": category})
        for category, answer in ANSWERS.items()
        for n in range(8)
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]


def test_right_assignments_exit_with_0(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    status, printed, errors = run("prove", config(), "--data", data, "--url", toy.url)
    assert (status, errors) == (0, "")
    lines = printed.splitlines()
    rows = {row[0]: row for row in map(cells, lines) if len(row) == 5 and row[1] == "8"}
    assert list(rows) == ["A", "B", "C"]
    assert [cell.endswith("*") for cell in rows["A"][2:]] == [False, True, False]
    assert [cell.endswith("*") for cell in rows["C"][2:]] == [True, False, False]
    assert float(rows["A"][3].rstrip(" *")) == pytest.approx(-2, abs=0.3)
    assert float(rows["A"][2]) == pytest.approx(-3, abs=0.3)
    sentences = [line for line in lines if line.startswith("`")]
    assert [line.partition(" (")[0] for line in sentences] == [
        "`A`: `a-lora` helps",
        "`B`: `b-lora` helps",
        "`C`: keep the base; no adapter looks better.",
    ]
    assert lines[-1] == "No pairs, and so no verdict: D."


def test_wrong_assignments_are_reported_and_exit_with_3(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    status, printed, _ = run("prove", config(*SWAPPED), "--data", data, "--url", f"{toy.url}/v1/")
    assert status == 3
    assert "`A`: use `a-lora`, which is better than `b-lora` (+" in printed
    assert "`B`: `b-lora` helps" in printed
    assert "`C`: use the base instead of `a-lora`, which is worse (-" in printed


def test_json_option_writes_the_matrix(run: Run, toy: ToyServer, config: Write, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    status, _, _ = run("prove", config(*SWAPPED), "--data", data, "--url", toy.url, "--json", file)
    matrix: dict[str, Any] = json.loads(file.read_text())
    assert (status, matrix["version"], matrix["base"]) == (3, 1, BASE)
    assert matrix["served_by"] == {"A": "b-lora", "B": "b-lora", "C": "a-lora"}
    assert {category: list(row) for category, row in matrix["matrix"].items()} == {
        category: [BASE, "b-lora", "a-lora"] for category in ANSWERS
    }
    assert matrix["matrix"]["A"]["a-lora"] == pytest.approx(-2, abs=0.3)
    assert matrix["pairs"] == {"A": 8, "B": 8, "C": 8}
    assert matrix["answer_tokens"] == matrix["scored_tokens"] == {"A": 16, "B": 16, "C": 16}
    gain = matrix["intervals"]["A"]["a-lora"]["to_served"]
    assert gain["low"] < gain["value"] < gain["high"] and gain["p"] <= gain["p_holm"] < 0.001
    assert matrix["intervals"]["A"]["b-lora"]["to_served"] is None and BASE not in matrix["intervals"]["A"]
    assert [(verdict["category"], verdict["kind"], verdict["model"]) for verdict in matrix["verdicts"]] == [
        ("A", "use_other", "a-lora"),
        ("B", "helps", None),
        ("C", "use_base", BASE),
    ]
    assert matrix["served_models"] == [BASE, "a-lora", "b-lora", "MoM"]


def test_second_run_gives_the_same_matrix(run: Run, toy: ToyServer, config: Write, data: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        run("prove", config(), "--data", data, "--url", toy.url, "--json", file)
    assert files[0].read_text() == files[1].read_text()


def test_models_option_selects_the_scored_adapters(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    status, printed, _ = run("prove", config(), "--data", data, "--url", toy.url, "--models", "a-lora")
    assert status == 0 and {model for model, _, _ in toy.requests} == {BASE, "a-lora"}
    assert "`B`: no verdict; its adapter `b-lora` was not scored" in printed


def test_table_shows_at_most_eight_models(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    toy.skills |= {f"more-{n}": "x" for n in range(12)}
    names = [name for name in toy.skills if name != BASE]
    _, printed, _ = run("prove", config(), "--data", data, "--url", toy.url, "--models", *names, "--tokens", 1)
    assert "7 more adapters not shown; --json has all." in printed
    header = next(row for row in map(cells, printed.splitlines()) if row[:2] == ["category", "pairs"])
    assert header[2:5] == [BASE, "a-lora", "b-lora"] and len(header) == 10


def test_vllm_without_the_router_can_be_scored(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    toy.auto = False
    assert run("prove", config(), "--data", data, "--url", toy.url)[0] == 0


def test_api_key_is_read_from_the_environment(
    run: Run, toy: ToyServer, config: Write, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.api_key = "sk-1"
    command = ("prove", config(), "--data", data, "--url", toy.url)
    status, _, errors = run(*command)
    assert status == 1
    assert errors == (
        f"GET {toy.url}/v1/models: status 401: Unauthorized; name the environment variable that holds the API key with "
        "--api-key-env\n"
    )
    monkeypatch.setenv("PROVE_KEY", "sk-1")
    assert run(*command, "--api-key-env", "PROVE_KEY")[0] == 0
    assert run(*command, "--api-key-env", "NO_KEY")[2].startswith(
        "--api-key-env: the environment variable NO_KEY is not set"
    )


def test_invalid_inputs_are_reported_and_exit_with_1(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    def error_of(*arguments: object, configuration: Path | None = None) -> str:
        command = ("prove", configuration or config(), "--data", data, "--url", toy.url)
        status, printed, errors = run(*command, *arguments)
        assert (status, printed) == (1, "") and "Traceback" not in errors
        return errors

    assert "failed (" in error_of("--url", "http://127.0.0.1:9")
    assert error_of("--url", "localhost:8000").startswith("'localhost:8000' is not a server's URL")
    assert "the server does not serve 'c-lora', named by --models" in error_of("--models", "c-lora")
    assert "does not exist; create it first" in error_of("--json", data.parent / "no" / "matrix.json")
    assert "config.yaml:" in error_of(configuration=config(("category: A", "category: Z")))
    assert "no/pairs.jsonl: cannot be read" in error_of("--data", "no/pairs.jsonl")
    data.write_text('{"prompt": "a", "answer": "b", "category": "Z"}\n')
    assert f"{data}:1: category 'Z' is not in the configuration" in error_of()
    data.write_text('{"prompt": "a", "answer": "", "category": "A"}\n')
    assert error_of().splitlines() == [f"{data}:1: the answer is empty; left out", f"{data}: no pair can be scored"]
    data.write_text(json.dumps({"prompt": "a" * 300, "answer": "b", "category": "A"}) + "\n")
    assert error_of().splitlines()[-1] == "no pair can be scored"


def test_invalid_responses_are_reported(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    command = ("prove", config(), "--data", data, "--url", toy.url)

    def error_for(path: str, status: int, content: Any) -> str:
        def refuse(requested: str, body: dict[str, Any]) -> None:
            if requested == path:
                raise RefusedError(status, content)

        toy.refuse = refuse
        status, _, errors = run(*command)
        assert status == 1 and "Traceback" not in errors
        return errors

    assert "/v1/models: the response is not JSON: '<html>'" in error_for("/v1/models", 200, b"<html>")
    assert "/v1/models: the response is not in vLLM's format" in error_for("/v1/models", 200, {"models": []})
    assert "lists no base model" in error_for("/v1/models", 200, {"data": []})
    assert "check that --url is a vLLM server" in error_for("/tokenize", 404, {"detail": "Not Found"})
    other = {"model": BASE, "choices": [{"logprobs": {"tokens": ["token_id:9"], "token_logprobs": [-1.0]}}]}
    assert "/v1/completions: the response is not in vLLM's format" in error_for("/v1/completions", 200, other)
    assert "status 500: EngineDeadError" in error_for("/v1/completions", 500, "EngineDeadError")


def test_timeout_is_reported(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    toy.delay_s = 2
    status, _, errors = run("prove", config(), "--data", data, "--url", toy.url, "--timeout", "1")
    assert status == 1
    assert "/v1/completions: no response within 1 s; increase --timeout" in errors


def test_pairs_that_are_left_out_are_warned_about(run: Run, toy: ToyServer, config: Write, data: Path) -> None:
    lines = data.read_text() + json.dumps({"prompt": "a" * 300, "answer": "b", "category": "A"}) + "\n"
    data.write_text(lines + lines.splitlines()[0] + "\n")
    status, _, errors = run("prove", config(), "--data", data, "--url", toy.url)
    assert status == 0
    assert errors.splitlines() == [
        f"warning: {data}:26: duplicate of the pair in {data}:1; counted once",
        f"warning: {data}:25: prompt and answer have 313 tokens, and the model's limit is 200; left out",
    ]


def test_help_explains_the_exit_status(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("prove", "--help")
    assert "3 if one is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--tokens", "0"), ("--at-once", "0"), ("--timeout", "0")])
def test_invalid_number_is_refused(run: Run, config: Write, data: Path, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        run("prove", config(), "--data", data, *option)
