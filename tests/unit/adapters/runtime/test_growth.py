"""The cost of routing does not grow with the number of adapters and categories."""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.leasing import lease_first, routed_target
from vllm_lora_router.types import Query

from .conftest import Server, put_adapter

TraceFunction = Callable[[FrameType, str, Any], Any]
MAX_INCREASE_US = 50.0  # in the long form
MAX_INCREASE = 0.1  # share of the bytecode instructions with few adapters or categories


@dataclass(frozen=True)
class Cost:
    """The cost of a call."""

    instructions: int  # of Python's interpreter
    us: float  # the median duration of many calls, the minimum of several rounds


async def cost_of(call: Callable[[], Awaitable[object]]) -> Cost:
    rounds = []
    for _ in range(7):
        durations = []
        for _ in range(200):
            start = time.perf_counter()
            await call()
            durations.append((time.perf_counter() - start) * 1e6)
        rounds.append(statistics.median(durations))
        await asyncio.sleep(0)
    return Cost(await instructions(call), min(rounds))


async def instructions(call: Callable[[], Awaitable[object]]) -> int:
    """Return the number of bytecode instructions that a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        await call()
    finally:
        sys.settrace(previous)
    return count


def assert_no_growth(few: Cost, many: Cost, full: bool) -> None:
    assert many.instructions <= (1 + MAX_INCREASE) * few.instructions
    assert not full or many.us - few.us <= MAX_INCREASE_US


def router(folder: Path, categories: int) -> Router:
    """Return a router with five keywords and one adapter per category."""
    lines = ["model_config: {base: {loras: [%s]}}" % ", ".join(f"{{name: a{n}}}" for n in range(categories))]  # noqa: UP031
    lines += ["default_model: base", "keyword_rules:"]
    lines += [
        f"  - {{category: c{number}, keywords: [{', '.join(f'word{number}x{index}' for index in range(5))}]}}"
        for number in range(categories)
    ]
    lines += ["categories:"]
    lines += [f"  - {{name: c{n}, model_scores: [{{model: base, lora_name: a{n}}}]}}" for n in range(categories)]
    file = folder / f"{categories}.yaml"
    file.write_text("\n".join(lines))
    loaded = load(file)
    return Router.build(loaded, served_base(loaded, ["base"]))


async def test_lease_cost_does_not_grow_with_adapters(server: Server, tmp_path: Path, full: bool) -> None:
    costs: dict[int, Cost] = {}
    server.core.capacity = 512
    process = server.process(slots=8)
    routed = router(tmp_path, 4)
    plan = await routed.plan([Query("what is word3x1")])

    async def lease() -> None:
        target = await lease_first(routed_target(routed, plan, None, "/v1/chat/completions"), process.pool)
        assert target.lease is not None and target.candidate.adapter == "a3"
        target.lease.release()

    for number in range(512):
        put_adapter(server.uploads / f"a{number}", f"a{number}")
        assert await process.request(f"a{number}") == f"a{number}"
        if number + 1 in (4, 512):
            costs[number + 1] = await cost_of(lease)
    print(f"\na lease among 4 adapters: {costs[4]}, among 512: {costs[512]}")
    assert_no_growth(costs[4], costs[512], full)


async def test_plan_cost_does_not_grow_with_categories(tmp_path: Path, full: bool) -> None:
    costs: dict[int, Cost] = {}
    for categories in (10, 200):
        routed = router(tmp_path, categories)
        question = [Query(f"Please explain to me what a word{categories - 1}x4 is, and what I should do about it")]
        assert (await routed.plan(question)).category == f"c{categories - 1}"
        costs[categories] = await cost_of(lambda routed=routed, question=question: routed.plan(question))
    print(f"\na plan among 10 categories: {costs[10]}, among 200: {costs[200]}")
    assert_no_growth(costs[10], costs[200], full)
