"""The Prometheus metrics, read by the official parser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

from vllm_lora_router.observability.metrics import MAX_LABELS, Metrics
from vllm_lora_router.types import ActiveTopic, Assignment, Decision, Outcome, Overrides, Step

if TYPE_CHECKING:
    from .conftest import MakeDecision

Series = dict[tuple[tuple[str, str], ...], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    metrics = Metrics(registry)
    metrics.configure(["medical", "legal"], ["medical-lora", "legal-lora"])
    return metrics


def scrape(registry: CollectorRegistry) -> dict[str, Series]:
    """Return the value of every series: sample name -> sorted labels -> value."""
    series: dict[str, Series] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                series.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return series


def read(registry: CollectorRegistry, name: str) -> Series:
    return scrape(registry).get(f"lora_router_{name}", {})


def labels(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def smallest_full_bucket(registry: CollectorRegistry, name: str, **series: str) -> float:
    """Return the upper bound of the smallest bucket that contains all observations of a series."""
    buckets = {float(dict(key)["le"]): value for key, value in read(registry, f"{name}_bucket").items()}
    full = [bound for bound, value in buckets.items() if value == read(registry, f"{name}_count")[labels(**series)]]
    return min(full)


def with_arm(decision: Decision, category: str, arm: str) -> Decision:
    assignment = Assignment(category, "0123", "tenant", arm, {arm: 1.0})
    return replace(decision, plan=replace(decision.plan, assignment=assignment))


def test_decisions_are_counted_by_category_adapter_method_and_reason(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    for decision in (
        make_decision(),
        make_decision(),
        make_decision(None, "base", reason="below_threshold", confidence=None),
    ):
        metrics.count_decision(decision)
    metrics.count_decision(make_decision(model="of-a-tenant"))
    assert read(registry, "decisions_total") == {
        labels(category="medical", adapter="medical-lora", method="domain", reason="routed"): 2,
        labels(category="", adapter="base", method="", reason="below_threshold"): 1,
        labels(category="medical", adapter="dynamic", method="domain", reason="routed"): 1,
    }


def test_overhead_and_method_durations_are_observed_in_seconds(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    metrics.count_decision(make_decision(method="keyword"))
    metrics.count_decision(make_decision())
    assert read(registry, "overhead_seconds_sum") == {(): pytest.approx(2 * 0.00314159)}
    assert smallest_full_bucket(registry, "overhead_seconds") == 0.005
    assert read(registry, "method_seconds_count") == {labels(method="keyword"): 1, labels(method="domain"): 1}
    assert smallest_full_bucket(registry, "method_seconds", method="domain") == 0.0025


def test_confidence_of_the_deciding_method_is_observed(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    metrics.count_decision(make_decision())
    metrics.count_decision(make_decision(None, "base", reason="below_threshold", confidence=None))
    assert read(registry, "confidence_sum") == {labels(method="domain"): 0.91}
    assert smallest_full_bucket(registry, "confidence", method="domain") == 1.0


def test_failed_and_cached_classifications_are_counted(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    decision = make_decision()
    (step,) = decision.plan.steps
    assert step.classification is not None
    cached = Step("embedding", 0.02, replace(step.classification, cached=True, accepted=False))
    failed = Step("keyword", 1.0, failure="timeout", error="user text")
    metrics.count_decision(replace(decision, plan=replace(decision.plan, steps=(failed, cached, step))))
    assert read(registry, "failures_total") == {labels(method="keyword", reason="timeout"): 1}
    assert read(registry, "cached_total") == {labels(method="embedding"): 1}
    assert read(registry, "method_seconds_count")[labels(method="embedding")] == 1


def test_ab_assignments_are_counted_by_arm(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    for arm in ("medical-lora", "medical-lora#2", "medical-lora#2"):
        metrics.count_decision(with_arm(make_decision(), "medical", arm))
    metrics.count_decision(make_decision())
    assert read(registry, "arms_total") == {
        labels(category="medical", arm="medical-lora"): 1,
        labels(category="medical", arm="medical-lora#2"): 2,
    }


def test_names_from_an_mcp_tool_create_no_series(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    for number in range(50):
        arm = f"tenant-{number}-lora"
        decision = with_arm(make_decision(), "medical", arm)
        topic = ActiveTopic("medical", 0.9, "mcp", Overrides(models={arm: 1.0, "medical-lora": 1.0}))
        plan = replace(decision.plan, category=f"of the tool {number}", active_topic=topic)
        metrics.count_decision(replace(decision, plan=plan))
    assert read(registry, "arms_total") == {labels(category="medical", arm="dynamic"): 50}
    assert read(registry, "decisions_total") == {
        labels(category="other", adapter="medical-lora", method="domain", reason="routed"): 50
    }


def test_responses_are_counted_by_adapter_and_status(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    ends = [(200, False), (200, False), (400, False), (503, False), (200, True), (None, True)]
    for status, aborted in ends:
        metrics.count_outcome(Outcome(make_decision(), status, 40.0 if status == 200 else None, 50.0, aborted))
    metrics.count_outcome(Outcome(make_decision(model="base"), 200, None, 50.0, False))
    assert read(registry, "responses_total") == {
        labels(adapter="medical-lora", status="2xx"): 2,
        labels(adapter="medical-lora", status="4xx"): 1,
        labels(adapter="medical-lora", status="5xx"): 1,
        labels(adapter="medical-lora", status="aborted"): 2,
        labels(adapter="base", status="2xx"): 1,
    }
    assert read(registry, "first_byte_seconds_sum") == {labels(adapter="medical-lora"): pytest.approx(0.12)}
    assert smallest_full_bucket(registry, "first_byte_seconds", adapter="medical-lora") == 0.05


def test_feedback_is_summed_for_each_arm(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    metrics.count_decision(with_arm(make_decision(), "medical", "b"))
    metrics.observe_feedback("medical", "b", -1.0)
    metrics.observe_feedback("medical", "b", 0.5)
    metrics.observe_feedback(None, None, 1.0)
    metrics.observe_feedback("unknown", "unknown", 1.0)
    assert read(registry, "feedback_count") == {
        labels(category="medical", arm="b"): 2,
        labels(category="", arm=""): 2,
    }
    assert read(registry, "feedback_sum")[labels(category="medical", arm="b")] == -0.5


def test_lines_of_the_audit_record_are_counted(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.count_audit_lines(3, 0)
    metrics.count_audit_lines(0, 2)
    assert read(registry, "audit_lines_total") == {labels(outcome="written"): 3, labels(outcome="lost"): 2}


def test_batch_sizes_and_waiting_texts_are_observed(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.observe_batch("domain", 3, 5)
    assert read(registry, "waiting_texts") == {labels(method="domain"): 5}
    assert smallest_full_bucket(registry, "batch_texts", method="domain") == 4
    metrics.observe_batch("domain", 0, 0)
    assert read(registry, "waiting_texts") == {labels(method="domain"): 0}
    assert read(registry, "batch_texts_count") == {labels(method="domain"): 1}


def test_loads_reloads_and_the_configuration_in_effect_are_observed(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    metrics.count_load(0.02)
    metrics.count_failed_load()
    metrics.count_reload("applied")
    metrics.set_generation(7)
    metrics.set_snapshot_bytes(1000)
    assert read(registry, "adapter_loads_total") == {labels(outcome="loaded"): 1, labels(outcome="failed"): 1}
    assert smallest_full_bucket(registry, "adapter_load_seconds") == 0.025
    assert read(registry, "reloads_total") == {labels(outcome="applied"): 1}
    assert (read(registry, "config_generation"), read(registry, "snapshot_bytes")) == ({(): 7}, {(): 1000})


def test_configured_names_are_exported_unchanged(registry: CollectorRegistry, make_decision: MakeDecision) -> None:
    metrics = Metrics(registry)
    names = ['say "no"', "two\nlines", "a\\b", "{x=1}", "🩺", "Größe", "# HELP me", "a\ud83d", " ", "\r"]
    metrics.configure(names, names)
    for name in names:
        metrics.count_decision(with_arm(make_decision(name, name), name, name))
    exported = ["a?" if name == "a\ud83d" else name for name in names]
    assert read(registry, "decisions_total") == {
        labels(category=name, adapter=name, method="domain", reason="routed"): 1 for name in exported
    }
    assert read(registry, "arms_total") == {labels(category=name, arm=name): 1 for name in exported}


def test_ten_thousand_unknown_names_create_no_series(
    metrics: Metrics, registry: CollectorRegistry, make_decision: MakeDecision
) -> None:
    def use(name: Any) -> None:
        decision = with_arm(make_decision(name, name, name, reason=name, evidence={}), name, name)
        failed = replace(decision, plan=replace(decision.plan, steps=(Step(name, 1.0, failure=name),)))
        for each in (decision, failed):
            metrics.count_decision(each)
            metrics.count_outcome(Outcome(each, 200, 1.0, 2.0, False))
        metrics.observe_feedback(name, name, 1.0)
        metrics.observe_batch(name, 1, 0)

    use("the first")
    before = {name: series.keys() for name, series in scrape(registry).items()}
    for number in range(10_000):
        use(f'"{number}\n\\{{🩺}} # TYPE \ud83d')
    assert {name: series.keys() for name, series in scrape(registry).items()} == before
    assert read(registry, "decisions_total") == {
        labels(category="other", adapter="dynamic", method="other", reason="other"): 20_002
    }


def test_series_stay_bounded_over_many_configurations(registry: CollectorRegistry, make_decision: MakeDecision) -> None:
    metrics, reloads = Metrics(registry), 4 * MAX_LABELS
    for number in range(reloads):
        metrics.configure([f"category {number}", "medical"], [f"adapter {number}", "medical-lora"])
        metrics.count_decision(
            with_arm(make_decision(f"category {number}", f"adapter {number}"), f"category {number}", f"arm {number}")
        )
    metrics.count_decision(make_decision())
    series = read(registry, "decisions_total")
    assert sum(series.values()) == reloads + 1
    # The first names and the lasting ones have their own series. All later names share one.
    assert len(series) == MAX_LABELS + 1
    assert series[labels(category="category 0", adapter="adapter 0", method="domain", reason="routed")] == 1
    assert series[labels(category="medical", adapter="medical-lora", method="domain", reason="routed")] == 1
    over_limit = reloads - (MAX_LABELS - 1)
    assert series[labels(category="other", adapter="other", method="domain", reason="routed")] == over_limit
    assert sum(read(registry, "arms_total").values()) == reloads
    assert len(read(registry, "arms_total")) <= MAX_LABELS + 1


CHILD = """
import sys
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.types import Candidate, Decision, Outcome, Plan, AppliedEdit

count = int(sys.argv[1])
metrics = Metrics()
metrics.configure(["medical"], ["medical-lora"])
metrics.set_generation(count)
candidate = Candidate("medical-lora", "medical-lora")
plan = Plan((), "routed", "medical", 0.91, "domain", (candidate,), "01234567")
decision = Decision("chatcmpl-7", plan, candidate, "routed", AppliedEdit(), 3.0)
for _ in range(count):
    metrics.count_decision(decision)
    metrics.count_outcome(Outcome(decision, 200, 40.0, 50.0, False))
    metrics.observe_feedback("medical", None, -1.0)
metrics.observe_batch("domain", count, count)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(folder: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that counts everything `count` times and keeps running."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", CHILD, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child


def test_processes_are_summed_and_the_lowest_generation_is_exported(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    with process(tmp_path, 2) as older, process(tmp_path, 5):
        series = labels(category="medical", adapter="medical-lora", method="domain", reason="routed")
        assert read(registry, "decisions_total") == {series: 7}
        assert read(registry, "responses_total") == {labels(adapter="medical-lora", status="2xx"): 7}
        assert read(registry, "overhead_seconds_count") == {(): 7}
        assert smallest_full_bucket(registry, "overhead_seconds") == 0.005
        assert read(registry, "feedback_sum") == {labels(category="medical", arm=""): -7}
        assert read(registry, "config_generation") == {(): 2}
        assert read(registry, "waiting_texts") == {labels(method="domain"): 7}
        older.communicate()
        mark_process_dead(older.pid, str(tmp_path))
        assert read(registry, "config_generation") == {(): 5}
        assert read(registry, "waiting_texts") == {labels(method="domain"): 5}
        assert read(registry, "decisions_total") == {series: 7}
