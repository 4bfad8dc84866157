"""From scores to thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from vllm_lora_router.classifiers.thresholds import choose
from vllm_lora_router.tools.calibrate.choose import answered, confident, for_precision, for_share
from vllm_lora_router.tools.calibrate.scored import Knob, Scored, too_few
from vllm_lora_router.tools.statistics import wilson

NAMES = ("legal", "medical", "coding")


def scored(
    values: Sequence[Sequence[float]],
    labels: Sequence[str | None] | None,
    names: Sequence[str] = NAMES,
    *,
    together: bool = False,
    old: float = 0.5,
) -> Scored:
    """Scores of one column a name, with a threshold each, or one `together`."""
    columns = [tuple(range(len(names)))] if together else [(place,) for place in range(len(names))]
    knobs = tuple(Knob(("t", place), own, old) for place, own in enumerate(columns))
    right = None if labels is None else np.array([[label == name for name in names] for label in labels])
    counts = {name: sum(label == name for label in labels or ()) for name in names}
    return Scored("test", tuple(names), np.array(values, dtype=float), right, counts, knobs)


def alone(scores: Sequence[float], right: Sequence[bool], **more: float) -> Scored:
    return scored([[score] for score in scores], ["legal" if one else None for one in right], ("legal",), **more)


# Right at 0.99, 0.98, ..., 0.60, then every second is wrong.
SCORES = [round(0.99 - place / 100, 2) for place in range(80)]
RIGHT = [place < 40 or place % 2 == 0 for place in range(80)]


@pytest.mark.parametrize("wanted", [1.0, 0.95, 0.9, 0.8, 0.5])
def test_the_threshold_is_the_lowest_that_is_precise_enough(wanted: float) -> None:
    one = alone(SCORES, RIGHT)
    found = for_precision(one, wanted)
    (threshold,) = found.thresholds
    (reached,), _ = answered(one, [threshold])
    assert reached.precision is not None and reached.precision.value >= wanted
    for lower in (score for score in SCORES if score < threshold):
        (below,), _ = answered(one, [lower])
        assert below.precision is not None and below.precision.value < wanted
    assert found.why_not == (None,)


def test_a_confident_threshold_has_the_precision_at_the_lower_end_of_its_interval() -> None:
    one = alone(SCORES, RIGHT)
    (sure,), (plain,) = for_precision(one, 0.85, confident).thresholds, for_precision(one, 0.85).thresholds
    assert sure > plain
    (reached,), _ = answered(one, [sure])
    assert reached.precision is not None
    assert wilson(round(reached.precision.value * reached.prompts), reached.prompts).low >= 0.85


def test_where_no_threshold_is_precise_the_old_one_stays_and_the_best_is_named() -> None:
    found = for_precision(alone(SCORES, [place % 2 == 0 for place in range(80)], old=0.61), 0.9)
    assert found.thresholds == (0.61,)
    assert found.why_not == ("no threshold has a precision of 0.9: the best is 0.5455, at 0.89 (11 prompts)",)


def test_one_prompt_that_is_right_is_no_precision() -> None:
    lucky = [place == 0 or 30 < place < 60 for place in range(80)]
    found = for_precision(alone(SCORES, lucky), 0.99)
    assert found.why_not[0] is not None and found.why_not[0].startswith("no threshold has a precision of 0.99")


def test_equal_scores_are_answered_together() -> None:
    found = for_precision(alone([0.9] * 20 + [0.8] * 20, [True] * 20 + [True] + [False] * 19), 0.95)
    assert found.thresholds == (0.9,)


def test_no_threshold_is_below_zero_or_above_one() -> None:
    assert for_precision(alone([0.3] * 20 + [-0.2] * 20, [True] * 40), 0.95).thresholds == (0.3,)
    assert for_share(alone([-0.2] * 40, [True] * 40), 0.5).thresholds == (0.0,)
    assert for_share(alone([1.0000001] * 40, [True] * 40), 0.5).thresholds == (1.0,)


def test_a_category_with_few_prompts_keeps_its_threshold_and_says_how_many_there_are() -> None:
    found = for_precision(alone([0.9] * 40, [True] * 7 + [False] * 33), 0.5)
    assert found.thresholds == (0.5,)
    assert found.why_not == ("7 prompts of legal are labelled, and 20 are needed",)
    few = scored([[0.9, 0.1, 0.1]] * 25, ["legal"] * 25)
    assert too_few(few) == ["medical (0)", "coding (0)"]


def random_scores(count: int = 400, seed: int = 4) -> tuple[list[list[float]], list[str | None]]:
    chance = Random(seed)
    values, labels = list[list[float]](), list[str | None]()
    for _ in range(count):
        label = chance.choice([*NAMES, None])
        values.append(
            [round(chance.betavariate(5, 3) if name == label else chance.betavariate(3, 5), 4) for name in NAMES]
        )
        labels.append(label)
    return values, labels


def routed(values: Sequence[Sequence[float]], thresholds: Sequence[float]) -> list[str | None]:
    """What the classifier itself says."""
    limits = dict(zip(NAMES, thresholds, strict=True))
    found = [choose(dict(zip(NAMES, row, strict=True)), limits) for row in values]
    return [one.category if one.sure else None for one in found]


def test_what_is_counted_as_answered_is_what_the_classifier_answers() -> None:
    values, labels = random_scores()
    for thresholds in ([0.5, 0.5, 0.5], [0.2, 0.9, 0.4], [1.0, 0.0, 0.3]):
        each, all_of_them = answered(scored(values, labels), thresholds)
        said = routed(values, thresholds)
        assert [one.prompts for one in each] == [said.count(name) for name in NAMES]
        hits = [a == b for a, b in zip(said, labels, strict=True) if a is not None]
        assert all_of_them.precision is not None
        assert (all_of_them.prompts, all_of_them.precision.value) == (len(hits), pytest.approx(np.mean(hits)))


@pytest.mark.parametrize(("seed", "wanted"), [(4, 0.8), (0, 0.7), (3, 0.7), (7, 0.7)])
def test_thresholds_that_depend_on_each_other_are_precise_together(seed: int, wanted: float) -> None:
    values, labels = random_scores(seed=seed)
    one = scored(values, labels)
    found = for_precision(one, wanted)
    assert found.why_not == (None, None, None)
    each, all_of_them = answered(one, found.thresholds)
    assert all(reached.precision is not None and reached.precision.value >= wanted for reached in (*each, all_of_them))
    # Each is the lowest, the others being as they are.
    for place, name in enumerate(NAMES):
        scores = [row[place] for row in values if row[place] < found.thresholds[place]]
        for lower in sorted(scores)[-50:]:
            reached, _ = answered(one, [*found.thresholds[:place], lower, *found.thresholds[place + 1 :]])
            own = reached[place]
            more = own.prompts > each[place].prompts  # else a better one answers the prompt with that score
            assert not more or (own.precision is not None and own.precision.value < wanted), name


def test_one_threshold_of_all_categories_goes_by_the_best() -> None:
    values, labels = random_scores()
    one = scored(values, labels, together=True)
    (threshold,) = for_precision(one, 0.8).thresholds
    said = routed(values, [threshold] * 3)
    hits = [a == b for a, b in zip(said, labels, strict=True) if a is not None]
    (reached,), _ = answered(one, [threshold])
    assert reached.precision is not None and reached.precision.value == pytest.approx(np.mean(hits))
    assert reached.precision.value >= 0.8


@pytest.mark.parametrize("wanted", [0.25, 0.8, 1.0])
@pytest.mark.parametrize("together", [True, False])
def test_a_wanted_share_is_answered_with_the_highest_thresholds_that_do(wanted: float, together: bool) -> None:
    values, _ = random_scores()
    one = scored(values, None, together=together)
    found = for_share(one, wanted)
    _, all_of_them = answered(one, found.thresholds)
    assert wanted <= all_of_them.prompts / 400 < wanted + 0.1
    assert all_of_them.precision is None
    if together:
        (_,), higher = answered(one, [found.thresholds[0] + 0.0001])
        assert higher.prompts < wanted * 400


def test_what_suits_few_prompts_best_keeps_its_threshold() -> None:
    found = for_share(scored([[0.9, 0.1, 0.2]] * 30 + [[0.1, 0.9, 0.2]] * 5, None), 0.5)
    assert found.thresholds == (0.9, 0.5, 0.5)
    assert found.why_not == (
        None,
        "it suits 5 prompts best, and 20 are needed",
        "it suits 0 prompts best, and 20 are needed",
    )


def test_scores_that_are_not_known_are_answered_by_nobody() -> None:
    one = scored([[0.9, np.nan, np.nan]] * 20 + [[np.nan] * 3] * 20, None)
    assert for_share(one, 1.0).thresholds == (0.9, 0.5, 0.5)
    each, _ = answered(one, [0.0, 0.0, 0.0])
    assert [reached.prompts for reached in each] == [20, 0, 0]
