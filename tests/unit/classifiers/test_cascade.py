"""The cascade runs methods in order until one is accepted, and turns failures into steps."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from vllm_lora_router.classifiers import OverloadError, StuckModelError
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.types import Classification, Method, Query


def classification(category: str, *, accepted: bool) -> Classification:
    return Classification(category, 0.7, {category: 0.7}, "probability", 0.6, accepted)


class Classifier:
    """A classifier with a given answer that records its queries."""

    reads = frozenset({"text"})
    fingerprint = ""

    def __init__(self, method: Method, answer: Callable[[], Awaitable[Classification]] | Classification) -> None:
        self.method: Method = method
        self.answer = answer
        self.queries: list[str] = []

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        self.queries += [query.text for query in queries]
        return [self.answer if isinstance(self.answer, Classification) else await self.answer() for _ in queries]


def failing(error: Exception) -> Callable[[], Awaitable[Classification]]:
    async def fail() -> Classification:
        raise error

    return fail


async def never() -> Classification:
    await asyncio.Event().wait()
    raise AssertionError


ACCEPTED = classification("medical", accepted=True)
BELOW_THRESHOLD = classification("legal", accepted=False)


async def test_later_methods_are_not_run_after_an_accepted_classification() -> None:
    classifiers = [
        Classifier("keyword", BELOW_THRESHOLD),
        Classifier("embedding", ACCEPTED),
        Classifier("domain", classification("technical", accepted=True)),
    ]
    steps = await Cascade(classifiers, 1000).classify(Query("fever"))
    assert [(step.method, step.classification, step.failure) for step in steps] == [
        ("keyword", BELOW_THRESHOLD, None),
        ("embedding", ACCEPTED, None),
    ]
    assert [classifier.queries for classifier in classifiers] == [["fever"], ["fever"], []]
    assert all(step.duration_ms >= 0 for step in steps)


async def test_without_an_accepted_classification_all_methods_are_run() -> None:
    steps = await Cascade(
        [Classifier("keyword", BELOW_THRESHOLD), Classifier("domain", BELOW_THRESHOLD)], 1000
    ).classify(Query("x"))
    assert [step.classification for step in steps] == [BELOW_THRESHOLD, BELOW_THRESHOLD]


async def test_without_methods_there_are_no_steps() -> None:
    assert await Cascade([], 1000).classify(Query("x")) == ()


async def test_a_failed_method_becomes_a_step_and_the_next_method_is_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "vllm_lora_router"):
        steps = await Cascade(
            [Classifier("domain", failing(RuntimeError("no memory"))), Classifier("embedding", ACCEPTED)], 1000
        ).classify(Query("the user text"))
    assert (steps[0].failure, steps[0].error, steps[0].classification) == ("error", "RuntimeError: no memory", None)
    assert steps[1].classification is ACCEPTED
    assert "domain classifier: failed" in caplog.text
    assert "the user text" not in caplog.text


async def test_the_last_failure_of_each_method_is_kept_also_for_a_cascade_without_a_method() -> None:
    cascade = Cascade(
        [
            Classifier("domain", failing(RuntimeError("no\nmemory"))),
            Classifier("embedding", failing(OverloadError("full"))),
        ],
        1000,
    )
    await cascade.without("embedding").classify(Query("x"))
    assert list(cascade.last_failures) == ["domain"]
    await cascade.classify(Query("x"))
    last = {method: (failure.reason, failure.error) for method, failure in cascade.last_failures.items()}
    assert last == {"domain": ("error", "RuntimeError: no\\nmemory"), "embedding": ("overload", "full")}
    assert abs(cascade.last_failures["domain"].at - time.time()) < 60


async def test_an_overloaded_method_becomes_an_overload_step_without_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cascade = Cascade([Classifier("domain", failing(OverloadError("256 texts are waiting already")))], 1000)
    (step,) = await cascade.classify(Query("x"))
    assert (step.failure, step.error) == ("overload", "256 texts are waiting already")
    assert not caplog.records


async def test_a_slow_method_becomes_a_timeout_step_at_the_deadline() -> None:
    began = time.perf_counter()
    steps = await Cascade([Classifier("keyword", BELOW_THRESHOLD), Classifier("domain", never)], 30).classify(
        Query("x")
    )
    took_ms = (time.perf_counter() - began) * 1000
    assert (steps[1].failure, steps[1].error) == ("timeout", "no answer within router.deadline_ms (30 ms)")
    assert took_ms > 25 and steps[1].duration_ms > 25


async def test_all_methods_share_one_deadline() -> None:
    async def slow() -> Classification:
        await asyncio.sleep(0.15)
        return BELOW_THRESHOLD

    steps = await Cascade([Classifier(method, slow) for method in ("keyword", "embedding", "domain")], 250).classify(
        Query("x")
    )
    assert [step.failure for step in steps] == [None, "timeout", "timeout"]


async def test_the_time_of_an_mcp_tool_does_not_count_against_the_deadline() -> None:
    async def slow() -> Classification:
        await asyncio.sleep(0.15)
        return BELOW_THRESHOLD

    steps = await Cascade([Classifier("mcp", slow), Classifier("keyword", BELOW_THRESHOLD)], 50).classify(Query("x"))
    assert [step.failure for step in steps] == [None, None]
    assert steps[0].duration_ms > 140


async def test_a_timeout_of_an_mcp_tool_keeps_its_message() -> None:
    async def late() -> Classification:
        raise TimeoutError("no answer within 2 s")

    (step,) = await Cascade([Classifier("mcp", late)], 50).classify(Query("x"))
    assert (step.failure, step.error) == ("timeout", "no answer within 2 s")


async def test_a_method_with_the_wrong_number_of_classifications_is_an_error() -> None:
    class Silent(Classifier):
        async def classify(self, queries: Sequence[Query]) -> list[Classification]:
            return []

    (step,) = await Cascade([Silent("domain", ACCEPTED)], 1000).classify(Query("x"))
    assert step.failure == "error"


async def test_a_cancelled_request_cancels_the_running_method() -> None:
    stopped: list[str] = []

    async def wait() -> Classification:
        try:
            return await never()
        except asyncio.CancelledError:
            stopped.append("domain")
            raise

    later = Classifier("embedding", ACCEPTED)
    task = asyncio.ensure_future(Cascade([Classifier("domain", wait), later], 10_000).classify(Query("x")))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (stopped, later.queries) == (["domain"], [])


async def test_repeated_failures_are_logged_once_a_minute_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_lora_router.classifiers.cascade.LOG_INTERVAL_S", 0.2)
    cascade = Cascade([Classifier("domain", failing(RuntimeError("no memory")))], 1000)
    for _ in range(50):
        await cascade.classify(Query("x"))
    assert len(caplog.records) == 1
    await asyncio.sleep(0.25)
    await cascade.classify(Query("x"))
    assert [record.getMessage() for record in caplog.records][1].startswith(
        "domain classifier: failed (51 times so far): RuntimeError: no memory"
    )
    assert cascade.failures["domain", "error"] == 51


async def test_a_stuck_model_is_an_error_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    (step,) = await Cascade(
        [Classifier("domain", failing(StuckModelError("the model call has not returned for 12 s")))], 1000
    ).classify(Query("x"))
    assert (step.failure, step.error) == ("error", "the model call has not returned for 12 s")
    assert caplog.records[0].exc_info is None
