"""Metrics of a set of outcomes: accuracy, coverage, precision, calibration and confusion."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_lora_router.tools.evaluate.calibration_error import (
    OutOfScopeDetection,
    Reliability,
    out_of_scope_detection,
    reliability,
)
from vllm_lora_router.tools.evaluate.confusion import (
    CategoryMetrics,
    Confusion,
    category_metrics,
    confusion_matrix,
    macro_f1,
)
from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.statistics import Estimate, proportion


@dataclass(frozen=True, slots=True)
class MethodResult:
    """The prompts that one method decided."""

    method: str | None  # None: no method accepted a category
    prompts: int
    accuracy: Estimate | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics; None where no prompt contributes."""

    accuracy: Estimate  # an out-of-scope prompt is correct if no method accepts a category
    in_scope: Estimate | None  # accuracy in scope
    out_of_scope: Estimate | None  # accuracy out of scope
    best_guess: Estimate | None  # in scope: the guess is the label, accepted or not
    coverage: Estimate | None  # in scope: a method accepted a category
    precision: Estimate | None  # of accepted prompts; out-of-scope prompts count as wrong
    macro_f1: Estimate | None  # over the categories that have prompts
    reliability: Reliability | None
    detection: OutOfScopeDetection | None
    categories: list[CategoryMetrics]
    confusion: Confusion
    methods: list[MethodResult]


def compute_metrics(outcomes: Sequence[Outcome], seed: int = 0) -> Metrics:
    """Return the metrics of outcomes. Needs scikit-learn.

    Raises:
        ValueError: There is no outcome.
    """
    if not outcomes:
        raise ValueError("there are no outcomes to measure")
    in_scope = [outcome for outcome in outcomes if outcome.in_scope]
    accuracy, confusion = proportion(outcome.correct for outcome in outcomes), confusion_matrix(outcomes)
    assert accuracy is not None
    return Metrics(
        accuracy=accuracy,
        in_scope=proportion(outcome.correct for outcome in in_scope),
        out_of_scope=proportion(outcome.correct for outcome in outcomes if not outcome.in_scope),
        best_guess=proportion(outcome.guess_correct for outcome in in_scope),
        coverage=proportion(outcome.accepted for outcome in in_scope),
        precision=proportion(outcome.in_scope and outcome.correct for outcome in outcomes if outcome.accepted),
        macro_f1=macro_f1(confusion, seed),
        reliability=reliability([outcome for outcome in in_scope if outcome.scale == "probability"], seed),
        detection=out_of_scope_detection(outcomes, seed),
        categories=category_metrics(outcomes, confusion),
        confusion=confusion,
        methods=_by_method(outcomes),
    )


def _by_method(outcomes: Sequence[Outcome]) -> list[MethodResult]:
    methods = Counter(outcome.method for outcome in outcomes)
    return [
        MethodResult(method, count, proportion(outcome.correct for outcome in outcomes if outcome.method == method))
        for method, count in methods.most_common()
    ]
