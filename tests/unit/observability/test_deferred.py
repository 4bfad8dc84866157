"""Deferred work runs once, in order and in groups."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from vllm_lora_router.observability.deferred import DELAY_S, MAX_PENDING, MAX_PER_ITERATION, DeferredWork


async def test_calls_added_within_the_delay_run_together_in_order() -> None:
    calls: list[int] = []
    deferred = DeferredWork()
    for number in range(3):
        deferred.add(lambda number=number: calls.append(number))
    assert calls == []
    await until(lambda: len(calls) > 0)
    assert calls == [0, 1, 2]
    deferred.add(lambda: calls.append(3))
    assert calls == [0, 1, 2]
    await until(lambda: len(calls) > 3)
    assert calls == [0, 1, 2, 3]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(DELAY_S / 10)


async def test_run_now_runs_pending_calls_exactly_once() -> None:
    calls: list[str] = []
    deferred = DeferredWork()
    deferred.add(lambda: calls.append("call"))
    deferred.run_now()
    assert calls == ["call"]
    deferred.run_now()
    await asyncio.sleep(DELAY_S * 2)
    assert calls == ["call"]


async def test_full_queue_runs_immediately_in_several_event_loop_iterations() -> None:
    calls: list[int] = []
    deferred = DeferredWork()
    for _ in range(MAX_PENDING):
        deferred.add(lambda: calls.append(1))
    assert calls == []
    counts: list[int] = []
    for _ in range(2 * MAX_PENDING // MAX_PER_ITERATION):
        await asyncio.sleep(0)
        counts.append(len(calls))
    assert counts[-1] == MAX_PENDING
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= MAX_PER_ITERATION


async def test_failing_call_is_logged_and_the_others_still_run(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def fail() -> None:
        raise RuntimeError("no room")

    deferred = DeferredWork()
    for call in (lambda: calls.append("before"), fail, lambda: calls.append("after")):
        deferred.add(call)
    with caplog.at_level(logging.ERROR, "vllm_lora_router.observability"):
        deferred.run_now()
    assert calls == ["before", "after"]
    (message,) = caplog.messages
    assert message.startswith("failed to record a decision or its outcome") and "no room" in caplog.text


def test_calls_run_immediately_without_an_event_loop() -> None:
    calls: list[str] = []
    DeferredWork().add(lambda: calls.append("call"))
    assert calls == ["call"]


def test_calls_of_a_closed_loop_run_on_the_next_loop() -> None:
    calls: list[str] = []
    deferred = DeferredWork()

    async def add(name: str, wait_s: float) -> None:
        deferred.add(lambda: calls.append(name))
        await asyncio.sleep(wait_s)

    asyncio.run(add("first", 0))
    assert calls == []
    asyncio.run(add("second", DELAY_S * 2))
    assert calls == ["first", "second"]
