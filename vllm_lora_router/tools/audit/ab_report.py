"""Reports on A/B tests: results for each arm, and comparisons of arms.

Users count for the arm that their key is assigned to, whatever adapter served them (intention to treat). Excluding or
moving users of an arm that could not be loaded would bias the comparison, because they are not a random sample.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.filters import NO_VALUE
from vllm_lora_router.tools.audit.join import JoinedDecision
from vllm_lora_router.tools.audit.summary import Quantiles
from vllm_lora_router.tools.statistics import RATIO_ALPHA, Estimate, Sample, holm, keys_needed, sample_ratio, welch

PROPORTION_DIFFERENCE = 0.05  # default target difference if all scores are 0 or 1
STANDARDIZED_DIFFERENCE = 0.2  # default target difference otherwise, in standard deviations


@dataclass(frozen=True, slots=True)
class Arm:
    """The results of the users that are assigned to an arm."""

    name: str
    weight: float
    requests: int
    served_by_other: int  # requests that another candidate served
    keys: int
    finish_reasons: dict[str, int]
    aborted: int
    errors: int  # responses with status 500 or higher
    without_outcome: int
    first_byte_ms: Quantiles
    content_versions: int  # versions of the adapter's files that served in this period
    ratings: int
    scores: tuple[float, float] | None  # the lowest and the highest rating
    sample: Sample | None  # the mean ratings of the keys; None without ratings
    mean: Estimate | None  # the mean of the sample; None for a single key with a rating other than 0 and 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between an arm's mean score and that of the baseline, the arm with the largest weight."""

    arm: str
    baseline: str
    difference: float
    interval: Estimate | None  # the difference with its interval, not corrected; None if the scores do not vary
    p: float | None
    p_holm: float | None  # corrected for all comparisons of the experiment
    target_difference: float | None
    keys_needed: int | None  # keys with feedback that this arm needs to detect the target difference
    baseline_keys_needed: int | None
    days: float | None  # days from the beginning until both arms have the keys they need, at the current rate

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_holm is not None and self.p_holm < 0.05


@dataclass(frozen=True, slots=True)
class Experiment:
    """The A/B test of one category, for a period in which its weights did not change."""

    category: str
    weights: dict[str, float]
    configs: list[str]  # the configuration versions with these weights, in order of time
    first: str  # RFC 3339; time of the first decision
    last: str
    arms: list[Arm]
    comparisons: list[Comparison]
    sample_ratio_p: float | None  # None: too few keys for a test
    key_sources: dict[str, int]  # source of the key -> decisions

    @property
    def is_trusted(self) -> bool:
        """Whether the keys per arm match the weights. If not, the arms have different kinds of users."""
        return self.sample_ratio_p is None or self.sample_ratio_p >= RATIO_ALPHA


def ab_experiments(
    decisions: Iterable[JoinedDecision], *, target_difference: float | None = None, power: float = 0.8
) -> list[Experiment]:
    """Return the A/B tests in decisions that are in order of time, sorted by category and start.

    Decisions in observe mode are ignored, because their arm did not serve the request. If a response has several
    ratings, the last one counts. Keeps every key with its ratings in memory.

    Args:
        target_difference: the difference of mean scores to detect. Default: 0.05 if all scores are 0 or 1, otherwise a
            fifth of their standard deviation.
        power: the probability of detecting it.
    """
    collectors: dict[tuple[str, tuple[tuple[str, float], ...]], _ExperimentCollector] = {}
    for joined in decisions:
        assignment = joined.decision["plan"].get("assignment")
        if assignment is not None and joined.decision["reason"] != "observe":
            weights = tuple(assignment["weights"].items())
            collector = collectors.setdefault(
                (assignment["category"], tuple(sorted(weights))),
                _ExperimentCollector(assignment["category"], dict(weights), first=joined.decision["at"]),
            )
            collector.add(joined, assignment)
    ordered = sorted(collectors.values(), key=lambda collector: (collector.category, collector.first))
    return [collector.report(target_difference, power) for collector in ordered]


@dataclass(slots=True)
class _ArmCollector:
    requests: int = 0
    served_by_other: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    aborted: int = 0
    errors: int = 0
    without_outcome: int = 0
    first_byte: "array[float]" = field(default_factory=lambda: array("d"))
    contents: set[str] = field(default_factory=set)
    ratings: dict[str, list[float]] = field(default_factory=dict)  # every key; most have no ratings

    def add(self, joined: JoinedDecision, assignment: AuditLine) -> None:
        served, outcome = joined.decision["served"], joined.outcome
        self.requests += 1
        if served["arm"] != assignment["arm"]:
            self.served_by_other += 1
        elif served["content_digest"] is not None:
            self.contents.add(served["content_digest"])
        ratings = self.ratings.setdefault(assignment["key"], [])
        if joined.feedback:
            ratings.append(joined.feedback[-1]["score"])
        if outcome is None:
            self.without_outcome += 1
            return
        self.finish_reasons[outcome["finish_reason"] or NO_VALUE] += 1
        self.aborted += outcome["aborted"]
        self.errors += outcome["status"] is not None and outcome["status"] >= 500
        if outcome["first_byte_ms"] is not None:
            self.first_byte.append(outcome["first_byte_ms"])

    def report(self, name: str, weight: float) -> Arm:
        sample = Sample.of(self.ratings.values())
        scores = [score for ratings in self.ratings.values() for score in ratings]
        return Arm(
            name,
            weight,
            self.requests,
            self.served_by_other,
            len(self.ratings),
            dict(self.finish_reasons.most_common()),
            self.aborted,
            self.errors,
            self.without_outcome,
            Quantiles.of(self.first_byte),
            len(self.contents),
            len(scores),
            (min(scores), max(scores)) if scores else None,
            sample,
            None if sample is None else sample.estimate,
        )


@dataclass(slots=True)
class _ExperimentCollector:
    category: str
    weights: dict[str, float]
    first: str
    last: str = ""
    configs: dict[str, None] = field(default_factory=dict)
    arms: dict[str, _ArmCollector] = field(default_factory=dict)
    key_sources: Counter[str] = field(default_factory=Counter)

    def add(self, joined: JoinedDecision, assignment: AuditLine) -> None:
        self.last = joined.decision["at"]
        self.configs[joined.decision["config"]] = None
        self.key_sources[assignment["key_source"]] += 1
        self.arms.setdefault(assignment["arm"], _ArmCollector()).add(joined, assignment)

    def report(self, target_difference: float | None, power: float) -> Experiment:
        arms = [self.arms.get(name, _ArmCollector()).report(name, weight) for name, weight in self.weights.items()]
        return Experiment(
            self.category,
            self.weights,
            list(self.configs),
            self.first,
            self.last,
            arms,
            self._comparisons(arms, target_difference, power),
            sample_ratio({arm.name: arm.keys for arm in arms}, self.weights),
            dict(self.key_sources.most_common()),
        )

    def _comparisons(self, arms: list[Arm], target_difference: float | None, power: float) -> list[Comparison]:
        baseline = max(arms, key=lambda arm: arm.weight)
        others = [arm for arm in arms if arm is not baseline and arm.weight > 0]
        pairs = [(arm, arm.sample, baseline.sample) for arm in others]
        tests = [(arm, first, second, welch(first, second)) for arm, first, second in pairs if first and second]
        p_values = [None if result is None else result[1] for _, _, _, result in tests]
        is_binary = all(
            score in (0, 1) for arm in self.arms.values() for ratings in arm.ratings.values() for score in ratings
        )
        days = _days(self.first, self.last)
        comparisons: list[Comparison] = []
        for (arm, first, second, result), p, p_holm in zip(tests, p_values, holm(p_values), strict=True):
            default = PROPORTION_DIFFERENCE if is_binary else STANDARDIZED_DIFFERENCE * _pooled_deviation(first, second)
            target = target_difference or default
            ratio = baseline.weight / arm.weight
            needed = keys_needed(first, second, ratio, target, power, len(tests)) if target else None
            comparisons.append(
                Comparison(
                    arm.name,
                    baseline.name,
                    first.mean - second.mean,
                    None if result is None else result[0],
                    p,
                    p_holm,
                    target or None,
                    None if needed is None else math.ceil(needed),
                    None if needed is None else math.ceil(needed * ratio),
                    None if needed is None else days * max(needed / first.keys, needed * ratio / second.keys),
                )
            )
        return comparisons


def _pooled_deviation(first: Sample, second: Sample) -> float:
    freedom = first.keys + second.keys - 2
    if freedom <= 0:
        return 0.0
    return math.sqrt(((first.keys - 1) * first.variance + (second.keys - 1) * second.variance) / freedom)


def _days(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds() / 86400
