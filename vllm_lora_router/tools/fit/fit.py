"""From labelled prompts to a head: chosen, calibrated and measured by prompts that it did not see."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vllm_lora_router.classifiers.heads.calibration import Calibration, calibrate
from vllm_lora_router.classifiers.heads.few_shot import outside_weight
from vllm_lora_router.classifiers.heads.head import probabilities
from vllm_lora_router.classifiers.heads.kernel_ridge import Labelled
from vllm_lora_router.classifiers.heads.storage import PROBES, Stored
from vllm_lora_router.classifiers.thresholds import DIGITS, choose
from vllm_lora_router.tools.calibrate.choose import for_precision, for_share
from vllm_lora_router.tools.calibrate.scored import Knob, Scored
from vllm_lora_router.tools.data.examples import Example
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.metrics import Figures, figures
from vllm_lora_router.tools.evaluate.outcome import Answer
from vllm_lora_router.tools.fit.candidates import choose_points, output_names, ways
from vllm_lora_router.tools.fit.cross_validation import HeldOut, best, held_out, strangers
from vllm_lora_router.tools.progress import Told

Encode = Callable[[Sequence[str]], np.ndarray]  # texts to unit vectors, float32 [texts, dimensions]

THRESHOLD = 0.5  # rather right than wrong
LEAST_OUTSIDE = 20  # examples that are out of scope: of fewer nothing is learnt about what else may come
TOGETHER = 64  # texts of a pass through the encoder


@dataclass(frozen=True)
class Goal:
    """What thresholds are chosen for; None and None: every category is chosen where it is rather right than wrong."""

    precision: float | None = None  # of what each lets through
    share: float | None = None  # of the prompts of each category that are to be answered


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head to store, and how it came about."""

    stored: Stored
    tried: Sequence[HeldOut]  # each way
    chosen: str
    figures: Figures  # of held-out prompts
    unmet: Mapping[str, str]  # category -> why no threshold reaches what is wanted


def fit(
    examples: Sequence[Example],
    encode: Encode,
    encoder: str,
    *,
    goal: Goal | None = None,
    seed: int = 0,
    told: Told = lambda what, done, of: None,
) -> Fitted:
    """The head that tells held-out examples apart best, calibrated and with its thresholds.

    Args:
        encoder: the name under which a configuration has it.

    Raises:
        DataError: there are examples of one category only, or a category with a single one.
    """
    check_enough(examples)
    data = embedded(examples, encode, told)
    found = held_out(data, ways(), seed, told)
    chosen = best(found)
    calibration = _calibrated(data, chosen, seed, told)
    told("fitting", 0, 1)
    points = choose_points(data, seed)
    head = replace(chosen.way.fit(data, points), scale=calibration.scale, none=calibration.none)
    told("fitting", 1, 1)
    unseen = np.round(probabilities(chosen.scores, head.scale, head.none, head.membership), DIGITS)
    thresholds, unmet = _thresholds(examples, unseen, head.categories, goal or Goal())
    answers = [
        _answer(example, row, head.categories, thresholds) for example, row in zip(examples, unseen, strict=True)
    ]
    measured = figures(answers, seed)
    about = {
        "chosen": chosen.way.name,
        "seed": seed,
        "examples": len(examples),
        "data_sha256": digest(examples),
        "held_out": _summary(measured),
        "tried": {
            one.way.name: {"accuracy": round(one.accuracy, 4), "macro_f1": round(one.macro_f1, 4)} for one in found
        },
        "goal": {"precision": goal and goal.precision, "share": goal and goal.share},
    }
    stored = Stored(head, encoder, encode(PROBES), thresholds, about)
    return Fitted(stored, found, chosen.way.name, measured, unmet)


def check_enough(examples: Sequence[Example]) -> None:
    """Raises DataError where categories cannot be told apart by these examples."""
    counts = Counter(example.category for example in examples if example.category is not None)
    if len(counts) < 2:
        only = f"all {sum(counts.values())} of {next(iter(counts))!r}" if counts else "there is none"
        places = [example.place for example in examples if example.place][:3]
        where = f" ({', '.join(places)}, ...)" if places else ""
        raise DataError([f"examples of at least two categories are needed, and these are {only}{where}"])
    single = {example.category: example.place for example in examples if counts.get(example.category or "") == 1}
    if single:
        raise DataError(
            [
                f"{place}: is the only example of {category!r}; give at least two, better eight"
                for category, place in single.items()
            ]
        )


def embedded(examples: Sequence[Example], encode: Encode, told: Told = lambda what, done, of: None) -> Labelled:
    """Examples through the encoder; an output is an intent, or a category without one."""
    names, categories = output_names([(one.category, one.intent) for one in examples if one.category is not None])
    places = {pair: place for place, pair in enumerate(zip(categories, names, strict=True))}
    outputs = [-1 if one.category is None else places[one.category, one.intent or one.category] for one in examples]
    order = sorted(range(len(examples)), key=lambda place: len(examples[place].text))
    rows: list[np.ndarray] = []
    for start in range(0, len(order), TOGETHER):
        some = order[start : start + TOGETHER]
        rows.append(encode([examples[place].text for place in some]))
        told("encoding", start + len(some), len(order))
    return Labelled(np.concatenate(rows)[np.argsort(order)], np.array(outputs), names, categories)


def digest(examples: Sequence[Example]) -> str:
    """A SHA-256 of texts and labels, whatever files they came from."""
    lines = (json.dumps([one.text, one.category, one.intent], ensure_ascii=False) for one in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _calibrated(data: Labelled, chosen: HeldOut, seed: int, told: Told) -> Calibration:
    labels = data.labels
    inside = labels >= 0
    scores, known, weights = chosen.scores, labels, np.ones(len(labels))
    if (~inside).sum() < LEAST_OUTSIDE:
        outside = strangers(data, chosen.way, seed, told)
        if len(outside):
            scores = np.concatenate([scores[inside], outside])
            known = np.concatenate([labels[inside], np.full(len(outside), -1)])
            each = outside_weight(int(inside.sum()), len(outside))
            weights = np.concatenate([np.ones(inside.sum()), np.full(len(outside), each)])
    return calibrate(scores, known, data.membership, weights)


def _thresholds(
    examples: Sequence[Example], unseen: np.ndarray, categories: Sequence[str], goal: Goal
) -> tuple[dict[str, float], dict[str, str]]:
    if goal.precision is None and goal.share is None:
        return dict.fromkeys(categories, THRESHOLD), {}
    right = np.array([[one.category == category for category in categories] for one in examples])
    counts = Counter(one.category for one in examples if one.category is not None)
    knobs = tuple(Knob((name,), (column,), THRESHOLD) for column, name in enumerate(categories))
    scored = Scored("head", tuple(categories), unseen, right, counts, knobs)
    chosen = for_share(scored, goal.share) if goal.share is not None else for_precision(scored, goal.precision or 0.0)
    unmet = {name: why for name, why in zip(categories, chosen.why_not, strict=True) if why is not None}
    return dict(zip(categories, chosen.thresholds, strict=True)), unmet


def _answer(example: Example, row: np.ndarray, categories: Sequence[str], thresholds: Mapping[str, float]) -> Answer:
    chosen = choose(dict(zip(categories, map(float, row), strict=True)), thresholds)
    guess, score, sure = chosen.category, chosen.score, chosen.sure
    right = (not sure) if example.category is None else sure and guess == example.category
    return Answer(
        example.text, example.category, example.place, guess if sure else None, sure, right,
        "embedding" if sure else None, guess, score, "probability", "embedding", None, None,
    )  # fmt: skip


def _summary(found: Figures) -> dict[str, Any]:
    named = {
        "best_guess": found.guess,
        "coverage": found.coverage,
        "precision": found.precision,
        "macro_f1": found.macro_f1,
        "calibration_error": found.reliability and found.reliability.error,
        "out_of_scope_auroc": found.out_of_scope and found.out_of_scope.auroc,
    }
    return {
        name: [round(figure.value, 4), round(figure.low, 4), round(figure.high, 4)]
        for name, figure in named.items()
        if figure
    }
