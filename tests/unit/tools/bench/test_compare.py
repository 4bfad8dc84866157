"""Ways to be served, compared over small servers that take as long as they are told to."""

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from vllm_lora_router.tools.bench.serve import compare
from vllm_lora_router.tools.bench.serve.compare import Comparison, Row, Way
from vllm_lora_router.tools.bench.serve.measure import Extent, measure
from vllm_lora_router.tools.bench.serve.processes import alone, let_go
from vllm_lora_router.tools.bench.serve.questions import Asking, Mix, Question, longer
from vllm_lora_router.tools.bench.serve.servers import PLAIN, PROXY, ROUTED, Fleet
from vllm_lora_router.tools.bench.serve.tables import Cell, problems, tables

QUESTIONS = [
    Question("is it legal?", "keyword", "legal-lora"),
    Question("is it healthy?", "keyword", "medical-lora"),
    Question("is it well?", "embedding", "medical-lora"),
]


@pytest.fixture(autouse=True)
def hardly_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "WARM_UP", 2)


@asynccontextmanager
async def served(
    delay_s: float, seen: list[dict], *, adapter: str | None = None, status: int = 200
) -> AsyncIterator[str]:
    """A server that streams two pieces, and calls itself as it was called, or `adapter`."""

    async def chat(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        seen.append(asked)
        if status != 200:
            return web.Response(status=status, text="no room")
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(delay_s)
        model = adapter or asked["model"]
        await response.write(b'data: {"id":"x","model":"%s","choices":[]}\n\n' % model.encode())
        await asyncio.sleep(0.01)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def tokenize(request: web.Request) -> web.Response:
        return web.json_response({"count": len((await request.json())["prompt"].split())})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/tokenize", tokenize)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def asking(mix: Mix | None = None, questions: list[Question] | None = None) -> Asking:
    questions = questions or QUESTIONS
    return Asking(questions, {one.text: one.text for one in questions}, mix or Mix(0.0), seed=3)


async def compared(second_s: float, rounds: int = 1, **how: object) -> tuple[list[Row], list[dict], list[dict]]:
    first_seen, second_seen = [], []
    async with served(0.01, first_seen) as first, served(second_s, second_seen, **how) as second:  # type: ignore[arg-type]
        ways = [Way("named", "a", None), Way("MoM", "b", "MoM")]
        async with Comparison({"a": first, "b": second}, ways, asking(), 4, seed=1) as comparison:
            rows = await comparison.alone(20)
            rows += await comparison.callers(4, rounds, 0.2)
            rows += await comparison.arriving(30, 2, 0.2)
    return rows, first_seen, second_seen


@pytest.mark.alone
async def test_what_a_way_takes_longer_is_seen_as_that_much() -> None:
    rows, named, routed = await compared(0.03, rounds=6)
    alone, together, _ = rows[1::2]
    assert alone.first_more is not None and alone.total_more is not None
    assert 15 < alone.first_more.low <= alone.first_more.value <= alone.first_more.high < 40
    assert 15 < alone.total_more.value < 40
    assert (alone.rounds, alone.answered, alone.failed) == (20, 20, 0)
    assert together.rate_ratio is not None and 0.3 < together.rate_ratio.value < 0.8
    assert rows[0].first_more is None and rows[2].cpu_ms["client"] > 0
    assert {one["model"] for one in named} == {"legal-lora", "medical-lora"}
    assert {one["model"] for one in routed} == {"MoM"}


async def test_no_prompt_is_sent_twice_and_all_of_a_question_are_as_long() -> None:
    _, named, routed = await compared(0.01)
    prompts = [one["messages"][0]["content"] for one in (*named, *routed)]
    assert len(set(prompts)) == len(prompts)
    assert len({len(prompt) for prompt in prompts if prompt.endswith("legal?")}) == 1
    assert all(one["max_tokens"] == 4 and one["ignore_eos"] and one["stream"] for one in named)


async def test_what_failed_or_went_elsewhere_is_said() -> None:
    rows, _, _ = await compared(0.01, adapter="odd-lora")
    assert rows[1].elsewhere == 20 and rows[0].elsewhere == 0
    cell = Cell("keyword", 0, "uniform", rows)
    assert any("20 of 20 were answered by another adapter" in problem for problem in problems(cell))
    rows, _, _ = await compared(0.01, status=503)
    assert (rows[1].answered, rows[1].failed, rows[1].first_more) == (0, 20, None)
    assert rows[1].errors == ("503: no room",)
    for table in tables(Cell("keyword", 0, "uniform", rows)):
        Console(file=StringIO()).print(table)


async def test_each_method_length_and_mix_is_asked_its_own_questions() -> None:
    seen: list[dict] = []
    async with served(0.0, seen) as url:
        extent = Extent([1, 2], [0.5], [0, 12], 4, [Mix(0.0), Mix(2.0)], pairs=2, rounds=1, seconds=0.05)
        fleet = Fleet({PLAIN: url, ROUTED: url, PROXY: url}, {})
        cells = [cell async for cell in measure(fleet, QUESTIONS, ["keyword", "embedding"], extent)]
    assert [(cell.method, cell.prompt_tokens, cell.mix) for cell in cells] == [
        (method, tokens, mix)
        for method in ("keyword", "embedding")
        for tokens in (0, 12)
        for mix in ("uniform", "Zipf 2")
    ]
    assert [row.load for row in cells[0].rows[::4]] == ["alone", "2 callers", cells[0].rows[8].load]
    assert {row.way for row in cells[0].rows} == {
        "adapter named, no router", "adapter named", "MoM by keyword", "proxy by keyword"
    }  # fmt: skip
    assert any(one["messages"][0]["content"].count("is it well?") == 4 for one in seen)
    # What the router takes is told from what two servers differ by: by whoever names the adapter on the same one.
    assert [row.first_more_here is not None for row in cells[0].rows[:4]] == [False, False, True, False]


async def test_a_question_is_said_again_until_it_is_as_long_as_wished() -> None:
    async with served(0.0, []) as url:
        assert await longer(url, ["is it well?"], 7) == {"is it well?": "is it well? is it well? is it well?"}
        assert await longer(url, ["is it well?"], 0) == {"is it well?": "is it well?"}


def test_adapters_are_asked_for_by_zipfs_law() -> None:
    drawn = Counter(asking(Mix(1.0))().adapter for _ in range(1))
    assert sum(drawn.values()) == 1
    even, uneven = (asking(mix) for mix in (Mix(0.0), Mix(1.0)))
    counts = Counter(even().adapter for _ in range(3000))
    assert 0.9 < counts["legal-lora"] / counts["medical-lora"] < 1.1
    counts = Counter(uneven().adapter for _ in range(3000))
    assert 1.7 < counts["legal-lora"] / counts["medical-lora"] < 2.3


async def test_a_picture_shows_every_way(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from vllm_lora_router.tools.bench.serve.plot import plot

    rows, _, _ = await compared(0.01)
    plot([Cell("keyword", 0, "uniform", rows)], tmp_path / "ways.png", json.dumps({"on": "a test"}))
    assert (tmp_path / "ways.png").read_bytes().startswith(b"\x89PNG")


def held(process: psutil.Process, *, wait_s: float = 5) -> bool:
    until = time.monotonic() + wait_s
    while (stopped := process.status() == psutil.STATUS_STOPPED) is False and time.monotonic() < until:
        time.sleep(0.005)
    return stopped


def test_a_server_that_waits_for_its_turn_is_held() -> None:
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        first, second = psutil.Process(one.pid), psutil.Process(other.pid)
        try:
            with alone({"first": first}, [second]):
                assert held(second) and not held(first, wait_s=0)
            with alone({"second": second}, [first]):
                assert held(first) and not held(second, wait_s=0)
            let_go([first, second])
            assert not held(first, wait_s=0) and not held(second, wait_s=0)
        finally:
            one.kill()
            other.kill()
    let_go([first])  # it is gone
