"""`vllm-lora-router evaluate`: how well labelled prompts are routed."""

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
    from .conftest import Run

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
    """The cells of every table row by its first; of equal ones the first row's."""
    rows = [[cell.strip() for cell in row.strip("│").split("│")] for row in printed.splitlines() if row.startswith("│")]
    return {row[0]: row[1:] for row in reversed(rows)}


def test_a_configuration_is_measured_and_told_of(run: Run, config: Config, data: Path) -> None:
    status, printed, errors = run("evaluate", config(), "--data", data)
    assert (status, errors) == (0, "")
    rows = cells(printed)
    assert rows["accuracy"][0::2] == ["71.43%", "7"]
    assert rows["in scope: the right category"][0::2] == ["60.00%", "5"]
    assert rows["out of scope: none was sure"][0::2] == ["100.00%", "2"]
    assert rows["coverage: in scope, and a method was sure"][0] == "80.00%"
    assert rows["precision: right where a method was sure"][0::2] == ["75.00%", "4"]
    assert rows["medical"] == ["3", "1.0000", "0.3333", "0.5000", "legal 1, - 1"]
    assert rows["keyword"] == ["4", "75.00%"] and rows["none was sure"] == ["3", "66.67%"]
    assert rows["latin"][0] == "7" and "politeness" in rows
    assert "latency, one at a time: p50 " in printed and " over 7 prompts" in printed
    assert "expected calibration error" not in rows


def test_everything_is_written_as_json(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    for name in ("one", "again"):
        assert run("evaluate", config(), "--data", data, "--json", tmp_path / f"{name}.json", "--seed", 3)[0] == 0
    one, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "again"))
    found = one["evaluation"]
    assert found["figures"]["accuracy"]["value"] == pytest.approx(5 / 7)
    assert [row["text"] for row in found["answers"]] == [prompt["text"] for prompt in PROMPTS]
    assert found["answers"][0] == {
        "text": "Why does my Python function fail?",
        "label": "technical",
        "place": f"{data}:1",
        "chosen": "technical",
        "sure": True,
        "right": True,
        "method": "keyword",
        "guess": "technical",
        "score": 1.0,
        "scale": "rule",
        "guessed_by": "keyword",
        "adapter": "technical-lora",
        "failure": None,
    }
    one["evaluation"].pop("latency")
    again["evaluation"].pop("latency")
    assert one == again


def test_pictures_are_written(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    status, printed, _ = run("evaluate", config(), "--data", data, "--plots", tmp_path / "plots", "--small-changes", 0)
    assert status == 0 and printed.endswith(f"{tmp_path}/plots/confusion.png\n")
    assert (tmp_path / "plots" / "confusion.png").is_file()


def test_another_configuration_is_compared_on_the_same_prompts(
    run: Run, config: Config, data: Path, tmp_path: Path
) -> None:
    other = config(("lawsuit", "verdict"))
    other.rename(tmp_path / "other.yaml")
    status, printed, _ = run(
        "evaluate", config(), "--data", data, "--compare", tmp_path / "other.yaml", "--small-changes", 0
    )
    assert status == 0
    said = f"accuracy of {tmp_path}/other.yaml less that of {tmp_path}/config.yaml: +0.00% ("
    (line,) = (line for line in printed.splitlines() if line.startswith(said))
    assert line.endswith("prompts that are right there alone: 1, here alone: 1, McNemar's p 1.0000")
    changed = cells(printed[printed.index("Categories that changed") :])
    assert (changed["medical"], changed["legal"]) == (["3", "1", "2", "+1"], ["1", "1", "0", "-1"])
    assert cells(printed[printed.index("Routed differently") :])["How long does a lawsuit take?"] == [
        "legal",
        "legal",
        "-",
    ]


def test_a_category_that_only_one_of_two_configurations_has_is_told(
    run: Run, config: Config, data: Path, tmp_path: Path
) -> None:
    text = config().read_text().replace('"technical"', '"coding"').replace("technical:", "coding:")
    (tmp_path / "other.yaml").write_text(text, "utf-8")
    status, _, errors = run("evaluate", config(), "--data", data, "--compare", tmp_path / "other.yaml")
    assert status == 0
    assert f"{tmp_path}/other.yaml has no category 'technical': none of its 1 prompts can be right there" in errors


def test_a_wrong_route_is_weighed_by_what_it_costs(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
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
    assert "mean regret a prompt: 0.8750 (" in printed and "wrong routes: 2, that cost nothing: 0.00%" in printed
    assert "left out, for the matrix does not have it: category technical (1 prompts)" in printed
    assert cells(printed[printed.index("What wrong routes cost") :])["medical"] == [
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
    """The URL of our routes over the configuration, with an API key that is asked for."""
    uvicorn = pytest.importorskip("uvicorn")
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from vllm_lora_router.server.api import routes
    from vllm_lora_router.server.state import Serving

    loaded = load(config())
    serving = Serving()
    serving.start(Router.build(loaded, served_base(loaded)), ("base",), None)
    inner = Starlette(routes=routes(serving))

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or (b"authorization", b"Bearer secret") in scope["headers"]
        await (inner if known else Response("no", 401))(scope, receive, send)

    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(guarded, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join()
    listening.close()


def test_a_running_server_is_measured_by_its_url(
    run: Run, config: Config, data: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_KEY", "secret")
    key = ("--api-key-env", "ROUTER_KEY")
    for name, subject in (("home", [config()]), ("away", ["--url", server, *key])):
        status, _, errors = run("evaluate", *subject, "--data", data, "--json", tmp_path / f"{name}.json")
        assert (status, errors) == (0, "")
    home, away = (json.loads((tmp_path / f"{name}.json").read_text())["evaluation"] for name in ("home", "away"))
    assert away["subject"] == server and away["versions"] == home["versions"]
    for name in ("figures", "agreement", "answers", "lengths", "scripts", "failures"):
        assert away[name] == home[name], name
    assert away["latency"]["prompts"] == len(PROMPTS) and away["latency"]["p50_ms"] > 0


def test_a_server_that_wants_a_key_or_is_not_there_is_told(
    run: Run, data: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("evaluate", "--url", server, "--data", data)[2] == (
        f"{server}: wants an API key (status 401); name the environment variable that holds it with --api-key-env\n"
    )
    monkeypatch.delenv("ROUTER_KEY", raising=False)
    status, _, errors = run("evaluate", "--url", server, "--data", data, "--api-key-env", "ROUTER_KEY")
    assert (status, errors) == (1, "--api-key-env: the environment variable ROUTER_KEY is empty\n")
    status, printed, errors = run("evaluate", "--url", "http://127.0.0.1:9", "--data", data)
    assert (status, printed) == (1, "") and "is the server up, and its URL right?" in errors


def test_labels_that_are_no_category_are_told_with_their_lines(run: Run, config: Config, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"text": "a", "category": "technical"}\n{"text": "b", "category": "medcal"}\n')
    status, printed, errors = run("evaluate", config(), "--data", file)
    assert (status, printed) == (1, "")
    assert f"{file}:2: category 'medcal' is not one of the configuration's; did you mean 'medical'?" in errors


def test_what_is_left_out_of_the_data_is_warned_of(run: Run, config: Config, data: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " ", "category": "legal"}\n')
    status, _, errors = run("evaluate", config(), "--data", data, empty, "--small-changes", 0)
    assert (status, errors) == (0, f"warning: {empty}:1: its text is empty; left out\n")
    status, printed, errors = run("evaluate", config(), "--data", empty)
    assert (status, printed) == (1, "") and errors.endswith(f"{empty}: there is no prompt in it that can be used\n")


def test_what_cannot_be_done_is_told_before_anything_is_measured(
    run: Run, config: Config, data: Path, tmp_path: Path
) -> None:
    def refused(*arguments: Any) -> str:
        status, printed, errors = run("evaluate", *arguments, "--data", data)
        assert (status, printed) == (1, "")
        return errors

    file = config()
    assert refused(file, "--json", tmp_path / "no" / "x.json") == f"--json: there is no folder {tmp_path}/no\n"
    assert refused(file, "--url", "http://server").startswith("--url measures a server and ")
    assert "deadline_ms" in refused(config(more="router: {deadline: 5}\n"))
    with pytest.raises(SystemExit):
        run("evaluate", file, "--data", data, "--small-changes", -1)


@pytest.mark.parametrize(
    ("package", "option", "said"),
    [
        ("matplotlib", ("--plots", "plots"), "pip install 'vllm-lora-router[bench]'"),
        ("sklearn", (), "pip install 'vllm-lora-router[train]'"),
        ("httpx", ("--url", "http://server"), "pip install httpx"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_brings_it(
    run: Run,
    config: Config,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    option: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, printed, errors = run("evaluate", *([] if "--url" in option else [config()]), "--data", data, *option)
    assert (status, printed) == (1, "")
    assert said in errors
