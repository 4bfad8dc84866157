"""What a load measures."""

import asyncio
import time
from itertools import count

import pytest

from vllm_lora_router.tools.bench.load import closed_loop, open_loop, percentile

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 51), (95, 96), (99, 100), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: float, value: int) -> None:
    assert percentile([*range(100, 0, -1)], percent) == value


async def test_in_a_closed_loop_as_many_questions_are_under_way_as_there_are_callers() -> None:
    under_way, most = 0, 0

    async def ask(text: str) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1

    numbers = count()
    load = await closed_loop(ask, lambda: str(next(numbers)), 5, 0.2)
    assert most == 5 and len(load.times_ms) == next(numbers)
    assert 9 < load.percentile(50) < 50 and 50 < load.per_second <= 550


async def test_in_an_open_loop_questions_come_whether_or_not_others_were_answered() -> None:
    async def ask(text: str) -> None:
        await asyncio.sleep(0.1)

    load = await open_loop(ask, lambda: "x", 200, 0.5)
    assert 60 < len(load.times_ms) < 150
    assert load.percentile(50) > 99


async def test_a_loop_that_is_held_is_seen() -> None:
    async def ask(text: str) -> None:
        time.sleep(0.03)  # noqa: ASYNC251
        await asyncio.sleep(0.03)

    load = await closed_loop(ask, lambda: "x", 1, 0.3)
    assert percentile(load.lag_ms, 99) > 10
