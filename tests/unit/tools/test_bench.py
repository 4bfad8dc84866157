"""The command `vllm-lora-router bench serve`, with stub servers."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.tools.bench import serve_cli
from vllm_lora_router.tools.bench.serve.compare import Row, Spread
from vllm_lora_router.tools.bench.serve.servers import RunningServers
from vllm_lora_router.tools.bench.serve.tables import Cell
from vllm_lora_router.tools.demo.server import ServerFailedError

SPREAD = Spread(1.0, 2.0, 3.0)
CELL = Cell("keyword", 0, "evenly", [Row("alone", "named", 5, 0, 0, SPREAD, SPREAD, None, {}, 5, None, None, None)])


def run(*options: str) -> int:
    parser = argparse.ArgumentParser()
    serve_cli.add(parser.add_subparsers())
    args = parser.parse_args(["serve", *options])
    return args.run(args)


@pytest.mark.parametrize("error", [ServerFailedError("the third did not come up"), KeyboardInterrupt()])
def test_results_of_completed_starts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    pytest.importorskip("scipy")
    seeds: list[int] = []

    @contextmanager
    def started(args: argparse.Namespace, folder: Path, *, seed: int) -> Iterator[Any]:
        seeds.append(seed)
        if len(seeds) == 3:
            raise error
        yield argparse.Namespace(servers=RunningServers({}, {}))

    async def measured(*args: Any, seed: int) -> list[Cell]:
        return [CELL]

    monkeypatch.setattr(serve_cli, "_started_targets", started)
    monkeypatch.setattr(serve_cli, "_measure", measured)
    assert run("--starts", "5", "--seed", "7", "--json", str(tmp_path / "out.json")) == 1
    assert seeds == [7, 8, 9]
    assert (str(error) or "interrupted") in capsys.readouterr().err
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["starts"]) == 2
    assert [(cell["starts"], cell["rows"][0]["succeeded"]) for cell in written["cells"]] == [(2, 10)]


@pytest.mark.parametrize("option", ["--starts", "--pairs", "--rounds", "--callers"])
def test_zero_is_refused_for_counts(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(option, "0")
    assert f"{option}: must be at least 1" in capsys.readouterr().err
