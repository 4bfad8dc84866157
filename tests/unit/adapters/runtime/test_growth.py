"""What routing takes does not grow with what there is to route to."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.leasing import take
from vllm_lora_router.types import Query

from .conftest import Server, put

pytestmark = pytest.mark.alone

MOST_MORE_US = 50.0


async def microseconds(call: Callable[[], Awaitable[object]]) -> float:
    """The median of many calls, in the quietest of several rounds."""
    rounds = []
    for _ in range(7):
        took = []
        for _ in range(200):
            began = time.perf_counter()
            await call()
            took.append((time.perf_counter() - began) * 1e6)
        rounds.append(statistics.median(took))
        await asyncio.sleep(0)
    return min(rounds)


def router(folder: Path, categories: int) -> Router:
    """Five keywords a category; the last one's adapter is asked for."""
    lines = ["model_config: {base: {loras: [%s]}}" % ", ".join(f"{{name: a{n}}}" for n in range(categories))]  # noqa: UP031
    lines += ["default_model: base", "keyword_rules:"]
    lines += [
        f"  - {{category: c{number}, keywords: [{', '.join(f'word{number}x{each}' for each in range(5))}]}}"
        for number in range(categories)
    ]
    lines += ["categories:"]
    lines += [f"  - {{name: c{n}, model_scores: [{{model: base, lora_name: a{n}}}]}}" for n in range(categories)]
    file = folder / f"{categories}.yaml"
    file.write_text("\n".join(lines))
    loaded = load(file)
    return Router.build(loaded, served_base(loaded, ["base"]))


async def test_with_more_adapters(server: Server, tmp_path: Path) -> None:
    took: dict[int, float] = {}
    server.core.capacity = 512
    process = server.process(slots=8)
    routed = router(tmp_path, 4)
    plan = await routed.plan([Query("what is word3x1")])

    async def lease() -> None:
        taken = await take(routed, plan, process.pool, None)
        assert taken.lease is not None and taken.candidate.adapter == "a3"
        taken.lease.release()

    for number in range(512):
        put(server.uploads / f"a{number}", f"a{number}")
        assert await process.ask(f"a{number}") == f"a{number}"
        if number + 1 in (4, 512):
            took[number + 1] = await microseconds(lease)
    print(f"\na lease among 4 adapters takes {took[4]:.1f} us, among 512 {took[512]:.1f} us")
    assert took[512] - took[4] <= MOST_MORE_US


async def test_with_more_categories(tmp_path: Path) -> None:
    took: dict[int, float] = {}
    for categories in (10, 200):
        routed = router(tmp_path, categories)
        question = [Query(f"Please explain to me what a word{categories - 1}x4 is, and what I should do about it")]
        assert (await routed.plan(question)).category == f"c{categories - 1}"
        took[categories] = await microseconds(lambda routed=routed, question=question: routed.plan(question))
    print(f"\na plan among 10 categories takes {took[10]:.1f} us, among 200 {took[200]:.1f} us")
    assert took[200] - took[10] <= MOST_MORE_US
