"""`vllm-lora-router prove`, over a server that speaks as vLLM does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .prove.conftest import BASE, Refused, Toy, config, toy

if TYPE_CHECKING:
    from .conftest import Run

__all__ = ["config", "toy"]  # fixtures
Write = Callable[..., Path]
ANSWERS = {"A": "ax", "B": "bx", "C": "cx"}
SWAPPED = (
    ("lora_name: a-lora, score: 0.9", "lora_name: b-lora, score: 0.9"),
    ("[{model: base}]", "[{model: base, lora_name: a-lora}]"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight pairs of each category but D; one of an answer's two letters is what the model likes that is right."""
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


def test_right_assignments_are_shown_to_help_and_end_with_0(run: Run, toy: Toy, config: Write, data: Path) -> None:
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
        "`C`: it is the base's, and no adapter looks better.",
    ]
    assert lines[-1] == "Not judged, for want of pairs: D."


def test_wrong_assignments_are_named_with_what_would_be_right_and_end_with_3(
    run: Run, toy: Toy, config: Write, data: Path
) -> None:
    status, printed, _ = run("prove", config(*SWAPPED), "--data", data, "--url", f"{toy.url}/v1/")
    assert status == 3
    assert "`A` is served better by `a-lora` than by `b-lora` (+" in printed
    assert "`B`: `b-lora` helps" in printed
    assert "`C`: this entry should be the base, which `a-lora` falls behind (-" in printed


def test_the_matrix_is_written_for_others_to_read(
    run: Run, toy: Toy, config: Write, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "matrix.json"
    status, _, _ = run("prove", config(*SWAPPED), "--data", data, "--url", toy.url, "--json", file)
    found: dict[str, Any] = json.loads(file.read_text())
    assert (status, found["version"], found["base"]) == (3, 1, BASE)
    assert found["served_by"] == {"A": "b-lora", "B": "b-lora", "C": "a-lora"}
    assert {category: list(row) for category, row in found["matrix"].items()} == {
        category: [BASE, "b-lora", "a-lora"] for category in ANSWERS
    }
    assert found["matrix"]["A"]["a-lora"] == pytest.approx(-2, abs=0.3)
    assert found["pairs"] == {"A": 8, "B": 8, "C": 8}
    assert found["answer_tokens"] == found["asked_tokens"] == {"A": 16, "B": 16, "C": 16}
    gain = found["intervals"]["A"]["a-lora"]["to_served"]
    assert gain["low"] < gain["value"] < gain["high"] and gain["p"] <= gain["p_holm"] < 0.001
    assert found["intervals"]["A"]["b-lora"]["to_served"] is None and BASE not in found["intervals"]["A"]
    assert [(one["category"], one["kind"], one["model"]) for one in found["verdicts"]] == [
        ("A", "other", "a-lora"),
        ("B", "helps", None),
        ("C", "base", BASE),
    ]
    assert found["url_model_list"] == [BASE, "a-lora", "b-lora", "MoM"]


def test_the_same_again_is_the_same(run: Run, toy: Toy, config: Write, data: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        run("prove", config(), "--data", data, "--url", toy.url, "--json", file)
    assert files[0].read_text() == files[1].read_text()


def test_only_the_adapters_that_are_named_are_asked(run: Run, toy: Toy, config: Write, data: Path) -> None:
    status, printed, _ = run("prove", config(), "--data", data, "--url", toy.url, "--models", "a-lora")
    assert status == 0 and {model for model, _, _ in toy.asked} == {BASE, "a-lora"}
    assert "`B`: nothing is said, for `b-lora`, which serves it, was not asked" in printed


def test_many_adapters_do_not_burst_the_table(run: Run, toy: Toy, config: Write, data: Path) -> None:
    toy.skills |= {f"more-{n}": "x" for n in range(12)}
    names = [name for name in toy.skills if name != BASE]
    _, printed, _ = run("prove", config(), "--data", data, "--url", toy.url, "--models", *names, "--tokens", 1)
    assert "7 more adapters did not fit here; --json has all." in printed
    header = next(row for row in map(cells, printed.splitlines()) if row[:2] == ["category", "pairs"])
    assert header[2:5] == [BASE, "a-lora", "b-lora"] and len(header) == 10


def test_a_plain_vllm_without_the_router_can_be_asked(run: Run, toy: Toy, config: Write, data: Path) -> None:
    toy.auto = False
    assert run("prove", config(), "--data", data, "--url", toy.url)[0] == 0


def test_an_api_key_is_taken_from_the_environment(
    run: Run, toy: Toy, config: Write, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.api_key = "sk-1"
    asked = ("prove", config(), "--data", data, "--url", toy.url)
    status, _, errors = run(*asked)
    assert status == 1
    assert errors == (
        f"GET {toy.url}/v1/models: status 401: Unauthorized; --api-key-env names the variable that holds its API key\n"
    )
    monkeypatch.setenv("PROVE_KEY", "sk-1")
    assert run(*asked, "--api-key-env", "PROVE_KEY")[0] == 0
    assert run(*asked, "--api-key-env", "NO_KEY")[2].startswith("the environment variable NO_KEY is not set")


def test_what_stands_in_the_way_is_told_and_ends_with_1(run: Run, toy: Toy, config: Write, data: Path) -> None:
    def fails(*arguments: object, configuration: Path | None = None) -> str:
        asked = ("prove", configuration or config(), "--data", data, "--url", toy.url)
        status, printed, errors = run(*asked, *arguments)
        assert (status, printed) == (1, "") and "Traceback" not in errors
        return errors

    assert "cannot be asked (" in fails("--url", "http://127.0.0.1:9")
    assert fails("--url", "localhost:8000").startswith("'localhost:8000' is no address of a server")
    assert "the server does not serve 'c-lora', which --models names" in fails("--models", "c-lora")
    assert "there is no folder" in fails("--json", data.parent / "no" / "matrix.json")
    assert "config.yaml:" in fails(configuration=config(("category: A", "category: Z")))
    assert "no/pairs.jsonl: cannot be read" in fails("--data", "no/pairs.jsonl")
    data.write_text('{"prompt": "a", "answer": "b", "category": "Z"}\n')
    assert f"{data}:1: category 'Z' is not one of the configuration's" in fails()
    data.write_text('{"prompt": "a", "answer": "", "category": "A"}\n')
    assert fails().splitlines() == [f"{data}:1: its answer is empty; left out", f"{data}: no pair to ask"]
    data.write_text(json.dumps({"prompt": "a" * 300, "answer": "b", "category": "A"}) + "\n")
    assert fails().splitlines()[-1] == "no pair is left to ask"


def test_a_server_that_is_not_vllm_or_fails_is_told_of(run: Run, toy: Toy, config: Write, data: Path) -> None:
    asked = ("prove", config(), "--data", data, "--url", toy.url)

    def answering(path: str, status: int, said: Any) -> str:
        def refuse(asked: str, body: dict[str, Any]) -> None:
            if asked == path:
                raise Refused(status, said)

        toy.refuse = refuse
        status, _, errors = run(*asked)
        assert status == 1 and "Traceback" not in errors
        return errors

    assert "/v1/models: answers with something that is no JSON: '<html>'" in answering("/v1/models", 200, b"<html>")
    assert "/v1/models: answers otherwise than vLLM does" in answering("/v1/models", 200, {"models": []})
    assert "lists no base model" in answering("/v1/models", 200, {"data": []})
    assert "prove asks vLLM itself" in answering("/tokenize", 404, {"detail": "Not Found"})
    other = {"model": BASE, "choices": [{"logprobs": {"tokens": ["token_id:9"], "token_logprobs": [-1.0]}}]}
    assert "/v1/completions: answers otherwise than vLLM does" in answering("/v1/completions", 200, other)
    assert "status 500: EngineDeadError" in answering("/v1/completions", 500, "EngineDeadError")


def test_a_server_that_takes_too_long_is_told_of(run: Run, toy: Toy, config: Write, data: Path) -> None:
    toy.takes_s = 2
    status, _, errors = run("prove", config(), "--data", data, "--url", toy.url, "--timeout", "1")
    assert status == 1
    assert "/v1/completions: no answer within 1 s; --timeout gives it longer" in errors


def test_what_was_left_out_is_warned_of(run: Run, toy: Toy, config: Write, data: Path) -> None:
    lines = data.read_text() + json.dumps({"prompt": "a" * 300, "answer": "b", "category": "A"}) + "\n"
    data.write_text(lines + lines.splitlines()[0] + "\n")
    status, _, errors = run("prove", config(), "--data", data, "--url", toy.url)
    assert status == 0
    assert errors.splitlines() == [
        f"warning: {data}:26: the same pair as in {data}:1; counted once",
        f"warning: {data}:25: prompt and answer are 313 tokens, and the model takes 200; left out",
    ]


def test_help_says_what_the_exit_status_means(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("prove", "--help")
    assert "3 when one is" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--tokens", "0"), ("--at-once", "0"), ("--timeout", "0")])
def test_a_number_that_makes_no_sense_is_refused(run: Run, config: Write, data: Path, option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        run("prove", config(), "--data", data, *option)
