"""The figures of answers, held against scikit-learn's and against those made by hand."""

from __future__ import annotations

import dataclasses
import json
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn import metrics as reference

from vllm_lora_router.tools.evaluate.calibration_error import BINS, out_of_scope, reliability, weighted_auroc
from vllm_lora_router.tools.evaluate.confusion import by_category, confused, macro_f1
from vllm_lora_router.tools.evaluate.metrics import figures

from .conftest import answer

if TYPE_CHECKING:
    from vllm_lora_router.tools.evaluate.outcome import Answer

NAMES = ["coding", "legal", "medical"]


def random_answers(count: int, seed: int = 1, *, outside: float = 0.2) -> list[Answer]:
    """Answers that are right two times in three, the more often the higher their probability."""
    chance = Random(seed)
    found = []
    for number in range(count):
        label = None if chance.random() < outside else chance.choice(NAMES)
        score = round(chance.random() * (0.6 if label is None else 1.0), 2)
        guess = label if label and chance.random() < 0.3 + score / 2 else chance.choice(NAMES)
        found.append(answer(label, guess if score > 0.4 else None, score, guess=guess, text=f"{number}"))
    return found


def test_shares_are_counted_over_the_prompts_that_they_are_of() -> None:
    found = figures(
        [
            answer("legal", "legal"),
            answer("legal", "medical"),
            answer("legal", None, guess="legal"),
            answer("medical", "medical"),
            answer(None, None, guess="legal"),
            answer(None, "legal"),
        ]
    )
    shares = (found.accuracy, found.in_scope, found.left_alone, found.guess, found.coverage, found.precision)
    assert [figure and (figure.value, figure.of) for figure in shares] == [
        (3 / 6, 6),
        (2 / 4, 4),
        (1 / 2, 2),
        (3 / 4, 4),
        (3 / 4, 4),
        (2 / 4, 4),  # what is out of scope and was let through is wrong
    ]
    assert all(figure is not None and 0 <= figure.low < figure.value < figure.high <= 1 for figure in shares)
    decided = {one.method: (one.prompts, one.right and one.right.value) for one in found.decided}
    assert decided == {"domain": (4, 0.5), None: (2, 0.5)}


def test_the_confusion_matrix_has_a_place_for_no_category() -> None:
    confusion = confused([answer("legal", "medical"), answer("legal", None), answer(None, "legal"), answer(None, None)])
    assert confusion.names == ["legal", "medical", None]
    assert confusion.counts == [[0, 1, 1], [0, 0, 0], [1, 0, 1]]


def test_what_the_fallback_category_takes_from_out_of_scope_is_not_confused() -> None:
    taken = answer(None, None, chosen="general", right=True)
    missed = answer("legal", None, chosen="general", right=False)
    confusion = confused([taken, missed])
    assert confusion.names == ["general", "legal", None]
    assert confusion.counts == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_scores_of_categories_are_scikit_learns() -> None:
    answers = random_answers(300)
    rows = {row.name: row for row in by_category(answers, confused(answers))}
    labels, chosen = [str(one.label) for one in answers], [str(one.chosen) for one in answers]
    report = reference.classification_report(labels, chosen, output_dict=True)
    for name in NAMES:
        assert (rows[name].precision, rows[name].recall, rows[name].f1, rows[name].prompts) == pytest.approx(
            tuple(report[name].values())
        )
    f1 = macro_f1(confused(answers))
    assert f1 is not None
    assert f1.value == pytest.approx(reference.f1_score(labels, chosen, labels=NAMES, average="macro"))


def test_macro_f1_varies_as_it_does_when_prompts_are_drawn_again() -> None:
    answers = random_answers(300)
    f1 = macro_f1(confused(answers))
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(200):
        some = [answers[place] for place in rng.integers(len(answers), size=len(answers))]
        labels, chosen = [str(one.label) for one in some], [str(one.chosen) for one in some]
        drawn.append(reference.f1_score(labels, chosen, labels=NAMES, average="macro"))
    assert f1 is not None
    assert (f1.low, f1.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.02)


def test_the_calibration_error_is_what_the_bins_say() -> None:
    answers = [answer("legal", "legal", 0.95)] * 8 + [answer("legal", "medical", 0.95)] * 2
    answers += [answer("legal", None, 0.2, guess="legal")] * 1 + [answer("legal", None, 0.2, guess="medical")] * 4
    found = reliability(answers)
    assert found is not None
    assert (found.error.value, found.error.of) == (pytest.approx((10 * 0.15 + 5 * 0.0) / 15), 15)
    assert [(one.prompts, one.right, round(one.probability, 4)) for one in found.bins] == [
        (5, 0.2, 0.2),
        (10, 0.8, 0.95),
    ]
    assert found.bins[1].low == pytest.approx(14 / BINS)
    certain = reliability([answer("legal", "legal", 1.0)])
    assert certain is not None and (certain.error.value, certain.bins[0].high) == (0.0, 1.0)


def test_probabilities_alone_are_asked_whether_they_are_right_and_of_prompts_in_scope() -> None:
    rule = answer("legal", "legal", 1.0, scale="rule", method="keyword")
    assert figures([rule, answer(None, "legal", 0.9)]).reliability is None
    found = figures([rule, answer(None, "legal", 0.9), answer("legal", "legal", 0.9)]).reliability
    assert found is not None and found.error.of == 1


def test_out_of_scope_is_told_by_the_lower_score_as_scikit_learn_has_it() -> None:
    answers = random_answers(300)
    found = out_of_scope(answers)
    outside, scores = [not one.in_scope for one in answers], [-one.score for one in answers]
    assert found is not None
    assert found.auroc.value == pytest.approx(reference.roc_auc_score(outside, scores))
    assert found.average_precision == pytest.approx(reference.average_precision_score(outside, scores))
    assert 0.6 < found.auroc.low < found.auroc.value < found.auroc.high < 0.95
    assert out_of_scope([one for one in answers if one.in_scope]) is None


def test_the_area_under_a_resample_is_scikit_learns_ties_among_the_scores_or_not() -> None:
    rng = np.random.default_rng(2)
    positive, scores = rng.random(200) < 0.3, rng.integers(20, size=200) / 20
    auroc = weighted_auroc(positive, scores)
    for _ in range(20):
        counts = np.bincount(rng.integers(200, size=200), minlength=200)
        assert auroc(counts) == pytest.approx(reference.roc_auc_score(positive, scores, sample_weight=counts))
    assert np.isnan(auroc(np.where(positive, 1, 0)))


def test_figures_are_the_same_for_the_same_seed_and_plain_numbers() -> None:
    answers = random_answers(80)
    found = [json.dumps(dataclasses.asdict(figures(answers, seed))) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_measured_is_left_out() -> None:
    outside = figures([answer(None, None)])
    assert (outside.in_scope, outside.macro_f1, outside.guess, outside.out_of_scope) == (None, None, None, None)
    assert outside.precision is None and outside.left_alone is not None and outside.left_alone.value == 1
    with pytest.raises(ValueError, match="no answers"):
        figures([])
