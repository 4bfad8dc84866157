"""What the audit record says of the methods that were asked: their scores, and labels as far as it has any."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from vllm_lora_router.config import Loaded
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.routing.candidates import Candidates
from vllm_lora_router.tools.audit.join import Recorded
from vllm_lora_router.tools.audit.replay import prompts
from vllm_lora_router.tools.calibrate.labelled import DOMAIN, HEAD, NAMES, knobs, rule_knob
from vllm_lora_router.tools.calibrate.scored import Knob, Scored

GOOD = 0.5  # feedback from here on says that the answer was good


class FeedbackError(ValueError):
    """Feedback that cannot serve as a label; the message says why."""


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of the category that should answer."""

    right: Mapping[str, bool]  # category -> whether it should; one that is not in it could be right or wrong
    speaks_of: frozenset[str]  # the categories that it tells something of


@dataclass(frozen=True, slots=True)
class Row:
    """What a method said of one prompt."""

    scores: Mapping[str, float]
    thresholds: Mapping[str, float]
    label: Label | None


@dataclass
class Traffic:
    """The steps of recorded decisions, by method."""

    decisions: int = 0
    rows: dict[str, list[Row]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)  # what a decision's label comes from -> decisions
    configs: Counter[str] = field(default_factory=Counter)  # version -> decisions
    unknown: Counter[str] = field(default_factory=Counter)  # what clients name that the configuration does not have


def read_traffic(recorded: Iterable[Recorded], loaded: Loaded, base: ServedBase) -> Traffic:
    """The scores of recorded decisions. The model that a client names where routing only observes is a label, and so is
    feedback on an answer that was routed.

    Raises:
        FeedbackError: scores of feedback are not between 0 and 1.
    """
    labels, traffic = _Labels(loaded, base), Traffic()
    for one in recorded:
        decision = one.decision
        traffic.decisions += 1
        traffic.configs[decision["config"]] += 1
        label = labels.of(one, traffic)
        for steps in prompts(decision["plan"]["steps"]):
            for step in steps:
                if step.get("scores") and (method := NAMES.get((step["method"], step["scale"]))):
                    thresholds = {**dict.fromkeys(step["scores"], step["threshold"]), **step["thresholds"]}
                    traffic.rows.setdefault(method, []).append(Row(step["scores"], thresholds, label))
    return traffic


def scored_of(traffic: Traffic, loaded: Loaded) -> list[Scored]:
    """Every method's scores over all that was recorded, labels or none."""
    return [
        Scored(method, *_columns(rows), None, {}, _knobs(method, rows, traffic, loaded))
        for method, rows in traffic.rows.items()
    ]


def labelled_of(traffic: Traffic, loaded: Loaded) -> list[Scored]:
    """Every method's scores where a label is known."""
    found = []
    for method, all_rows in traffic.rows.items():
        rows = [row for row in all_rows if row.label is not None]
        labels = [row.label for row in rows if row.label is not None]
        if rows:
            categories, values = _columns(rows)
            right = np.array([[label.right.get(name, False) for name in categories] for label in labels])
            values[np.array([[name not in label.right for name in categories] for label in labels])] = np.nan
            counts = Counter(name for label in labels for name in label.speaks_of)
            found.append(Scored(method, categories, values, right, counts, _knobs(method, rows, traffic, loaded)))
    return found


class _Labels:
    """What a decision's line says of the category that should answer."""

    def __init__(self, loaded: Loaded, base: ServedBase) -> None:
        config = loaded.config
        self._auto = config.auto_names
        self._names = [category.name for category in config.categories]
        self._bases = {*config.bases, base.served_name, None}
        candidates = Candidates(config, base)
        self._served: dict[str | None, set[str]] = {}  # adapter, or None for the base -> categories that it serves
        for name, own in candidates.by_category.items():
            for one in own if name in candidates.arms else own[:1] or candidates.default:
                self._served.setdefault(one.adapter, set()).add(name)

    def of(self, one: Recorded, traffic: Traffic) -> Label | None:
        decision = one.decision
        if decision.get("prompts", 1) != 1:
            return None
        if decision["reason"] == "observe" and decision["asked_for"] not in self._auto:
            named = decision["asked_for"]
            if named not in self._served and named not in self._bases:
                traffic.unknown[named] += 1
                return None
            own = frozenset(self._served.get(None if named in self._bases else named, ()))
            traffic.labels["the model that the client names"] += 1
            return Label({name: name in own for name in self._names}, own)
        if decision["reason"] == "routed" and one.feedback:
            scores = [line["score"] for line in one.feedback]
            if other := [score for score in scores if not 0 <= score <= 1]:
                raise FeedbackError(
                    f"feedback on {decision['id']} is {other[0]:g}: as labels serve scores from 0 (wrong) to 1 (right)"
                )
            traffic.labels["feedback"] += 1
            category = decision["plan"]["category"]
            return Label({category: fmean(scores) >= GOOD}, frozenset({category}))
        return None


def _columns(rows: Sequence[Row]) -> tuple[tuple[str, ...], np.ndarray]:
    """The categories that rows speak of, and their scores, NaN where a row says nothing of one: [rows, categories]."""
    categories = tuple(dict.fromkeys(name for row in rows for name in row.scores))
    return categories, np.array([[row.scores.get(name, np.nan) for name in categories] for row in rows])


def _knobs(method: str, rows: Sequence[Row], traffic: Traffic, loaded: Loaded) -> tuple[Knob, ...]:
    thresholds: dict[str, float] = {}
    for row in rows:
        for name in row.scores:
            thresholds[name] = row.thresholds[name]
    if method == DOMAIN:
        now = loaded.config.classifier.category_model.threshold
        return knobs(method, [(name, now) for name in thresholds])
    if method == HEAD:
        settings = loaded.config.classifier.embedding_model
        said = {name: settings.threshold for name in thresholds if settings.threshold is not None} | settings.thresholds
        # What is not said is the head's own, and in the record.
        return knobs(method, [(name, said.get(name, recorded)) for name, recorded in thresholds.items()])
    found = []
    for column, (category, threshold) in enumerate(thresholds.items()):
        own = [(place, rule) for place, rule in enumerate(loaded.config.embedding_rules) if rule.category == category]
        why = None
        if HEAD in traffic.rows:
            why = "where no rule is sure a head answers, and the record has the head's scores alone"
        elif len(own) != 1:
            why = f"{len(own)} rules are for {category}, and the record has one score for them"
        if why is None:
            found.append(rule_knob(own[0][0], column, own[0][1]))
        else:
            found.append(Knob(("embedding_rules", category), (column,), threshold, why))
    return tuple(found)
