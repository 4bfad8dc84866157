"""Thresholds and windows around any model: what the scores of a text mean."""

import asyncio
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vllm_lora_router.classifiers.model_classifier import AT_ONCE, Choice, Part, ScoredClassifier, Scores
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.types import Classification, Method, Query


class Table:
    """A scorer that knows its texts by heart; windows are split at bars."""

    method: Method = "domain"
    fingerprint = "table 1"
    runs_on = "test, cpu"
    on_any_thread = False

    def __init__(
        self, choices: Mapping[str, float] | Sequence[tuple[str, float]], rows: Mapping[str, list[float]]
    ) -> None:
        pairs = choices.items() if isinstance(choices, Mapping) else choices
        self.parts = [Part("probability", [Choice(category, threshold) for category, threshold in pairs])]
        self.rows = rows
        self.threads: set[str] = set()
        self.worker = Worker("test")

    def windows(self, text: str) -> list[str]:
        return text.split("|")

    def score(self, texts: Sequence[str]) -> list[Scores]:
        self.threads.add(threading.current_thread().name)
        values = np.array([self.rows[text] for text in texts], dtype=np.float32)
        return [Scores(values, [{"window": text} for text in texts])]


def one(scored: ScoredClassifier, text: str) -> Classification:
    (found,) = scored.decide([text])
    return found


async def test_a_model_that_takes_less_than_a_hop_to_its_thread_answers_where_it_is_asked() -> None:
    long = "long " * (AT_ONCE // 5 + 1)
    table = Table({"a": 0.5}, {"quick": [0.9], long: [0.9]})
    table.on_any_thread = True
    scored = ScoredClassifier(table)
    told: list[tuple[int, int]] = []
    scored.batcher.told = lambda texts, waiting: told.append((texts, waiting))
    (found,) = await scored.classify([Query("quick")])
    assert found.accepted and table.threads == {threading.current_thread().name}
    table.threads.clear()
    await scored.classify([Query(long)])  # of a longer text it holds the event loop for too long
    assert table.threads == {"lora-router-test"}
    async with asyncio.timeout(5):  # it is told after the answer
        while len(told) < 2:
            await asyncio.sleep(0.001)
    assert (scored.batcher.done.texts, told) == (2, [(1, 0), (1, 0)])
    with pytest.raises(KeyError):
        await scored.classify([Query("unheard")])
    assert scored.batcher.done.failed == 1


async def test_a_model_of_one_thread_is_asked_on_no_other_however_quick_it_is() -> None:
    table = Table({"a": 0.5}, {"quick": [0.9]})
    await ScoredClassifier(table).classify([Query("quick")])
    assert table.threads == {"lora-router-test"}


def test_the_best_of_those_that_reach_their_threshold_is_sure() -> None:
    table = Table({"a": 0.6, "b": 0.3, "c": 0.3}, {"x": [0.55, 0.4, 0.35], "y": [0.7, 0.4, 0.9]})
    scored = ScoredClassifier(table)
    first = one(scored, "x")
    assert (first.category, first.accepted, first.threshold) == ("b", True, 0.3)
    assert first.score == pytest.approx(0.4)
    assert one(scored, "y").category == "c"


def test_when_none_reaches_its_threshold_the_best_is_named_and_not_sure() -> None:
    found = one(ScoredClassifier(Table({"a": 0.6, "b": 0.6}, {"x": [0.55, 0.4]})), "x")
    assert (found.category, found.accepted, found.threshold, found.scale) == ("a", False, 0.6, "probability")
    assert found.scores == {"a": 0.55, "b": 0.4}


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.6, 0.7, 1.0])
def test_a_score_that_is_just_the_threshold_reaches_it(threshold: float) -> None:
    assert one(ScoredClassifier(Table({"a": threshold}, {"x": [threshold]})), "x").accepted


def test_of_equal_scores_the_first_listed_wins() -> None:
    assert one(ScoredClassifier(Table({"a": 0.5, "b": 0.5}, {"x": [0.5, 0.5]})), "x").category == "a"


def test_a_category_with_several_rules_has_the_score_of_the_one_that_counts() -> None:
    table = Table([("a", 0.9), ("b", 0.5), ("a", 0.2)], {"x": [0.8, 0.1, 0.3], "y": [0.8, 0.1, 0.1]})
    found = one(ScoredClassifier(table), "x")
    assert (found.scores, found.thresholds) == ({"a": 0.3, "b": 0.1}, {"a": 0.2, "b": 0.5})
    assert (found.category, found.score, found.accepted, found.threshold) == ("a", 0.3, True, 0.2)
    found = one(ScoredClassifier(table), "y")
    assert (found.scores, found.thresholds) == ({"a": 0.8, "b": 0.1}, {"a": 0.9, "b": 0.5})
    assert not found.accepted


def test_what_is_shown_is_what_was_decided_on() -> None:
    found = one(ScoredClassifier(Table({"a": 0.6}, {"x": [0.59996]})), "x")
    assert (found.score, found.accepted) == (0.6, True)


def test_a_negative_similarity_is_shown_as_it_is() -> None:
    found = one(ScoredClassifier(Table({"a": 0.6, "b": 0.6}, {"x": [-0.2, -0.4]})), "x")
    assert (found.category, found.scores) == ("a", {"a": -0.2, "b": -0.4})


def test_the_windows_of_a_long_text_count_alike_and_the_evidence_is_of_the_window_that_spoke() -> None:
    table = Table({"a": 0.6, "b": 0.6}, {"head": [0.9, 0.1], "tail": [0.4, 0.6]})
    found = one(ScoredClassifier(table), "tail|head")
    assert found.score == pytest.approx(0.65)
    assert found.scores == {"a": 0.65, "b": 0.35}
    assert (found.accepted, found.evidence) == (True, {"window": "head"})


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
async def test_a_text_without_words_is_never_sure_and_never_scored(text: str) -> None:
    table = Table({"a": 0.0}, {})
    (found,) = await ScoredClassifier(table).classify([Query(text)])
    assert found == Classification(None, 0.0, {}, "probability", 0.0, False)
    assert not table.threads


def test_texts_are_decided_together_as_they_are_alone() -> None:
    rows = {"a1": [0.9, 0.1], "a2": [0.3, 0.5], "b": [0.2, 0.8], "c": [0.5, 0.5]}
    scored = ScoredClassifier(Table({"a": 0.5, "b": 0.5}, rows))
    texts = ["a1|a2", "b", "c", "b|c|a1"]
    assert scored.decide(texts) == [one(scored, text) for text in texts]


def test_a_warm_up_measures_what_a_batch_takes() -> None:
    scored = ScoredClassifier(Table({"a": 0.5}, {"x": [0.9]}))
    scored.warm_up("x")
    assert 0 < scored.lone_s < 1
    assert scored.batcher.cost.overhead_s > 0


def test_half_an_emoji_does_not_reach_a_tokenizer() -> None:
    table = Table({"a": 0.5}, {"my ? hurts": [0.7]})
    assert one(ScoredClassifier(table), "my \ud83d hurts").accepted


async def test_queries_are_answered_in_order_on_the_workers_thread() -> None:
    table = Table({"a": 0.5, "b": 0.5}, {"x": [0.9, 0.1], "y": [0.1, 0.9]})
    scored = ScoredClassifier(table)
    found = await scored.classify([Query("x"), Query("y"), Query(""), Query("x")])
    assert [one.category for one in found] == ["a", "b", None, "a"]
    assert table.threads == {"lora-router-test"}
    assert (scored.method, scored.fingerprint, scored.reads) == ("domain", "table 1", {"text"})


def test_no_pass_has_more_windows_than_a_batch_has_texts() -> None:
    rows = {str(number): [number / 1000] for number in range(200)}
    table = Table({"a": 0.0}, rows)
    passes: list[int] = []
    score = table.score

    def counted(texts: Sequence[str]) -> Scores:
        passes.append(len(texts))
        return score(texts)

    table.score = counted  # pyright: ignore[reportAttributeAccessIssue]
    found = ScoredClassifier(table).decide(
        ["|".join(str(number) for number in range(start, start + 4)) for start in range(0, 200, 4)]
    )
    assert max(passes) <= 64 and sum(passes) == 200
    assert [one.score for one in found] == pytest.approx([(start + 1.5) / 1000 for start in range(0, 200, 4)])
    assert [one.evidence["window"] for one in found] == [str(start + 3) for start in range(0, 200, 4)]
