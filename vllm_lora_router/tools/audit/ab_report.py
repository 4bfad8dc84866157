"""A/B tests: what became of the users that each arm drew, and what can be said of the difference.

Users are counted with the arm that their key drew, whatever served them in the end (intention to treat): those whose
arm could not be loaded are no random choice of users.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from vllm_lora_router.tools.audit.filters import NONE
from vllm_lora_router.tools.audit.join import Recorded
from vllm_lora_router.tools.audit.reader import Line
from vllm_lora_router.tools.audit.summary import Quantiles
from vllm_lora_router.tools.statistics import RATIO_ALPHA, Interval, Sample, holm, keys_needed, sample_ratio, welch

OF_PROPORTIONS = 0.05  # the difference that is looked for where scores are 0 or 1
OF_DEVIATION = 0.2  # and elsewhere, in standard deviations


@dataclass(frozen=True, slots=True)
class Arm:
    """What became of the users that drew an arm."""

    name: str
    weight: float
    requests: int
    otherwise: int  # of them, served by another candidate
    keys: int
    finish: dict[str, int]
    aborted: int
    errors: int  # status 500 or more
    without_outcome: int
    first_byte_ms: Quantiles
    contents: int  # of its adapter, that served in this time
    ratings: int
    sample: Sample | None  # of the ratings, key by key; None without any
    interval: Interval | None  # of the mean, 95 %


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm's mean score less that of the arm with the largest weight."""

    arm: str
    against: str
    difference: float
    interval: Interval | None  # 95 %, of this one difference
    p: float | None
    p_holm: float | None  # of all comparisons of the experiment together
    sought: float | None  # the difference that is looked for
    needed: int | None  # keys with feedback of this arm to find that
    needed_against: int | None  # and of the other
    days: float | None  # until both have as many, from the beginning, at the rate so far

    @property
    def is_found(self) -> bool:
        return self.p_holm is not None and self.p_holm < 0.05


@dataclass(frozen=True, slots=True)
class Experiment:
    """One category while its weights stayed the same."""

    category: str
    weights: dict[str, float]
    configs: list[str]  # versions that had these weights, as they came
    first: str  # RFC 3339, of its decisions
    last: str
    arms: list[Arm]
    comparisons: list[Comparison]
    sample_ratio_p: float | None  # None: too few keys to tell
    drawn_by: dict[str, int]  # where keys were found -> decisions

    @property
    def is_trusted(self) -> bool:
        """False where keys did not fall on arms by their weights: then what was compared are not the same users."""
        return self.sample_ratio_p is None or self.sample_ratio_p >= RATIO_ALPHA


def experiments(
    recorded: Iterable[Recorded], *, difference: float | None = None, power: float = 0.8
) -> list[Experiment]:
    """The A/B tests of decisions in order of time, by category and then by when they began.

    A decision that was only observed drew an arm and was not served by it, and is left out. Of several ratings of one
    answer the last counts. In memory is every key with its ratings.

    Args:
        difference: of mean scores, that should be found; without it, 0.05 where scores are 0 or 1, else a fifth of
            their standard deviation.
        power: how probably it should be found.
    """
    found: dict[tuple[str, tuple[tuple[str, float], ...]], _Experiment] = {}
    for one in recorded:
        draw = one.decision["plan"].get("draw")
        if draw is not None and one.decision["reason"] != "observe":
            weights = tuple(draw["weights"].items())
            experiment = found.setdefault(
                (draw["category"], tuple(sorted(weights))),
                _Experiment(draw["category"], dict(weights), first=one.decision["at"]),
            )
            experiment.add(one, draw)
    return [one.report(difference, power) for one in sorted(found.values(), key=lambda one: (one.category, one.first))]


@dataclass(slots=True)
class _Arm:
    requests: int = 0
    otherwise: int = 0
    finish: Counter[str] = field(default_factory=Counter)
    aborted: int = 0
    errors: int = 0
    without_outcome: int = 0
    first_byte: "array[float]" = field(default_factory=lambda: array("d"))
    contents: set[str] = field(default_factory=set)
    ratings: dict[str, list[float]] = field(default_factory=dict)  # of every key, none for most

    def add(self, recorded: Recorded, draw: Line) -> None:
        served, outcome = recorded.decision["served"], recorded.outcome
        self.requests += 1
        if served["arm"] != draw["arm"]:
            self.otherwise += 1
        elif served["digest"] is not None:
            self.contents.add(served["digest"])
        ratings = self.ratings.setdefault(draw["key"], [])
        if recorded.feedback:
            ratings.append(recorded.feedback[-1]["score"])
        if outcome is None:
            self.without_outcome += 1
            return
        self.finish[outcome["finish"] or NONE] += 1
        self.aborted += outcome["aborted"]
        self.errors += outcome["status"] is not None and outcome["status"] >= 500
        if outcome["first_byte_ms"] is not None:
            self.first_byte.append(outcome["first_byte_ms"])

    def report(self, name: str, weight: float) -> Arm:
        sample = Sample.of(self.ratings.values())
        return Arm(
            name,
            weight,
            self.requests,
            self.otherwise,
            len(self.ratings),
            dict(self.finish.most_common()),
            self.aborted,
            self.errors,
            self.without_outcome,
            Quantiles.of(self.first_byte),
            len(self.contents),
            sum(map(len, self.ratings.values())),
            sample,
            None if sample is None else sample.interval,
        )


@dataclass(slots=True)
class _Experiment:
    category: str
    weights: dict[str, float]
    first: str
    last: str = ""
    configs: dict[str, None] = field(default_factory=dict)
    arms: dict[str, _Arm] = field(default_factory=dict)
    drawn_by: Counter[str] = field(default_factory=Counter)

    def add(self, recorded: Recorded, draw: Line) -> None:
        self.last = recorded.decision["at"]
        self.configs[recorded.decision["config"]] = None
        self.drawn_by[draw["by"]] += 1
        self.arms.setdefault(draw["arm"], _Arm()).add(recorded, draw)

    def report(self, difference: float | None, power: float) -> Experiment:
        arms = [self.arms.get(name, _Arm()).report(name, weight) for name, weight in self.weights.items()]
        return Experiment(
            self.category,
            self.weights,
            list(self.configs),
            self.first,
            self.last,
            arms,
            self._comparisons(arms, difference, power),
            sample_ratio({arm.name: arm.keys for arm in arms}, self.weights),
            dict(self.drawn_by.most_common()),
        )

    def _comparisons(self, arms: list[Arm], difference: float | None, power: float) -> list[Comparison]:
        against = max(arms, key=lambda arm: arm.weight)
        others = [arm for arm in arms if arm is not against and arm.weight > 0]
        pairs = [(arm, arm.sample, against.sample) for arm in others]
        tested = [(arm, one, other, welch(one, other)) for arm, one, other in pairs if one and other]
        zero_or_one = all(score in (0, 1) for arm in self.arms.values() for of in arm.ratings.values() for score in of)
        days = _days(self.first, self.last)
        compared: list[Comparison] = []
        for (arm, one, other, found), p_holm in zip(tested, holm([each[3].p for each in tested]), strict=True):
            sought = difference or (OF_PROPORTIONS if zero_or_one else OF_DEVIATION * _deviation(one, other))
            ratio = against.weight / arm.weight
            needed = keys_needed(one, other, ratio, sought, power, len(tested)) if sought else None
            compared.append(
                Comparison(
                    arm.name,
                    against.name,
                    found.value,
                    found.interval,
                    found.p,
                    p_holm,
                    sought or None,
                    None if needed is None else math.ceil(needed),
                    None if needed is None else math.ceil(needed * ratio),
                    None if needed is None else days * max(needed / one.keys, needed * ratio / other.keys),
                )
            )
        return compared


def _deviation(one: Sample, other: Sample) -> float:
    freedom = one.keys + other.keys - 2
    if freedom <= 0:
        return 0.0
    return math.sqrt(((one.keys - 1) * one.variance + (other.keys - 1) * other.variance) / freedom)


def _days(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds() / 86400
