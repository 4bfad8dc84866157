"""Calibration error and detection of out-of-scope prompts, compared with scikit-learn and with hand-made figures."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn import metrics as reference

from vllm_lora_router.tools.evaluate.calibration_error import BINS, out_of_scope_detection, reliability, weighted_auroc

from .conftest import outcome, random_outcomes


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    outcomes = [outcome("legal", "legal", 0.95)] * 8 + [outcome("legal", "medical", 0.95)] * 2
    outcomes += [outcome("legal", None, 0.2, guess="legal")] * 1 + [outcome("legal", None, 0.2, guess="medical")] * 4
    result = reliability(outcomes)
    assert result is not None
    assert (result.error.value, result.error.n) == (pytest.approx((10 * 0.15 + 5 * 0.0) / 15), 15)
    assert [(row.prompts, row.accuracy, round(row.probability, 4)) for row in result.bins] == [
        (5, 0.2, 0.2),
        (10, 0.8, 0.95),
    ]
    assert result.bins[1].low == pytest.approx(14 / BINS)
    certain = reliability([outcome("legal", "legal", 1.0)])
    assert certain is not None and (certain.error.value, certain.bins[0].high) == (0.0, 1.0)


def test_out_of_scope_detection_matches_scikit_learn() -> None:
    outcomes = random_outcomes(300)
    detection = out_of_scope_detection(outcomes)
    outside, scores = [not item.in_scope for item in outcomes], [-item.score for item in outcomes]
    assert detection is not None
    assert detection.auroc.value == pytest.approx(reference.roc_auc_score(outside, scores))
    assert detection.average_precision == pytest.approx(reference.average_precision_score(outside, scores))
    assert 0.6 < detection.auroc.low < detection.auroc.value < detection.auroc.high < 0.95
    assert out_of_scope_detection([item for item in outcomes if item.in_scope]) is None


def test_weighted_auroc_matches_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(2)
    positive, scores = rng.random(200) < 0.3, rng.integers(20, size=200) / 20
    auroc = weighted_auroc(positive, scores)
    for _ in range(20):
        counts = np.bincount(rng.integers(200, size=200), minlength=200)
        assert auroc(counts) == pytest.approx(reference.roc_auc_score(positive, scores, sample_weight=counts))
    assert np.isnan(auroc(np.where(positive, 1, 0)))
