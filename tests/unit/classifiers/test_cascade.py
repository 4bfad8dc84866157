"""The methods one after the other: the first that is sure answers, and nothing is ever raised."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from vllm_lora_router.classifiers import Overload, Stuck
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.types import Classification, Method, Query


def classification(category: str, *, sure: bool) -> Classification:
    return Classification(category, 0.7, {category: 0.7}, "probability", 0.6, sure)


class Classifier:
    """One that does what it is told and remembers what it was asked."""

    reads = frozenset({"text"})
    fingerprint = ""

    def __init__(self, method: Method, answer: Callable[[], Awaitable[Classification]] | Classification) -> None:
        self.method: Method = method
        self.answer = answer
        self.asked: list[str] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.asked += [query.text for query in queries]
        return [self.answer if isinstance(self.answer, Classification) else await self.answer() for _ in queries]


def failing(error: Exception) -> Callable[[], Awaitable[Classification]]:
    async def fail() -> Classification:
        raise error

    return fail


async def never() -> Classification:
    await asyncio.Event().wait()
    raise AssertionError


SURE = classification("medical", sure=True)
UNSURE = classification("legal", sure=False)


async def test_the_first_sure_one_answers_and_those_behind_it_are_not_asked() -> None:
    classifiers = [
        Classifier("keyword", UNSURE),
        Classifier("embedding", SURE),
        Classifier("domain", classification("technical", sure=True)),
    ]
    steps = await Cascade(classifiers, 1000).ask(Query("fever"))
    assert [(step.method, step.classification, step.failure) for step in steps] == [
        ("keyword", UNSURE, None),
        ("embedding", SURE, None),
    ]
    assert [classifier.asked for classifier in classifiers] == [["fever"], ["fever"], []]
    assert all(step.duration_ms >= 0 for step in steps)


async def test_when_none_is_sure_all_were_asked() -> None:
    steps = await Cascade([Classifier("keyword", UNSURE), Classifier("domain", UNSURE)], 1000).ask(Query("x"))
    assert [step.classification for step in steps] == [UNSURE, UNSURE]


async def test_without_methods_there_are_no_steps() -> None:
    assert await Cascade([], 1000).ask(Query("x")) == ()


async def test_a_method_that_fails_is_a_step_that_says_so_and_the_next_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "vllm_lora_router"):
        steps = await Cascade(
            [Classifier("domain", failing(RuntimeError("no memory"))), Classifier("embedding", SURE)], 1000
        ).ask(Query("the user's words"))
    assert (steps[0].failure, steps[0].error, steps[0].classification) == ("error", "RuntimeError: no memory", None)
    assert steps[1].classification is SURE
    assert "the domain classifier failed" in caplog.text
    assert "the user's words" not in caplog.text


async def test_a_method_with_too_much_to_do_is_an_overload_and_no_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cascade = Cascade([Classifier("domain", failing(Overload("256 queries wait already")))], 1000)
    (step,) = await cascade.ask(Query("x"))
    assert (step.failure, step.error) == ("overload", "256 queries wait already")
    assert not caplog.records


async def test_a_method_that_takes_too_long_is_a_timeout_within_the_deadline() -> None:
    began = time.perf_counter()
    steps = await Cascade([Classifier("keyword", UNSURE), Classifier("domain", never)], 30).ask(Query("x"))
    took_ms = (time.perf_counter() - began) * 1000
    assert (steps[1].failure, steps[1].error) == ("timeout", "no answer within router.deadline_ms (30 ms)")
    assert 25 < took_ms < 1000
    assert 25 < steps[1].duration_ms < 1000


async def test_the_deadline_is_one_for_all_methods_together() -> None:
    async def slow() -> Classification:
        await asyncio.sleep(0.15)
        return UNSURE

    began = time.perf_counter()
    steps = await Cascade([Classifier(method, slow) for method in ("keyword", "embedding", "domain")], 250).ask(
        Query("x")
    )
    assert [step.failure for step in steps] == [None, "timeout", "timeout"]
    assert time.perf_counter() - began < 1


async def test_a_tool_has_a_time_of_its_own_and_takes_none_of_the_others() -> None:
    async def slow() -> Classification:
        await asyncio.sleep(0.15)
        return UNSURE

    steps = await Cascade([Classifier("mcp", slow), Classifier("keyword", UNSURE)], 50).ask(Query("x"))
    assert [step.failure for step in steps] == [None, None]
    assert steps[0].duration_ms > 140


async def test_a_tool_that_is_late_is_a_timeout_in_its_own_words() -> None:
    async def late() -> Classification:
        raise TimeoutError("no answer within 2 s")

    (step,) = await Cascade([Classifier("mcp", late)], 50).ask(Query("x"))
    assert (step.failure, step.error) == ("timeout", "no answer within 2 s")


async def test_a_method_that_gives_the_wrong_number_of_answers_is_an_error() -> None:
    class Silent(Classifier):
        async def classify(self, queries: Sequence[Query]) -> list[Classification]:
            return []

    (step,) = await Cascade([Silent("domain", SURE)], 1000).ask(Query("x"))
    assert step.failure == "error"


async def test_a_request_that_is_given_up_stops_the_method_under_way() -> None:
    stopped: list[str] = []

    async def wait() -> Classification:
        try:
            return await never()
        except asyncio.CancelledError:
            stopped.append("domain")
            raise

    behind = Classifier("embedding", SURE)
    asking = asyncio.ensure_future(Cascade([Classifier("domain", wait), behind], 10_000).ask(Query("x")))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (stopped, behind.asked) == (["domain"], [])


async def test_a_method_that_fails_for_every_request_says_so_once_a_minute_and_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_lora_router.classifiers.cascade.SAY_AGAIN_S", 0.2)
    cascade = Cascade([Classifier("domain", failing(RuntimeError("no memory")))], 1000)
    for _ in range(50):
        await cascade.ask(Query("x"))
    assert len(caplog.records) == 1
    await asyncio.sleep(0.25)
    await cascade.ask(Query("x"))
    assert [record.getMessage() for record in caplog.records][1].startswith(
        "the domain classifier failed (51 times so far): RuntimeError: no memory"
    )
    assert cascade.failures["domain", "error"] == 51


async def test_a_model_that_does_not_return_is_an_error_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    (step,) = await Cascade([Classifier("domain", failing(Stuck("its model has not returned for 12 s")))], 1000).ask(
        Query("x")
    )
    assert (step.failure, step.error) == ("error", "its model has not returned for 12 s")
    assert caplog.records[0].exc_info is None
