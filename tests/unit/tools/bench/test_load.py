"""Closed and open loops."""

import asyncio
import time
from itertools import count

import pytest

from vllm_lora_router.tools.bench.load import closed_loop, open_loop, percentile


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 51), (95, 96), (99, 100), (100, 100)])
def test_percentile_is_one_of_the_values(percent: float, value: int) -> None:
    assert percentile([*range(100, 0, -1)], percent) == value


async def test_closed_loop_runs_one_request_per_client(full: bool) -> None:
    in_progress, most = 0, 0

    async def ask(text: str) -> None:
        nonlocal in_progress, most
        in_progress += 1
        most = max(most, in_progress)
        await asyncio.sleep(0.01)
        in_progress -= 1

    numbers = count()
    load = await closed_loop(ask, lambda: str(next(numbers)), 5, 0.2)
    assert most == 5 and len(load.times_ms) == next(numbers)
    assert load.percentile(50) > 9 and 0 < load.per_second <= 550
    if full:
        assert load.percentile(50) < 50 and load.per_second > 50


async def test_open_loop_sends_requests_independent_of_responses(full: bool) -> None:
    async def ask(text: str) -> None:
        await asyncio.sleep(0.1)

    load = await open_loop(ask, lambda: "x", 200, 0.5)
    assert 10 < len(load.times_ms) < 150  # one request after the other would be five
    if full:
        assert len(load.times_ms) > 60
    assert load.percentile(50) > 99


async def test_blocked_event_loop_appears_as_lag() -> None:
    async def ask(text: str) -> None:
        time.sleep(0.03)  # noqa: ASYNC251
        await asyncio.sleep(0.03)

    load = await closed_loop(ask, lambda: "x", 1, 0.3)
    assert percentile(load.lag_ms, 99) > 10
