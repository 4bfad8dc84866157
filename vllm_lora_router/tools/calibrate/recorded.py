"""Scores and labels from the audit record."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.tools.audit.join import JoinedDecision
from vllm_lora_router.tools.audit.replay import split_by_prompt
from vllm_lora_router.tools.calibrate.labelled import DOMAIN, HEAD, NAMES, model_thresholds, rule_threshold
from vllm_lora_router.tools.calibrate.scores import MethodScores, Threshold

POSITIVE_FEEDBACK = 0.5  # the lowest mean score that labels a category as correct


class FeedbackError(ValueError):
    """Feedback that cannot be used as a label; the message says why."""


@dataclass(frozen=True, slots=True)
class Label:
    """The known part of a prompt's label."""

    correct: Mapping[str, bool]  # category -> whether it is correct; unknown for other categories
    counted: frozenset[str]  # categories for which the prompt counts as labelled


@dataclass(frozen=True, slots=True)
class RecordedScores:
    """One method's scores of one recorded prompt."""

    scores: Mapping[str, float]
    thresholds: Mapping[str, float]
    label: Label | None


@dataclass
class Traffic:
    """The scores of recorded decisions, by method."""

    decisions: int = 0
    rows: dict[str, list[RecordedScores]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)  # source of labels -> decisions
    configs: Counter[str] = field(default_factory=Counter)  # version -> decisions
    unknown: Counter[str] = field(default_factory=Counter)  # model requested by clients, but not configured


def read_traffic(decisions: Iterable[JoinedDecision], loaded: LoadedConfig, base: ServedBase) -> Traffic:
    """Read the scores and labels of recorded decisions.

    The model that a client requests under `router.mode: observe` is a label, and so is feedback on a routed answer.

    Raises:
        FeedbackError: A feedback score is outside `router.feedback`.
    """
    labels, traffic = _Labels(loaded, base), Traffic()
    for joined in decisions:
        decision = joined.decision
        traffic.decisions += 1
        traffic.configs[decision["config"]] += 1
        label = labels.of(joined, traffic)
        for steps in split_by_prompt(decision["plan"]["steps"]):
            for step in steps:
                if step.get("scores") and (method := NAMES.get((step["method"], step["scale"]))):
                    thresholds = {**dict.fromkeys(step["scores"], step["threshold"]), **step["thresholds"]}
                    traffic.rows.setdefault(method, []).append(RecordedScores(step["scores"], thresholds, label))
    return traffic


def all_scores(traffic: Traffic, loaded: LoadedConfig) -> list[MethodScores]:
    """Return the scores of all recorded prompts, without labels."""
    return [
        MethodScores(method, *_matrix(rows), None, {}, _thresholds(method, rows, traffic, loaded))
        for method, rows in traffic.rows.items()
    ]


def labelled_scores(traffic: Traffic, loaded: LoadedConfig) -> list[MethodScores]:
    """Return the scores of the recorded prompts that have a label."""
    results = []
    for method, all_rows in traffic.rows.items():
        rows = [row for row in all_rows if row.label is not None]
        labels = [row.label for row in rows if row.label is not None]
        if rows:
            categories, values = _matrix(rows)
            correct = np.array([[label.correct.get(name, False) for name in categories] for label in labels])
            values[np.array([[name not in label.correct for name in categories] for label in labels])] = np.nan
            counts = Counter(name for label in labels for name in label.counted)
            thresholds = _thresholds(method, rows, traffic, loaded)
            results.append(MethodScores(method, categories, values, correct, counts, thresholds))
    return results


class _Labels:
    """Reads labels from recorded decisions."""

    def __init__(self, loaded: LoadedConfig, base: ServedBase) -> None:
        config = loaded.config
        self._auto_names = config.auto_names
        self._scale = config.router.feedback
        self._categories = [category.name for category in config.categories]
        self._bases = {*config.bases, base.served_name, None}
        candidates = Candidates(config, base)
        self._served: dict[str | None, set[str]] = {}  # adapter, or None for the base -> categories that it serves
        for name, entries in candidates.by_category.items():
            for candidate in entries if name in candidates.arms else entries[:1] or candidates.default:
                self._served.setdefault(candidate.adapter, set()).add(name)

    def of(self, joined: JoinedDecision, traffic: Traffic) -> Label | None:
        """Return a decision's label, and count its source in `traffic`."""
        decision = joined.decision
        if decision.get("prompts", 1) != 1:
            return None
        if decision["reason"] == "observe" and decision["requested_model"] not in self._auto_names:
            requested = decision["requested_model"]
            if requested not in self._served and requested not in self._bases:
                traffic.unknown[requested] += 1
                return None
            categories = frozenset(self._served.get(None if requested in self._bases else requested, ()))
            traffic.labels["requested model"] += 1
            return Label({name: name in categories for name in self._categories}, categories)
        if decision["reason"] == "routed" and joined.feedback:
            scores, scale = [feedback["score"] for feedback in joined.feedback], self._scale
            if invalid := [score for score in scores if not scale.min <= score <= scale.max]:
                raise FeedbackError(
                    f"feedback on {decision['id']} is {invalid[0]:g}: scores are from {scale.min:g} (wrong) to "
                    f"{scale.max:g} (right); set router.feedback to the scale of this record"
                )
            traffic.labels["feedback"] += 1
            category = decision["plan"]["category"]
            score = (fmean(scores) - scale.min) / (scale.max - scale.min)
            return Label({category: score >= POSITIVE_FEEDBACK}, frozenset({category}))
        return None


def _matrix(rows: Sequence[RecordedScores]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the categories with scores, and the scores, NaN if a row has none: [rows, categories]."""
    categories = tuple(dict.fromkeys(name for row in rows for name in row.scores))
    return categories, np.array([[row.scores.get(name, np.nan) for name in categories] for row in rows])


def _thresholds(
    method: str, rows: Sequence[RecordedScores], traffic: Traffic, loaded: LoadedConfig
) -> tuple[Threshold, ...]:
    recorded: dict[str, float] = {}
    for row in rows:
        for name in row.scores:
            recorded[name] = row.thresholds[name]
    if method == DOMAIN:
        current = loaded.config.classifier.category_model.threshold
        return model_thresholds(method, [(name, current) for name in recorded])
    if method == HEAD:
        settings = loaded.config.classifier.embedding_model
        configured = {name: settings.threshold for name in recorded if settings.threshold is not None}
        configured |= settings.thresholds
        # Thresholds that are not configured are the head's own, which are recorded.
        return model_thresholds(method, [(name, configured.get(name, value)) for name, value in recorded.items()])
    thresholds = []
    for column, (category, value) in enumerate(recorded.items()):
        rules = [(index, rule) for index, rule in enumerate(loaded.config.embedding_rules) if rule.category == category]
        reason = None
        if HEAD in traffic.rows:
            reason = "prompts that no rule accepts go to the head, and the record has only the head's scores for them"
        elif len(rules) != 1:
            reason = f"{category} has {len(rules)} rules, and the record has one score for all of them"
        if reason is None:
            thresholds.append(rule_threshold(rules[0][0], column, rules[0][1]))
        else:
            thresholds.append(Threshold(("embedding_rules", category), (column,), value, reason))
    return tuple(thresholds)
