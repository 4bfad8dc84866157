"""Choice of thresholds from scores."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from vllm_lora_router.classifiers.thresholds import select_category
from vllm_lora_router.tools.calibrate.choose import (
    choose_for_precision,
    choose_for_share,
    count_accepted,
    precision_lower_bound,
)
from vllm_lora_router.tools.calibrate.scores import MethodScores, Threshold, rarely_labelled
from vllm_lora_router.tools.statistics import wilson

NAMES: tuple[str, ...] = ("legal", "medical", "coding")


def method_scores(
    values: Sequence[Sequence[float]],
    labels: Sequence[str | None] | None,
    names: Sequence[str] = NAMES,
    *,
    together: bool = False,
    old: float = 0.5,
) -> MethodScores:
    """Return scores with a column and a threshold for each name, or with one threshold `together`."""
    columns = [tuple(range(len(names)))] if together else [(index,) for index in range(len(names))]
    thresholds = tuple(Threshold(("t", index), of_threshold, old) for index, of_threshold in enumerate(columns))
    correct = None if labels is None else np.array([[label == name for name in names] for label in labels])
    counts = {name: sum(label == name for label in labels or ()) for name in names}
    return MethodScores("test", tuple(names), np.array(values, dtype=float), correct, counts, thresholds)


def single_column(scores: Sequence[float], correct: Sequence[bool], *, old: float = 0.5) -> MethodScores:
    return method_scores(
        [[score] for score in scores], ["legal" if is_correct else None for is_correct in correct], ("legal",), old=old
    )


# Correct at 0.99, 0.98, ..., 0.60; below, every second prompt is wrong.
SCORES = [round(0.99 - index / 100, 2) for index in range(80)]
CORRECT = [index < 40 or index % 2 == 0 for index in range(80)]


@pytest.mark.parametrize("minimum", [1.0, 0.95, 0.9, 0.8, 0.5])
def test_threshold_is_the_lowest_with_the_minimum_precision(minimum: float) -> None:
    scores = single_column(SCORES, CORRECT)
    choice = choose_for_precision(scores, minimum)
    (threshold,) = choice.values
    (accepted,), _ = count_accepted(scores, [threshold])
    assert accepted.precision is not None and accepted.precision.value >= minimum
    for lower in (score for score in SCORES if score < threshold):
        (below,), _ = count_accepted(scores, [lower])
        assert below.precision is not None and below.precision.value < minimum
    assert choice.unchanged == (None,)


def test_precision_lower_bound_requires_the_minimum_of_the_intervals_lower_end() -> None:
    scores = single_column(SCORES, CORRECT)
    (observed,) = choose_for_precision(scores, 0.85).values
    (lower_bound,) = choose_for_precision(scores, 0.85, precision_lower_bound).values
    assert lower_bound > observed
    (accepted,), _ = count_accepted(scores, [lower_bound])
    assert accepted.precision is not None
    assert wilson(round(accepted.precision.value * accepted.prompts), accepted.prompts).low >= 0.85


def test_threshold_without_minimum_precision_stays_and_the_highest_precision_is_reported() -> None:
    choice = choose_for_precision(single_column(SCORES, [index % 2 == 0 for index in range(80)], old=0.61), 0.9)
    assert choice.values == (0.61,)
    assert choice.unchanged == ("no threshold reaches a precision of 0.9: the highest is 0.5455 at 0.89 (11 prompts)",)


def test_precision_of_fewer_than_ten_prompts_is_ignored() -> None:
    correct = [index == 0 or 30 < index < 60 for index in range(80)]
    choice = choose_for_precision(single_column(SCORES, correct), 0.99)
    assert choice.unchanged[0] is not None and choice.unchanged[0].startswith(
        "no threshold reaches a precision of 0.99"
    )


def test_equal_scores_are_accepted_together() -> None:
    choice = choose_for_precision(single_column([0.9] * 20 + [0.8] * 20, [True] * 20 + [True] + [False] * 19), 0.95)
    assert choice.values == (0.9,)


def test_thresholds_are_between_0_and_1() -> None:
    assert choose_for_precision(single_column([0.3] * 20 + [-0.2] * 20, [True] * 40), 0.95).values == (0.3,)
    assert choose_for_share(single_column([-0.2] * 40, [True] * 40), 0.5).values == (0.0,)
    assert choose_for_share(single_column([1.0000001] * 40, [True] * 40), 0.5).values == (1.0,)


def test_category_with_few_labels_keeps_its_threshold() -> None:
    choice = choose_for_precision(single_column([0.9] * 40, [True] * 7 + [False] * 33), 0.5)
    assert choice.values == (0.5,)
    assert choice.unchanged == ("7 prompts are labelled legal, and 20 are needed",)
    rare = method_scores([[0.9, 0.1, 0.1]] * 25, ["legal"] * 25)
    assert rarely_labelled(rare) == ["medical (0)", "coding (0)"]


def random_scores(count: int = 400, seed: int = 4) -> tuple[list[list[float]], list[str | None]]:
    random = Random(seed)
    values, labels = list[list[float]](), list[str | None]()
    for _ in range(count):
        label = random.choice([*NAMES, None])
        values.append(
            [round(random.betavariate(5, 3) if name == label else random.betavariate(3, 5), 4) for name in NAMES]
        )
        labels.append(label)
    return values, labels


def classify(values: Sequence[Sequence[float]], thresholds: Sequence[float]) -> list[str | None]:
    """Return the categories that the classifier accepts."""
    limits = dict(zip(NAMES, thresholds, strict=True))
    selected = [select_category(dict(zip(NAMES, row, strict=True)), limits) for row in values]
    return [category.category if category.accepted else None for category in selected]


def test_counts_match_the_classifiers_decisions() -> None:
    values, labels = random_scores()
    for thresholds in ([0.5, 0.5, 0.5], [0.2, 0.9, 0.4], [1.0, 0.0, 0.3]):
        each, together = count_accepted(method_scores(values, labels), thresholds)
        categories = classify(values, thresholds)
        assert [accepted.prompts for accepted in each] == [categories.count(name) for name in NAMES]
        hits = [a == b for a, b in zip(categories, labels, strict=True) if a is not None]
        assert together.precision is not None
        assert (together.prompts, together.precision.value) == (len(hits), pytest.approx(np.mean(hits)))


@pytest.mark.parametrize(("seed", "minimum"), [(4, 0.8), (0, 0.7), (3, 0.7), (7, 0.7)])
def test_dependent_thresholds_have_the_minimum_precision_together(seed: int, minimum: float) -> None:
    values, labels = random_scores(seed=seed)
    scores = method_scores(values, labels)
    choice = choose_for_precision(scores, minimum)
    assert choice.unchanged == (None, None, None)
    each, together = count_accepted(scores, choice.values)
    precisions = [accepted.precision for accepted in (*each, together)]
    assert all(precision is not None and precision.value >= minimum for precision in precisions)
    # Each threshold is the lowest one while the others stay unchanged.
    for index, name in enumerate(NAMES):
        lower_scores = [row[index] for row in values if row[index] < choice.values[index]]
        for lower in sorted(lower_scores)[-50:]:
            accepted, _ = count_accepted(scores, [*choice.values[:index], lower, *choice.values[index + 1 :]])
            precision = accepted[index].precision
            # Without more prompts, another category has a higher score for the prompt with this score.
            has_more = accepted[index].prompts > each[index].prompts
            assert not has_more or (precision is not None and precision.value < minimum), name


def test_common_threshold_applies_to_the_best_score() -> None:
    values, labels = random_scores()
    scores = method_scores(values, labels, together=True)
    (threshold,) = choose_for_precision(scores, 0.8).values
    categories = classify(values, [threshold] * 3)
    hits = [a == b for a, b in zip(categories, labels, strict=True) if a is not None]
    (accepted,), _ = count_accepted(scores, [threshold])
    assert accepted.precision is not None and accepted.precision.value == pytest.approx(np.mean(hits))
    assert accepted.precision.value >= 0.8


@pytest.mark.parametrize("share", [0.25, 0.8, 1.0])
@pytest.mark.parametrize("together", [True, False])
def test_share_is_accepted_by_the_highest_possible_thresholds(share: float, together: bool) -> None:
    values, _ = random_scores()
    scores = method_scores(values, None, together=together)
    choice = choose_for_share(scores, share)
    _, accepted = count_accepted(scores, choice.values)
    assert share <= accepted.prompts / 400 < share + 0.1
    assert accepted.precision is None
    if together:
        (_,), higher = count_accepted(scores, [choice.values[0] + 0.0001])
        assert higher.prompts < share * 400


def test_category_with_few_best_scores_keeps_its_threshold() -> None:
    choice = choose_for_share(method_scores([[0.9, 0.1, 0.2]] * 30 + [[0.1, 0.9, 0.2]] * 5, None), 0.5)
    assert choice.values == (0.9, 0.5, 0.5)
    assert choice.unchanged == (
        None,
        "5 prompts have their best score here, and 20 are needed",
        "0 prompts have their best score here, and 20 are needed",
    )


def test_unknown_scores_are_not_accepted() -> None:
    scores = method_scores([[0.9, np.nan, np.nan]] * 20 + [[np.nan] * 3] * 20, None)
    assert choose_for_share(scores, 1.0).values == (0.9, 0.5, 0.5)
    each, _ = count_accepted(scores, [0.0, 0.0, 0.0])
    assert [accepted.prompts for accepted in each] == [20, 0, 0]
