"""Comparison of setups, with small servers of known delay."""

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
from vllm_lora_router.tools.bench.serve.compare import Comparison, Row, Setup
from vllm_lora_router.tools.bench.serve.measure import BenchmarkPlan, measure
from vllm_lora_router.tools.bench.serve.questions import AdapterMix, Question, QuestionSampler, lengthened
from vllm_lora_router.tools.bench.serve.server_processes import resume, run_exclusively
from vllm_lora_router.tools.bench.serve.servers import PLAIN, PROXY, ROUTED, RunningServers
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
    """Return a server that streams two chunks and reports the requested model, or `adapter`."""

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append(body)
        if status != 200:
            return web.Response(status=status, text="no room")
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(delay_s)
        model = adapter or body["model"]
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


def asking(mix: AdapterMix | None = None, questions: list[Question] | None = None) -> QuestionSampler:
    questions = questions or QUESTIONS
    return QuestionSampler(
        questions, {question.text: question.text for question in questions}, mix or AdapterMix(0.0), seed=3
    )


async def compared(second_s: float, rounds: int = 1, **how: object) -> tuple[list[Row], list[dict], list[dict]]:
    first_seen, second_seen = [], []
    async with served(0.01, first_seen) as first, served(second_s, second_seen, **how) as second:  # type: ignore[arg-type]
        ways = [Setup("named", "a", None), Setup("MoM", "b", "MoM")]
        async with Comparison({"a": first, "b": second}, ways, asking(), 4, seed=1) as comparison:
            rows = await comparison.one_at_a_time(20)
            rows += await comparison.concurrent(4, rounds, 0.2)
            rows += await comparison.open_loop(30, 2, 0.2)
    return rows, first_seen, second_seen


async def test_measured_difference_equals_added_delay(full: bool) -> None:
    rows, named, routed = await compared(0.03, rounds=6)
    alone, together, _ = rows[1::2]
    assert alone.first_more is not None and alone.total_more is not None
    # A busy machine adds to both, so only the order is certain.
    assert alone.first_more.low <= alone.first_more.value <= alone.first_more.high
    assert alone.first_more.value > 10 and alone.total_more.value > 10
    assert (alone.rounds, alone.succeeded, alone.failed) == (20, 20, 0)
    assert together.rate_ratio is not None and together.rate_ratio.value < 1
    if full:
        assert alone.first_more.low > 15 and alone.first_more.high < 40
        assert 15 < alone.total_more.value < 40
        assert 0.3 < together.rate_ratio.value < 0.8
    assert rows[0].first_more is None and rows[2].cpu_ms["client"] > 0
    assert {body["model"] for body in named} == {"legal-lora", "medical-lora"}
    assert {body["model"] for body in routed} == {"MoM"}


async def test_prompts_are_unique_and_of_equal_length_for_a_question() -> None:
    _, named, routed = await compared(0.01)
    prompts = [body["messages"][0]["content"] for body in (*named, *routed)]
    assert len(set(prompts)) == len(prompts)
    assert len({len(prompt) for prompt in prompts if prompt.endswith("legal?")}) == 1
    assert all(body["max_tokens"] == 4 and body["ignore_eos"] and body["stream"] for body in named)


async def test_failed_requests_and_other_adapters_are_reported() -> None:
    rows, _, _ = await compared(0.01, adapter="odd-lora")
    assert rows[1].other_adapter == 20 and rows[0].other_adapter == 0
    cell = Cell("keyword", 0, "uniform", rows)
    assert any("20 of 20 were answered by another adapter" in problem for problem in problems(cell))
    rows, _, _ = await compared(0.01, status=503)
    assert (rows[1].succeeded, rows[1].failed, rows[1].first_more) == (0, 20, None)
    assert rows[1].errors == ("503: no room",)
    for table in tables(Cell("keyword", 0, "uniform", rows)):
        Console(file=StringIO()).print(table)


async def test_each_method_length_and_mix_gets_its_own_questions() -> None:
    seen: list[dict] = []
    async with served(0.0, seen) as url:
        extent = BenchmarkPlan(
            [1, 2], [0.5], [0, 12], 4, [AdapterMix(0.0), AdapterMix(2.0)], pairs=2, rounds=1, seconds=0.05
        )
        fleet = RunningServers({PLAIN: url, ROUTED: url, PROXY: url}, {})
        cells = [cell async for cell in measure(fleet, QUESTIONS, ["keyword", "embedding"], extent)]
    assert [(cell.method, cell.prompt_tokens, cell.mix) for cell in cells] == [
        (method, tokens, mix)
        for method in ("keyword", "embedding")
        for tokens in (0, 12)
        for mix in ("uniform", "Zipf 2")
    ]
    assert [row.load for row in cells[0].rows[::4]] == ["alone", "2 callers", cells[0].rows[8].load]
    assert {row.setup for row in cells[0].rows} == {
        "adapter named, no router", "adapter named", "MoM by keyword", "proxy by keyword"
    }  # fmt: skip
    assert any(body["messages"][0]["content"].count("is it well?") == 4 for body in seen)
    # The router's cost is separated from the difference between the servers by naming the adapter on the same server.
    assert [row.first_more_here is not None for row in cells[0].rows[:4]] == [False, False, True, False]


async def test_question_is_repeated_up_to_the_minimum_length() -> None:
    async with served(0.0, []) as url:
        assert await lengthened(url, ["is it well?"], 7) == {"is it well?": "is it well? is it well? is it well?"}
        assert await lengthened(url, ["is it well?"], 0) == {"is it well?": "is it well?"}


def test_adapters_are_drawn_by_zipfs_law() -> None:
    drawn = Counter(asking(AdapterMix(1.0))().adapter for _ in range(1))
    assert sum(drawn.values()) == 1
    even, uneven = (asking(mix) for mix in (AdapterMix(0.0), AdapterMix(1.0)))
    counts = Counter(even().adapter for _ in range(3000))
    assert 0.9 < counts["legal-lora"] / counts["medical-lora"] < 1.1
    counts = Counter(uneven().adapter for _ in range(3000))
    assert 1.7 < counts["legal-lora"] / counts["medical-lora"] < 2.3


async def test_plot_shows_every_setup(tmp_path: Path) -> None:
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


def test_other_servers_are_paused_during_a_measurement() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, subprocess.Popen(["sleep", "60"]) as other:
        first, second = psutil.Process(child.pid), psutil.Process(other.pid)
        try:
            with run_exclusively({"first": first}, [second]):
                assert held(second) and not held(first, wait_s=0)
            with run_exclusively({"second": second}, [first]):
                assert held(first) and not held(second, wait_s=0)
            resume([first, second])
            assert not held(first, wait_s=0) and not held(second, wait_s=0)
        finally:
            child.kill()
            other.kill()
    resume([first])  # the process has ended
