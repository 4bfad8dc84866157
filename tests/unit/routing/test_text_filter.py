"""`router.text.drop`: what is removed, and which texts are filtered off the event loop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.routing.text_filter import MAX_INLINE_NS, TextFilter
from vllm_lora_router.types import Query

if TYPE_CHECKING:
    from .conftest import Route

TIME_LIMIT_S = 60.0


@pytest.mark.parametrize(
    ("patterns", "text", "filtered"),
    [
        (["(?s)<context>.*?</context>"], "<context>\nlaw\n</context>fever", " fever"),
        (["b", "a  +c"], "xabbc", "x "),  # a later pattern sees the result of the earlier one
        (["^a"], "aaa", " aa"),
        ([r"\ba"], "aa ba", " a ba"),
        (["ö+", "\N{GRINNING FACE}"], "schöön \N{GRINNING FACE}!", "sch n  !"),
        (["x*"], "axb", "a b"),  # an empty match removes nothing
        (["x"], "\ud800ax", "?a "),
        ([r"\C"], "ö", "  "),
        ([], "\ud800", "\ud800"),
    ],
)
async def test_matches_are_replaced_by_a_space(patterns: list[str], text: str, filtered: str) -> None:
    assert await TextFilter(patterns).apply(text, TIME_LIMIT_S) == filtered
    assert TextFilter(patterns)._remove(text, None) == filtered


async def test_text_without_a_match_is_returned_as_it_is() -> None:
    text = "\ud800 What causes fever? " * 1000
    assert await TextFilter(["x{3}"]).apply(text, TIME_LIMIT_S) is text


async def test_nested_repetition_takes_linear_time() -> None:
    assert await TextFilter(["(a+)+$"]).apply("a" * 40 + "!", TIME_LIMIT_S) == "a" * 40 + "!"


def test_work_decides_which_texts_are_filtered_on_the_event_loop() -> None:
    small, large = TextFilter(["a"]), TextFilter(["a", r"\p{L}{4}"])
    assert small.runs_inline("a" * 400)
    assert not small.runs_inline("ä" * 400)
    assert not large.runs_inline("a" * 400)
    assert TextFilter([]).runs_inline("a" * MAX_INLINE_NS)


async def test_event_loop_runs_while_a_long_text_is_filtered(router: Route) -> None:
    text = "a" * 20_000 + " fever"
    iterations = 0

    async def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    plan = await router(more="router: {deadline_ms: 60000, text: {drop: ['a.*b|a']}}\n").plan([Query(text, (text,))])
    counting.cancel()
    assert plan.category == "medical"
    assert iterations > 1


async def test_request_falls_back_when_filtering_exceeds_the_deadline(
    router: Route, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a" * 500_000 + " fever"  # this pattern searches the rest of the text once for each letter
    with caplog.at_level(logging.WARNING):
        plans = [
            await router(more="router: {deadline_ms: 20, text: {drop: ['a.*b|a']}}\n").plan([Query(text, turns)])
            for turns in [(text,), (text, "fever")]
        ]
    assert [(plan.reason, plan.category, plan.steps) for plan in plans] == [("timeout", None, ())] * 2
    assert "router.text.drop: 500006 characters were not filtered within router.deadline_ms (20 ms)" in caplog.text
