"""`vllm-lora-router evaluate`."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router

if TYPE_CHECKING:
    from ..conftest import Run

Config = Callable[..., Path]

pytest.importorskip("sklearn")

PROMPTS = [
    {"text": "Why does my Python function fail?", "category": "technical"},
    {"text": "What causes high blood pressure?", "category": "medical"},
    {"text": "My head aches", "category": "medical"},
    {"text": "How long does a lawsuit take?", "category": "legal"},
    {"text": "Is there a lawsuit about this medicine and its dosage?", "category": "medical"},
    {"text": "Good morning", "category": None},
    {"text": "[/b] \x1b[31mred", "category": None},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), "utf-8")
    return file


def cells(printed: str) -> dict[str, list[str]]:
    """Return the cells of every table row, by the first cell; the first row wins."""
    rows = [[cell.strip() for cell in row.strip("│").split("│")] for row in printed.splitlines() if row.startswith("│")]
    return {row[0]: row[1:] for row in reversed(rows)}


def test_configuration_is_evaluated_and_printed(run: Run, config: Config, data: Path) -> None:
    status, printed, errors = run("evaluate", config(), "--data", data)
    assert (status, errors) == (0, "")
    rows = cells(printed)
    assert rows["accuracy"][0::2] == ["71.43%", "7"]
    assert rows["in scope: correct category"][0::2] == ["60.00%", "5"]
    assert rows["out of scope: not accepted"][0::2] == ["100.00%", "2"]
    assert rows["coverage: in scope and accepted"][0] == "80.00%"
    assert rows["precision: correct among accepted"][0::2] == ["75.00%", "4"]
    assert rows["medical"] == ["3", "1.0000", "0.3333", "0.5000", "legal 1, - 1"]
    assert rows["keyword"] == ["4", "75.00%"] and rows["none accepted"] == ["3", "66.67%"]
    assert rows["latin"][0] == "7" and "politeness" in rows
    assert "latency, one at a time: p50 " in printed and " over 7 prompts" in printed
    assert "expected calibration error" not in rows


def test_json_option_writes_all_results(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert run("evaluate", config(), "--data", data, "--json", tmp_path / f"{name}.json", "--seed", 3)[0] == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    evaluation = first["evaluation"]
    assert evaluation["metrics"]["accuracy"]["value"] == pytest.approx(5 / 7)
    assert [row["text"] for row in evaluation["outcomes"]] == [prompt["text"] for prompt in PROMPTS]
    assert evaluation["outcomes"][0] == {
        "text": "Why does my Python function fail?",
        "label": "technical",
        "location": f"{data}:1",
        "chosen": "technical",
        "accepted": True,
        "correct": True,
        "method": "keyword",
        "guess": "technical",
        "score": 1.0,
        "scale": "rule",
        "guess_method": "keyword",
        "adapter": "technical-lora",
        "failure": None,
    }
    first["evaluation"].pop("latency")
    second["evaluation"].pop("latency")
    assert first == second


def test_plots_are_written(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    status, printed, _ = run("evaluate", config(), "--data", data, "--plots", tmp_path / "plots", "--small-changes", 0)
    assert status == 0 and printed.endswith(f"{tmp_path}/plots/confusion.png\n")
    assert (tmp_path / "plots" / "confusion.png").is_file()


def test_two_configurations_are_compared_on_the_same_prompts(
    run: Run, config: Config, data: Path, tmp_path: Path
) -> None:
    other = config(("lawsuit", "verdict"))
    other.rename(tmp_path / "other.yaml")
    status, printed, _ = run(
        "evaluate", config(), "--data", data, "--compare", tmp_path / "other.yaml", "--small-changes", 0
    )
    assert status == 0
    start = f"accuracy of {tmp_path}/other.yaml minus that of {tmp_path}/config.yaml: +0.00% ("
    (line,) = (line for line in printed.splitlines() if line.startswith(start))
    assert line.endswith("prompts that only the second routes correctly: 1, only the first: 1; McNemar's p 1.0000")
    changes = cells(printed[printed.index("Categories that changed") :])
    assert (changes["medical"], changes["legal"]) == (["3", "1", "2", "+1"], ["1", "1", "0", "-1"])
    assert cells(printed[printed.index("Routed differently") :])["How long does a lawsuit take?"] == [
        "legal",
        "legal",
        "-",
    ]


def test_category_of_one_configuration_only_is_warned_about(
    run: Run, config: Config, data: Path, tmp_path: Path
) -> None:
    text = config().read_text().replace('"technical"', '"coding"').replace("technical:", "coding:")
    (tmp_path / "other.yaml").write_text(text, "utf-8")
    status, _, errors = run("evaluate", config(), "--data", data, "--compare", tmp_path / "other.yaml")
    assert status == 0
    assert f"{tmp_path}/other.yaml has no category 'technical': all of its 1 prompts count as wrong" in errors


def test_wrong_routes_are_weighed_by_their_cost(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    row = {"technical-lora": -2.0, "medical-lora": -1.0, "legal-lora": -4.0, "base": -1.5}
    matrix = {
        "version": 1,
        "matrix": {"medical": row, "legal": {"legal-lora": -1.0}},
        "served_by": {"medical": "medical-lora", "legal": "legal-lora"},
        "base": "base",
    }
    (tmp_path / "matrix.json").write_text(json.dumps(matrix))
    status, printed, _ = run("evaluate", config(), "--data", data, "--regret", tmp_path / "matrix.json")
    assert status == 0
    assert "mean regret per prompt: 0.8750 (" in printed and "wrong routes: 2, without cost: 0.00%" in printed
    assert "not in the matrix, left out: category technical (1 prompts)" in printed
    assert cells(printed[printed.index("Cost of wrong routes") :])["medical"] == [
        "legal-lora",
        "1",
        "3.0000",
        "3.0000",
    ]
    (tmp_path / "matrix.json").write_text(json.dumps({**matrix, "version": 2}))
    status, printed, errors = run("evaluate", config(), "--data", data, "--regret", tmp_path / "matrix.json")
    assert (status, printed) == (1, "") and "Invalid enum value 2 - at `$.version`" in errors


@pytest.fixture
def server(config: Config) -> Iterator[str]:
    """Run a server with the router's API routes and an API key; return its URL."""
    uvicorn = pytest.importorskip("uvicorn")
    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from vllm_lora_router.server.api import include_routes
    from vllm_lora_router.server.state import Serving

    loaded = load(config())
    serving = Serving()
    serving.start(Router.build(loaded, served_base(loaded)), ("base",), None)
    inner = FastAPI()
    include_routes(inner, serving)

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or (b"authorization", b"Bearer secret") in scope["headers"]
        await (inner if known else Response("no", 401))(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(uvicorn.Config(guarded, log_level="error", lifespan="off"))
    thread = threading.Thread(target=uvicorn_server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    uvicorn_server.should_exit = True
    thread.join()
    listener.close()


def test_running_server_gives_the_same_results_as_its_configuration(
    run: Run, config: Config, data: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_KEY", "secret")
    key = ("--api-key-env", "ROUTER_KEY")
    for name, target in (("local", [config()]), ("remote", ["--url", server, *key])):
        status, _, errors = run("evaluate", *target, "--data", data, "--json", tmp_path / f"{name}.json")
        assert (status, errors) == (0, "")
    local, remote = (json.loads((tmp_path / f"{name}.json").read_text())["evaluation"] for name in ("local", "remote"))
    assert remote["target"] == server and remote["versions"] == local["versions"]
    for name in ("metrics", "robustness", "outcomes", "lengths", "scripts", "failures"):
        assert remote[name] == local[name], name
    assert remote["latency"]["prompts"] == len(PROMPTS) and remote["latency"]["p50_ms"] > 0


def test_missing_api_key_and_unreachable_server_are_reported(
    run: Run, data: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("evaluate", "--url", server, "--data", data)[2] == (
        f"{server}: requires an API key (status 401); name the environment variable that holds it with --api-key-env\n"
    )
    monkeypatch.delenv("ROUTER_KEY", raising=False)
    status, _, errors = run("evaluate", "--url", server, "--data", data, "--api-key-env", "ROUTER_KEY")
    assert (status, errors) == (1, "--api-key-env: the environment variable ROUTER_KEY is not set\n")
    status, printed, errors = run("evaluate", "--url", "http://127.0.0.1:9", "--data", data)
    assert (status, printed) == (1, "") and "check that the server runs and the URL is right" in errors


def test_unknown_categories_are_reported_with_their_lines(run: Run, config: Config, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"text": "a", "category": "technical"}\n{"text": "b", "category": "medcal"}\n')
    status, printed, errors = run("evaluate", config(), "--data", file)
    assert (status, printed) == (1, "")
    assert f"{file}:2: category 'medcal' is not in the configuration; did you mean 'medical'?" in errors


def test_prompts_that_are_left_out_are_warned_about(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " ", "category": "legal"}\n')
    status, _, errors = run("evaluate", config(), "--data", data, empty, "--small-changes", 0)
    assert (status, errors) == (0, f"warning: {empty}:1: the text is empty; left out\n")
    status, printed, errors = run("evaluate", config(), "--data", empty)
    assert (status, printed) == (1, "") and errors.endswith(f"{empty}: no usable prompt\n")


def test_invalid_options_are_reported_before_the_evaluation(
    run: Run, config: Config, data: Path, tmp_path: Path
) -> None:
    def error_of(*arguments: Any) -> str:
        status, printed, errors = run("evaluate", *arguments, "--data", data)
        assert (status, printed) == (1, "")
        return errors

    file = config()
    assert (
        error_of(file, "--json", tmp_path / "no" / "x.json")
        == f"--json: the folder {tmp_path}/no does not exist; create it first\n"
    )
    assert error_of(file, "--url", "http://server").startswith("--url evaluates a server and ")
    assert "deadline_ms" in error_of(config(more="router: {deadline: 5}\n"))
    with pytest.raises(SystemExit):
        run("evaluate", file, "--data", data, "--small-changes", -1)


@pytest.mark.parametrize(
    ("package", "option", "expected"),
    [
        ("matplotlib", ("--plots", "plots"), "pip install 'vllm-lora-router[bench]'"),
        ("sklearn", (), "pip install 'vllm-lora-router[evaluate]'"),
        ("httpx", ("--url", "http://server"), "pip install httpx"),
    ],
)
def test_missing_package_is_reported_with_its_extra(
    run: Run,
    config: Config,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    option: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, printed, errors = run("evaluate", *([] if "--url" in option else [config()]), "--data", data, *option)
    assert (status, printed) == (1, "")
    assert expected in errors
