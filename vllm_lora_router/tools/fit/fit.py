"""Fitting of a head: selection, calibration, thresholds and metrics, all on held-out predictions."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vllm_lora_router.classifiers.heads.calibration import Calibration, calibrate
from vllm_lora_router.classifiers.heads.few_shot import out_of_scope_weight
from vllm_lora_router.classifiers.heads.head import probabilities
from vllm_lora_router.classifiers.heads.kernel_ridge import LabelledEmbeddings
from vllm_lora_router.classifiers.heads.storage import PROBES, StoredHead
from vllm_lora_router.classifiers.thresholds import SCORE_DIGITS, select_category
from vllm_lora_router.tools.calibrate.choose import choose_for_precision, choose_for_share
from vllm_lora_router.tools.calibrate.scores import MethodScores, Threshold
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.metrics import Metrics, compute_metrics
from vllm_lora_router.tools.evaluate.outcome import Outcome
from vllm_lora_router.tools.fit.candidates import choose_points, head_candidates, output_names
from vllm_lora_router.tools.fit.cross_validation import (
    CrossValidation,
    cross_validate,
    most_accurate,
    scores_of_unseen_categories,
)
from vllm_lora_router.tools.progress import ReportProgress, no_progress

Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors, float32 [texts, dimensions]

DEFAULT_THRESHOLD = 0.5  # a category is accepted if it is more likely right than wrong
MIN_OUT_OF_SCOPE = 20  # with fewer out-of-scope examples, scores of unseen categories are used instead
BATCH_SIZE = 64  # texts


@dataclass(frozen=True)
class ThresholdGoal:
    """The goal of the thresholds; without one, every threshold is 0.5."""

    precision: float | None = None  # minimum precision among accepted prompts
    share: float | None = None  # share of the prompts of each category to accept


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted head and its metrics."""

    stored: StoredHead
    candidates: Sequence[CrossValidation]
    chosen: str
    metrics: Metrics  # on held-out predictions
    unreached: Mapping[str, str]  # category -> reason why no threshold reaches the goal


def fit(
    examples: Sequence[Example],
    encode: Encode,
    encoder: str,
    *,
    goal: ThresholdGoal | None = None,
    seed: int = 0,
    report_progress: ReportProgress = no_progress,
) -> FitResult:
    """Fit the head with the highest cross-validated accuracy, calibrate it and choose its thresholds.

    Args:
        encode: Encodes texts.
        encoder: Name of the encoder in a configuration.
        goal: Goal of the thresholds.
        seed: Seed of folds, samples and resamples.

    Raises:
        DataError: All examples are of one category, or a category has a single example.
    """
    check_enough(examples)
    data = embed_labelled(examples, encode, report_progress)
    candidates = cross_validate(data, head_candidates(), seed, report_progress)
    chosen = most_accurate(candidates)
    calibration = _calibrate(data, chosen, seed, report_progress)
    report_progress("fitting", 0, 1)
    points = choose_points(data, seed)
    head = replace(chosen.candidate.fit(data, points), scale=calibration.scale, none_score=calibration.none_score)
    report_progress("fitting", 1, 1)
    held_out = np.round(probabilities(chosen.scores, head.scale, head.none_score, head.membership), SCORE_DIGITS)
    thresholds, unreached = _choose_thresholds(examples, held_out, head.categories, goal or ThresholdGoal())
    outcomes = [
        _outcome(example, row, head.categories, thresholds) for example, row in zip(examples, held_out, strict=True)
    ]
    metrics = compute_metrics(outcomes, seed)
    metadata = {
        "chosen": chosen.candidate.name,
        "seed": seed,
        "examples": len(examples),
        "data_sha256": data_digest(examples),
        "held_out": _summary(metrics),
        "tried": {
            result.candidate.name: {"accuracy": round(result.accuracy, 4), "macro_f1": round(result.macro_f1, 4)}
            for result in candidates
        },
        "goal": {"precision": goal and goal.precision, "share": goal and goal.share},
    }
    stored = StoredHead(head, encoder, encode(PROBES), thresholds, metadata)
    return FitResult(stored, candidates, chosen.candidate.name, metrics, unreached)


def check_enough(examples: Sequence[Example]) -> None:
    """Check that there are examples of at least two categories, and at least two of each.

    Raises:
        DataError: There are not.
    """
    counts = Counter(example.category for example in examples if example.category is not None)
    if len(counts) < 2:
        only = f"all {sum(counts.values())} are of {next(iter(counts))!r}" if counts else "there are none"
        locations = [example.location for example in examples if example.location][:3]
        where = f" ({', '.join(locations)}, ...)" if locations else ""
        raise DataError([f"examples of at least two categories are needed, but {only}{where}"])
    single = {example.category: example.location for example in examples if counts.get(example.category or "") == 1}
    if single:
        raise DataError(
            [
                f"{location}: is the only example of {category!r}; add at least one more, better seven"
                for category, location in single.items()
            ]
        )


def embed_labelled(
    examples: Sequence[Example], encode: Encode, report_progress: ReportProgress = no_progress
) -> LabelledEmbeddings:
    """Encode examples; an output is an intent, or a category for examples without an intent."""
    labels = [(example.category, example.intent) for example in examples if example.category is not None]
    names, categories = output_names(labels)
    index = {pair: number for number, pair in enumerate(zip(categories, names, strict=True))}
    outputs = [
        -1 if example.category is None else index[example.category, example.intent or example.category]
        for example in examples
    ]
    order = sorted(range(len(examples)), key=lambda number: len(examples[number].text))
    rows: list[np.ndarray] = []
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        rows.append(encode([examples[number].text for number in batch]))
        report_progress("encoding", start + len(batch), len(order))
    return LabelledEmbeddings(np.concatenate(rows)[np.argsort(order)], np.array(outputs), names, categories)


def data_digest(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of texts and labels, which does not depend on their files."""
    lines = (json.dumps([example.text, example.category, example.intent], ensure_ascii=False) for example in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _calibrate(
    data: LabelledEmbeddings, chosen: CrossValidation, seed: int, report_progress: ReportProgress
) -> Calibration:
    """Calibrate on held-out scores; without enough out-of-scope examples, on scores of unseen categories too."""
    inside = data.labels >= 0
    scores, labels, weights = chosen.scores, data.labels, np.ones(len(data))
    if (~inside).sum() < MIN_OUT_OF_SCOPE:
        unseen = scores_of_unseen_categories(data, chosen.candidate, seed, report_progress)
        if len(unseen):
            scores = np.concatenate([scores[inside], unseen])
            labels = np.concatenate([labels[inside], np.full(len(unseen), -1)])
            weight = out_of_scope_weight(int(inside.sum()), len(unseen))
            weights = np.concatenate([np.ones(inside.sum()), np.full(len(unseen), weight)])
    return calibrate(scores, labels, data.membership, weights)


def _choose_thresholds(
    examples: Sequence[Example], held_out: np.ndarray, categories: Sequence[str], goal: ThresholdGoal
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the threshold of each category, and the reason for each category that keeps the default.

    Args:
        held_out: Held-out probabilities, [examples, categories].
    """
    if goal.precision is None and goal.share is None:
        return dict.fromkeys(categories, DEFAULT_THRESHOLD), {}
    correct = np.array([[example.category == category for category in categories] for example in examples])
    counts = Counter(example.category for example in examples if example.category is not None)
    thresholds = tuple(Threshold((name,), (column,), DEFAULT_THRESHOLD) for column, name in enumerate(categories))
    scores = MethodScores("head", tuple(categories), held_out, correct, counts, thresholds)
    if goal.share is not None:
        choice = choose_for_share(scores, goal.share)
    else:
        choice = choose_for_precision(scores, goal.precision or 0.0)
    unreached = {name: why for name, why in zip(categories, choice.unchanged, strict=True) if why is not None}
    return dict(zip(categories, choice.values, strict=True)), unreached


def _outcome(example: Example, row: np.ndarray, categories: Sequence[str], thresholds: Mapping[str, float]) -> Outcome:
    selected = select_category(dict(zip(categories, map(float, row), strict=True)), thresholds)
    accepted = selected.accepted
    return Outcome(
        text=example.text,
        label=example.category,
        location=example.location,
        chosen=selected.category if accepted else None,
        accepted=accepted,
        correct=(not accepted) if example.category is None else accepted and selected.category == example.category,
        method="embedding" if accepted else None,
        guess=selected.category,
        score=selected.score,
        scale="probability",
        guess_method="embedding",
        adapter=None,
        failure=None,
    )


def _summary(metrics: Metrics) -> dict[str, Any]:
    estimates = {
        "best_guess": metrics.best_guess,
        "coverage": metrics.coverage,
        "precision": metrics.precision,
        "macro_f1": metrics.macro_f1,
        "calibration_error": metrics.reliability and metrics.reliability.error,
        "out_of_scope_auroc": metrics.detection and metrics.detection.auroc,
    }
    return {
        name: [round(estimate.value, 4), round(estimate.low, 4), round(estimate.high, 4)]
        for name, estimate in estimates.items()
        if estimate
    }
