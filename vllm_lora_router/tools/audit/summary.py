"""What a record's decisions were, counted."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vllm_lora_router.tools.audit.filters import NONE
from vllm_lora_router.tools.audit.join import Recorded
from vllm_lora_router.tools.audit.reader import Line


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a time in ms; None where there is none."""

    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, values: "array[float]") -> "Quantiles":
        if not values:
            return cls(None, None)
        p50, p95 = np.quantile(np.frombuffer(values), (0.5, 0.95))
        return cls(round(float(p50), 3), round(float(p95), 3))


@dataclass(frozen=True, slots=True)
class Way:
    """How many decisions came in the same way to what served them; "-" stands for none."""

    category: str
    served: str  # the adapter or the base
    method: str
    reason: str
    decisions: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of decisions; what is most comes first."""

    decisions: int
    first: str | None  # RFC 3339
    last: str | None
    processes: int
    ways: list[Way]
    status: dict[str, int]  # 2xx, 4xx, ...; none: the client left before it
    finish: dict[str, int]
    aborted: int
    without_outcome: int  # under way, or their process ended
    overhead_ms: Quantiles
    first_byte_ms: Quantiles
    feedback: int
    mean_score: float | None

    def by(self, name: str) -> dict[str, int]:
        """Decisions by `category`, `served`, `method` or `reason`."""
        counts: Counter[str] = Counter()
        for way in self.ways:
            counts[getattr(way, name)] += way.decisions
        return dict(counts.most_common())


def summary(recorded: Iterable[Recorded]) -> Summary:
    """The summary of decisions in order of time; in memory are 16 bytes of each."""
    first = last = None
    runs: set[str] = set()
    ways: Counter[tuple[str, str, str, str]] = Counter()
    status: Counter[str] = Counter()
    finish: Counter[str] = Counter()
    aborted = without_outcome = 0
    overhead, first_byte, scores = array("d"), array("d"), array("d")
    for one in recorded:
        decision, outcome = one.decision, one.outcome
        first, last = first or decision["at"], decision["at"]
        runs.add(decision["run"])
        ways[_way(decision)] += 1
        overhead.append(decision["ms"]["overhead"])
        scores.extend(line["score"] for line in one.feedback)
        if outcome is None:
            without_outcome += 1
            continue
        status["none" if outcome["status"] is None else f"{outcome['status'] // 100}xx"] += 1
        finish[outcome["finish"] or NONE] += 1
        aborted += outcome["aborted"]
        if outcome["first_byte_ms"] is not None:
            first_byte.append(outcome["first_byte_ms"])
    return Summary(
        len(overhead),
        first,
        last,
        len(runs),
        [Way(*way, count) for way, count in ways.most_common()],
        dict(status.most_common()),
        dict(finish.most_common()),
        aborted,
        without_outcome,
        Quantiles.of(overhead),
        Quantiles.of(first_byte),
        len(scores),
        float(np.mean(scores)) if scores else None,
    )


def _way(decision: Line) -> tuple[str, str, str, str]:
    plan, served = decision["plan"], decision["served"]
    return plan["category"] or NONE, served["adapter"] or served["model"], plan["method"] or NONE, decision["reason"]
