"""Keyword rules: the work for a text does not depend on the number of keywords, and is done in steps."""

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from types import FrameType

import pytest

from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.classifiers.keyword_automaton import with_turns
from vllm_lora_router.classifiers.keyword_text import SLICE_CHARACTERS
from vllm_lora_router.config.schema import KeywordRule
from vllm_lora_router.types import Query


def one_rule(*keywords: str) -> KeywordClassifier:
    return KeywordClassifier([(0, KeywordRule(category="a", keywords=list(keywords)))])


def rule_for_each(*keywords: str) -> KeywordClassifier:
    return KeywordClassifier(
        [(place, KeywordRule(category="a", keywords=[keyword])) for place, keyword in enumerate(keywords)]
    )


def calls(rules: KeywordClassifier, text: str) -> int:
    """Return the number of function calls for one text, in Python and in C."""
    count = 0

    def profile(frame: FrameType, event: str, function: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        rules.match(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("build", [one_rule, rule_for_each])
@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("order number {}", "number " * 500),
        ("order number {}", "order number " * 300),
        ("{}!?", "!? " * 500),
        ("!?{}?!", "!?!" * 500),
        ("订单{}号码", "订单号码" * 300),
        ("{}号码", "订单号码" * 300),
    ],
)
def test_the_work_does_not_depend_on_the_number_of_keywords(
    build: Callable[..., KeywordClassifier], keyword: str, text: str
) -> None:
    few, many = (build(*(keyword.format(place) for place in range(count))) for count in (20, 4000))
    assert not many.match(text).accepted
    assert calls(many, text) <= calls(few, text) * 1.1


@pytest.mark.parametrize("piece", ["!", "a ", "高"])
def test_the_work_does_not_grow_with_the_nesting_of_keywords(piece: str) -> None:
    """Each keyword is found once, although nearly all of them end at each place of the text."""
    text = piece * 1500
    nested = one_rule(*((piece * count).strip() for count in range(1, 101)))
    assert calls(nested, text) <= calls(one_rule((piece * 100).strip()), text) + 100 * 10
    assert nested.match(text).evidence["more_keywords"] == 80


@pytest.mark.parametrize(
    "piece",
    [
        "some words of a phrase, ",
        "Größe und Länge, ",
        "高血压的原因 and ",
        "\ufdfa",
        "\u0301\u0316",
        "\u00ad",
        "\u2019\u2013",
    ],
)
async def test_a_long_text_gives_the_event_loop_turns(piece: str) -> None:
    rules, text = one_rule("word7", "long phrase 7", "词7语", "x7++"), piece * (150_000 // len(piece)) + " word7"
    assert rules.classify_now(Query(text)) is None
    task = asyncio.ensure_future(rules.classify([Query(text)]))
    iterations = 0
    while not task.done():
        await asyncio.sleep(0)
        iterations += 1
    assert (await task)[0].accepted
    assert iterations >= len(text) / SLICE_CHARACTERS


async def test_an_iteration_of_the_event_loop_runs_one_step_of_concurrent_texts() -> None:
    rules, text = one_rule("fever"), "some words " * 2000
    steps, iterations = sum(1 for _ in rules._steps(text)), 0
    tasks = [asyncio.ensure_future(rules.classify([Query(text)])) for _ in range(10)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        iterations += 1
    assert steps >= 5 and iterations >= 10 * steps


def test_a_short_text_that_normalization_makes_long_is_not_classified_at_once() -> None:
    rules = one_rule("fever")
    assert rules.classify_now(Query("x" * 2000)) is not None
    assert rules.classify_now(Query("\ufdfa" * 2000)) is None  # becomes 36,000 characters


async def test_a_cancelled_classification_leaves_its_turn_to_the_others() -> None:
    rules, text = one_rule("fever"), "some words " * 20_000 + "fever"
    first, second, third = (asyncio.ensure_future(rules.classify([Query(text)])) for _ in range(3))
    for _ in range(10):
        await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    assert (await asyncio.wait_for(third, 60))[0].accepted
    assert first.cancelled() and second.cancelled()


def test_keywords_are_not_objects_that_the_garbage_collector_visits() -> None:
    """A full collection stops all threads for a time that grows with the number of objects."""
    rule = KeywordRule(category="a", keywords=[f"order number {place} of 词" for place in range(500)])
    rules = [(0, rule), (1, KeywordRule(category="a", keywords=[f"order number {place}" for place in range(5000)]))]
    gc.collect()
    before = len(gc.get_objects())
    classifier = KeywordClassifier(rules)
    gc.collect()
    assert len(gc.get_objects()) - before < 1000
    assert classifier.match("order number 77").accepted


def test_other_threads_get_turns_while_an_automaton_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert list(with_turns(range(1000))) == list(range(1000))
    assert len(pauses) > 20 and all(pauses)
