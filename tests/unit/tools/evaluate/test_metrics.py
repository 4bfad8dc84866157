"""Metrics of outcomes."""

import dataclasses
import json

import pytest

pytest.importorskip("sklearn")

from vllm_lora_router.tools.evaluate.metrics import compute_metrics

from .conftest import outcome, random_outcomes


def test_shares_are_of_the_right_prompts() -> None:
    metrics = compute_metrics(
        [
            outcome("legal", "legal"),
            outcome("legal", "medical"),
            outcome("legal", None, guess="legal"),
            outcome("medical", "medical"),
            outcome(None, None, guess="legal"),
            outcome(None, "legal"),
        ]
    )
    shares = (
        metrics.accuracy,
        metrics.in_scope,
        metrics.out_of_scope,
        metrics.best_guess,
        metrics.coverage,
        metrics.precision,
    )
    assert [share and (share.value, share.n) for share in shares] == [
        (3 / 6, 6),
        (2 / 4, 4),
        (1 / 2, 2),
        (3 / 4, 4),
        (3 / 4, 4),
        (2 / 4, 4),  # the accepted out-of-scope prompt is wrong
    ]
    assert all(share is not None and 0 <= share.low < share.value < share.high <= 1 for share in shares)
    methods = {result.method: (result.prompts, result.accuracy and result.accuracy.value) for result in metrics.methods}
    assert methods == {"domain": (4, 0.5), None: (2, 0.5)}


def test_calibration_is_measured_on_probabilities_of_in_scope_prompts() -> None:
    rule = outcome("legal", "legal", 1.0, scale="rule", method="keyword")
    assert compute_metrics([rule, outcome(None, "legal", 0.9)]).reliability is None
    reliability = compute_metrics([rule, outcome(None, "legal", 0.9), outcome("legal", "legal", 0.9)]).reliability
    assert reliability is not None and reliability.error.n == 1


def test_metrics_depend_on_the_seed_and_are_json_serialisable() -> None:
    outcomes = random_outcomes(80)
    serialised = [json.dumps(dataclasses.asdict(compute_metrics(outcomes, seed))) for seed in (3, 3, 4)]
    assert serialised[0] == serialised[1] != serialised[2]


def test_metrics_without_prompts_are_none() -> None:
    outside = compute_metrics([outcome(None, None)])
    assert (outside.in_scope, outside.macro_f1, outside.best_guess, outside.detection) == (None, None, None, None)
    assert outside.precision is None and outside.out_of_scope is not None and outside.out_of_scope.value == 1
    with pytest.raises(ValueError, match="no outcomes"):
        compute_metrics([])
