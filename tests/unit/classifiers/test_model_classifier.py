"""The model classifier: windows, thresholds and batches around a scorer."""

import asyncio
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vllm_lora_router.classifiers import OverloadError
from vllm_lora_router.classifiers.model_classifier import (
    MAX_INLINE_CHARACTERS,
    ModelClassifier,
    ScoreColumn,
    ScoreGroup,
    Scores,
)
from vllm_lora_router.classifiers.models.batcher import QUEUE_LIMIT
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.types import Classification, Client, Method, Query


class TableScorer:
    """A scorer that looks scores up in a scorer. Bars separate the windows of a text."""

    method: Method = "domain"
    fingerprint = "table 1"
    runs_on = "test, cpu"
    thread_safe = False

    def __init__(
        self, columns: Mapping[str, float] | Sequence[tuple[str, float]], rows: Mapping[str, list[float]]
    ) -> None:
        pairs = columns.items() if isinstance(columns, Mapping) else columns
        self.groups = [ScoreGroup("probability", [ScoreColumn(category, threshold) for category, threshold in pairs])]
        self.rows = rows
        self.threads: set[str] = set()
        self.worker = Worker("test")

    def windows(self, text: str) -> list[str]:
        return text.split("|")

    def score(self, texts: Sequence[str]) -> list[Scores]:
        self.threads.add(threading.current_thread().name)
        values = np.array([self.rows[text] for text in texts], dtype=np.float32)
        return [Scores(values, [{"window": text} for text in texts])]


def decide(classifier: ModelClassifier, text: str) -> Classification:
    (classification,) = classifier.decide([text])
    return classification


async def test_a_thread_safe_model_classifies_short_texts_on_the_event_loop() -> None:
    long = "long " * (MAX_INLINE_CHARACTERS // 5 + 1)
    scorer = TableScorer({"a": 0.5}, {"quick": [0.9], long: [0.9]})
    scorer.thread_safe = True
    classifier = ModelClassifier(scorer)
    calls: list[tuple[int, int]] = []
    classifier.batcher.on_batch = lambda texts, waiting: calls.append((texts, waiting))
    (result,) = await classifier.classify([Query("quick")])
    assert result.accepted and scorer.threads == {threading.current_thread().name}
    scorer.threads.clear()
    await classifier.classify([Query(long)])  # a longer text would block the event loop for too long
    assert scorer.threads == {"lora-router-test"}
    async with asyncio.timeout(60):  # it is called after the answer
        while len(calls) < 2:
            await asyncio.sleep(0.001)
    assert (classifier.batcher.stats.texts, calls) == (2, [(1, 0), (1, 0)])
    with pytest.raises(KeyError):
        await classifier.classify([Query("unheard")])
    assert classifier.batcher.stats.failed == 1


async def test_a_model_that_is_not_thread_safe_runs_only_on_its_worker() -> None:
    scorer = TableScorer({"a": 0.5}, {"quick": [0.9]})
    await ModelClassifier(scorer).classify([Query("quick")])
    assert scorer.threads == {"lora-router-test"}


async def test_requests_without_a_checked_api_key_cannot_fill_the_queue_for_others() -> None:
    finish = threading.Event()
    scorer = TableScorer({"a": 0.5}, {})
    classifier = ModelClassifier(scorer)
    classifier.batcher.answer = lambda texts: finish.wait(60) and [classifier._no_text] * len(texts)  # pyright: ignore
    key = Client(api_key_fingerprint="1")
    unchecked = [Query("x" * 9, client=key, may_call_tools=False) for _ in range(QUEUE_LIMIT + 1)]
    waiting = asyncio.ensure_future(classifier.classify([unchecked[0]]))
    async with asyncio.timeout(60):
        while classifier.batcher.stats.batches == 0:
            await asyncio.sleep(0.001)
    flood = [asyncio.ensure_future(classifier.classify([query])) for query in unchecked]
    await asyncio.sleep(0.05)
    paying = asyncio.ensure_future(classifier.classify([Query("x" * 9, client=key)]))
    await asyncio.sleep(0.05)
    finish.set()
    assert await asyncio.gather(paying, waiting) == [[classifier._no_text]] * 2  # pyright: ignore
    results = await asyncio.gather(*flood, return_exceptions=True)
    assert [isinstance(result, OverloadError) for result in results].count(True) == 2


def test_the_best_category_above_its_threshold_is_accepted() -> None:
    scorer = TableScorer({"a": 0.6, "b": 0.3, "c": 0.3}, {"x": [0.55, 0.4, 0.35], "y": [0.7, 0.4, 0.9]})
    classifier = ModelClassifier(scorer)
    first = decide(classifier, "x")
    assert (first.category, first.accepted, first.threshold) == ("b", True, 0.3)
    assert first.score == pytest.approx(0.4)
    assert decide(classifier, "y").category == "c"


def test_without_a_category_above_its_threshold_the_best_one_is_not_accepted() -> None:
    result = decide(ModelClassifier(TableScorer({"a": 0.6, "b": 0.6}, {"x": [0.55, 0.4]})), "x")
    assert (result.category, result.accepted, result.threshold, result.scale) == ("a", False, 0.6, "probability")
    assert result.scores == {"a": 0.55, "b": 0.4}


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.6, 0.7, 1.0])
def test_a_score_equal_to_the_threshold_is_accepted(threshold: float) -> None:
    assert decide(ModelClassifier(TableScorer({"a": threshold}, {"x": [threshold]})), "x").accepted


def test_of_equal_scores_the_first_listed_wins() -> None:
    assert decide(ModelClassifier(TableScorer({"a": 0.5, "b": 0.5}, {"x": [0.5, 0.5]})), "x").category == "a"


def test_a_category_with_several_columns_has_the_score_of_the_deciding_one() -> None:
    scorer = TableScorer([("a", 0.9), ("b", 0.5), ("a", 0.2)], {"x": [0.8, 0.1, 0.3], "y": [0.8, 0.1, 0.1]})
    result = decide(ModelClassifier(scorer), "x")
    assert (result.scores, result.thresholds) == ({"a": 0.3, "b": 0.1}, {"a": 0.2, "b": 0.5})
    assert (result.category, result.score, result.accepted, result.threshold) == ("a", 0.3, True, 0.2)
    result = decide(ModelClassifier(scorer), "y")
    assert (result.scores, result.thresholds) == ({"a": 0.8, "b": 0.1}, {"a": 0.9, "b": 0.5})
    assert not result.accepted


def test_the_decision_uses_rounded_scores() -> None:
    result = decide(ModelClassifier(TableScorer({"a": 0.6}, {"x": [0.59996]})), "x")
    assert (result.score, result.accepted) == (0.6, True)


def test_negative_similarities_are_reported() -> None:
    result = decide(ModelClassifier(TableScorer({"a": 0.6, "b": 0.6}, {"x": [-0.2, -0.4]})), "x")
    assert (result.category, result.scores) == ("a", {"a": -0.2, "b": -0.4})


def test_windows_are_averaged_and_the_evidence_comes_from_the_best_window() -> None:
    scorer = TableScorer({"a": 0.6, "b": 0.6}, {"head": [0.9, 0.1], "tail": [0.4, 0.6]})
    result = decide(ModelClassifier(scorer), "tail|head")
    assert result.score == pytest.approx(0.65)
    assert result.scores == {"a": 0.65, "b": 0.35}
    assert (result.accepted, result.evidence) == (True, {"window": "head"})


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
async def test_an_empty_text_is_not_accepted_and_not_scored(text: str) -> None:
    scorer = TableScorer({"a": 0.0}, {})
    (result,) = await ModelClassifier(scorer).classify([Query(text)])
    assert result == Classification(None, 0.0, {}, "probability", 0.0, False)
    assert not scorer.threads


def test_texts_get_the_same_classification_in_a_batch_as_alone() -> None:
    rows = {"a1": [0.9, 0.1], "a2": [0.3, 0.5], "b": [0.2, 0.8], "c": [0.5, 0.5]}
    classifier = ModelClassifier(TableScorer({"a": 0.5, "b": 0.5}, rows))
    texts = ["a1|a2", "b", "c", "b|c|a1"]
    assert classifier.decide(texts) == [decide(classifier, text) for text in texts]


def test_warm_up_measures_the_cost_of_a_batch() -> None:
    classifier = ModelClassifier(TableScorer({"a": 0.5}, {"x": [0.9]}))
    classifier.warm_up("x")
    assert classifier.single_text_s > 0
    assert classifier.batcher.cost.overhead_s > 0


def test_a_lone_surrogate_is_replaced_before_tokenization() -> None:
    scorer = TableScorer({"a": 0.5}, {"my ? hurts": [0.7]})
    assert decide(ModelClassifier(scorer), "my \ud83d hurts").accepted


async def test_queries_are_classified_in_order_on_the_worker_thread() -> None:
    scorer = TableScorer({"a": 0.5, "b": 0.5}, {"x": [0.9, 0.1], "y": [0.1, 0.9]})
    classifier = ModelClassifier(scorer)
    results = await classifier.classify([Query("x"), Query("y"), Query(""), Query("x")])
    assert [classification.category for classification in results] == ["a", "b", None, "a"]
    assert scorer.threads == {"lora-router-test"}
    assert (classifier.method, classifier.fingerprint, classifier.reads) == ("domain", "table 1", {"text"})


def test_no_pass_has_more_windows_than_the_maximum_batch_size() -> None:
    rows = {str(number): [number / 1000] for number in range(200)}
    scorer = TableScorer({"a": 0.0}, rows)
    passes: list[int] = []
    score = scorer.score

    def counted(texts: Sequence[str]) -> list[Scores]:
        passes.append(len(texts))
        return score(texts)

    scorer.score = counted  # pyright: ignore[reportAttributeAccessIssue]
    results = ModelClassifier(scorer).decide(
        ["|".join(str(number) for number in range(start, start + 4)) for start in range(0, 200, 4)]
    )
    assert max(passes) <= 64 and sum(passes) == 200
    assert [classification.score for classification in results] == pytest.approx(
        [(start + 1.5) / 1000 for start in range(0, 200, 4)]
    )
    assert [classification.evidence["window"] for classification in results] == [
        str(start + 3) for start in range(0, 200, 4)
    ]
