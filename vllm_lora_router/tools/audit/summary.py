"""A summary of an audit record: counts and times of its decisions."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.filters import NO_VALUE
from vllm_lora_router.tools.audit.join import JoinedDecision


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of a time in ms, or None without values."""

    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, values: "array[float]") -> "Quantiles":
        """Return the quantiles of values in ms, rounded to microseconds."""
        if not values:
            return cls(None, None)
        p50, p95 = np.quantile(np.frombuffer(values), (0.5, 0.95))
        return cls(round(float(p50), 3), round(float(p95), 3))


@dataclass(frozen=True, slots=True)
class DecisionGroup:
    """The number of decisions with the same result. "-" stands for a missing value."""

    category: str
    served: str  # the adapter or the base model
    method: str
    reason: str
    decisions: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of decisions, the largest first."""

    decisions: int
    first: str | None  # RFC 3339
    last: str | None
    processes: int
    groups: list[DecisionGroup]
    status: dict[str, int]  # 2xx, 4xx, ...; none: the client disconnected before the response began
    finish_reasons: dict[str, int]
    aborted: int
    without_outcome: int  # the request was in progress, or its process ended
    overhead_ms: Quantiles
    first_byte_ms: Quantiles
    feedback: int
    mean_score: float | None
    min_score: float | None
    max_score: float | None

    def by(self, name: str) -> dict[str, int]:
        """Return the number of decisions by `category`, `served`, `method` or `reason`."""
        counts: Counter[str] = Counter()
        for group in self.groups:
            counts[getattr(group, name)] += group.decisions
        return dict(counts.most_common())


def summarize(decisions: Iterable[JoinedDecision]) -> Summary:
    """Summarize decisions that are in order of time. Keeps 16 bytes of each in memory."""
    first = last = None
    runs: set[str] = set()
    groups: Counter[tuple[str, str, str, str]] = Counter()
    status: Counter[str] = Counter()
    finish_reasons: Counter[str] = Counter()
    aborted = without_outcome = 0
    overhead, first_byte, scores = array("d"), array("d"), array("d")
    for joined in decisions:
        decision, outcome = joined.decision, joined.outcome
        first, last = first or decision["at"], decision["at"]
        runs.add(decision["run"])
        groups[_group(decision)] += 1
        overhead.append(decision["timings_ms"]["overhead"])
        scores.extend(line["score"] for line in joined.feedback)
        if outcome is None:
            without_outcome += 1
            continue
        status["none" if outcome["status"] is None else f"{outcome['status'] // 100}xx"] += 1
        finish_reasons[outcome["finish_reason"] or NO_VALUE] += 1
        aborted += outcome["aborted"]
        if outcome["first_byte_ms"] is not None:
            first_byte.append(outcome["first_byte_ms"])
    return Summary(
        len(overhead),
        first,
        last,
        len(runs),
        [DecisionGroup(*group, count) for group, count in groups.most_common()],
        dict(status.most_common()),
        dict(finish_reasons.most_common()),
        aborted,
        without_outcome,
        Quantiles.of(overhead),
        Quantiles.of(first_byte),
        len(scores),
        float(np.mean(scores)) if scores else None,
        min(scores, default=None),
        max(scores, default=None),
    )


def _group(decision: AuditLine) -> tuple[str, str, str, str]:
    plan, served = decision["plan"], decision["served"]
    return (
        plan["category"] or NO_VALUE,
        served["adapter"] or served["model"],
        plan["method"] or NO_VALUE,
        decision["reason"],
    )
