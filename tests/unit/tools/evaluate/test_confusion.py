"""The confusion matrix and its metrics, compared with scikit-learn."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn import metrics as reference

from vllm_lora_router.tools.evaluate.confusion import category_metrics, confusion_matrix, macro_f1

from .conftest import NAMES, outcome, random_outcomes


def test_confusion_matrix_has_a_row_and_column_for_no_category() -> None:
    confusion = confusion_matrix(
        [outcome("legal", "medical"), outcome("legal", None), outcome(None, "legal"), outcome(None, None)]
    )
    assert confusion.names == ["legal", "medical", None]
    assert confusion.counts == [[0, 1, 1], [0, 0, 0], [1, 0, 1]]


def test_out_of_scope_prompt_of_the_fallback_category_is_not_confused() -> None:
    correct = outcome(None, None, chosen="general", correct=True)
    wrong = outcome("legal", None, chosen="general", correct=False)
    confusion = confusion_matrix([correct, wrong])
    assert confusion.names == ["general", "legal", None]
    assert confusion.counts == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_category_metrics_match_scikit_learn() -> None:
    outcomes = random_outcomes(300)
    rows = {row.name: row for row in category_metrics(outcomes, confusion_matrix(outcomes))}
    labels, chosen = [str(item.label) for item in outcomes], [str(item.chosen) for item in outcomes]
    report: Any = reference.classification_report(labels, chosen, output_dict=True)
    for name in NAMES:
        row = (rows[name].precision, rows[name].recall, rows[name].f1, rows[name].prompts)
        assert row == pytest.approx(tuple(report[name].values()))
    f1 = macro_f1(confusion_matrix(outcomes))
    assert f1 is not None
    assert f1.value == pytest.approx(reference.f1_score(labels, chosen, labels=NAMES, average="macro"))


def test_macro_f1_interval_matches_resampled_prompts() -> None:
    outcomes = random_outcomes(300)
    f1 = macro_f1(confusion_matrix(outcomes))
    rng = np.random.default_rng(5)
    resampled = []
    for _ in range(200):
        subset = [outcomes[index] for index in rng.integers(len(outcomes), size=len(outcomes))]
        labels, chosen = [str(item.label) for item in subset], [str(item.chosen) for item in subset]
        resampled.append(reference.f1_score(labels, chosen, labels=NAMES, average="macro"))
    assert f1 is not None
    assert (f1.low, f1.high) == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=0.02)
