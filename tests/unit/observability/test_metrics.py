"""What Prometheus is told, read by its official parser."""

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

from vllm_lora_router.observability.metrics import MOST_NAMES, Metrics
from vllm_lora_router.types import ActiveTopic, Assignment, Decision, Outcome, Overrides, Step

if TYPE_CHECKING:
    from .conftest import Decide

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
    """Sample's name -> labels in the order of their names -> value."""
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def read(registry: CollectorRegistry, name: str) -> Series:
    return scrape(registry).get(f"lora_router_{name}", {})


def labels(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def smallest_bucket(registry: CollectorRegistry, name: str, **of: str) -> float:
    """The smallest that holds all that was observed."""
    buckets = {float(dict(key)["le"]): value for key, value in read(registry, f"{name}_bucket").items()}
    full = [bound for bound, value in buckets.items() if value == read(registry, f"{name}_count")[labels(**of)]]
    return min(full)


def drawn(decision: Decision, category: str, arm: str) -> Decision:
    draw = Assignment(category, "0123", "tenant", arm, {arm: 1.0})
    return replace(decision, plan=replace(decision.plan, assignment=draw))


def test_decisions_are_counted_by_category_adapter_method_and_reason(
    metrics: Metrics, registry: CollectorRegistry, decide: Decide
) -> None:
    for decision in (decide(), decide(), decide(None, "base", reason="below_threshold", confidence=None)):
        metrics.decided(decision)
    metrics.decided(decide(model="of-a-tenant"))
    assert read(registry, "decisions_total") == {
        labels(category="medical", adapter="medical-lora", method="domain", reason="routed"): 2,
        labels(category="", adapter="base", method="", reason="below_threshold"): 1,
        labels(category="medical", adapter="dynamic", method="domain", reason="routed"): 1,
    }


def test_what_routing_and_each_method_took_is_seen_in_seconds(
    metrics: Metrics, registry: CollectorRegistry, decide: Decide
) -> None:
    metrics.decided(decide(method="keyword"))
    metrics.decided(decide())
    assert read(registry, "overhead_seconds_sum") == {(): pytest.approx(2 * 0.00314159)}
    assert smallest_bucket(registry, "overhead_seconds") == 0.005
    assert read(registry, "method_seconds_count") == {labels(method="keyword"): 1, labels(method="domain"): 1}
    assert smallest_bucket(registry, "method_seconds", method="domain") == 0.0025


def test_how_sure_the_deciding_method_was_is_seen(
    metrics: Metrics, registry: CollectorRegistry, decide: Decide
) -> None:
    metrics.decided(decide())
    metrics.decided(decide(None, "base", reason="below_threshold", confidence=None))
    assert read(registry, "confidence_sum") == {labels(method="domain"): 0.91}
    assert smallest_bucket(registry, "confidence", method="domain") == 1.0


def test_methods_that_failed_and_what_was_known_before_are_counted(
    metrics: Metrics, registry: CollectorRegistry, decide: Decide
) -> None:
    decision = decide()
    (step,) = decision.plan.steps
    assert step.classification is not None
    cached = Step("embedding", 0.02, replace(step.classification, cached=True, accepted=False))
    failed = Step("keyword", 1.0, failure="timeout", error="the user's words")
    metrics.decided(replace(decision, plan=replace(decision.plan, steps=(failed, cached, step))))
    assert read(registry, "failures_total") == {labels(method="keyword", why="timeout"): 1}
    assert read(registry, "cached_total") == {labels(method="embedding"): 1}
    assert read(registry, "method_seconds_count")[labels(method="embedding")] == 1


def test_draws_of_an_ab_test_are_counted_by_arm(metrics: Metrics, registry: CollectorRegistry, decide: Decide) -> None:
    for arm in ("medical-lora", "medical-lora#2", "medical-lora#2"):
        metrics.decided(drawn(decide(), "medical", arm))
    metrics.decided(decide())
    assert read(registry, "arms_total") == {
        labels(category="medical", arm="medical-lora"): 1,
        labels(category="medical", arm="medical-lora#2"): 2,
    }


def test_what_a_tool_names_makes_no_series(metrics: Metrics, registry: CollectorRegistry, decide: Decide) -> None:
    for number in range(50):
        arm = f"tenant-{number}-lora"
        made = drawn(decide(), "medical", arm)
        held = ActiveTopic("medical", 0.9, "mcp", Overrides(models={arm: 1.0, "medical-lora": 1.0}))
        metrics.decided(replace(made, plan=replace(made.plan, category=f"theirs {number}", active_topic=held)))
    assert read(registry, "arms_total") == {labels(category="medical", arm="dynamic"): 50}
    assert read(registry, "decisions_total") == {
        labels(category="other", adapter="medical-lora", method="domain", reason="routed"): 50
    }


def test_responses_are_counted_by_how_they_ended(metrics: Metrics, registry: CollectorRegistry, decide: Decide) -> None:
    ends = [(200, False), (200, False), (400, False), (503, False), (200, True), (None, True)]
    for status, aborted in ends:
        metrics.ended(Outcome(decide(), status, 40.0 if status == 200 else None, 50.0, aborted))
    metrics.ended(Outcome(decide(model="base"), 200, None, 50.0, False))
    assert read(registry, "responses_total") == {
        labels(adapter="medical-lora", status="2xx"): 2,
        labels(adapter="medical-lora", status="4xx"): 1,
        labels(adapter="medical-lora", status="5xx"): 1,
        labels(adapter="medical-lora", status="aborted"): 2,
        labels(adapter="base", status="2xx"): 1,
    }
    assert read(registry, "first_byte_seconds_sum") == {labels(adapter="medical-lora"): pytest.approx(0.12)}
    assert smallest_bucket(registry, "first_byte_seconds", adapter="medical-lora") == 0.05


def test_feedback_gives_a_mean_for_each_arm_also_below_zero(
    metrics: Metrics, registry: CollectorRegistry, decide: Decide
) -> None:
    metrics.decided(drawn(decide(), "medical", "b"))
    metrics.feedback("medical", "b", -1.0)
    metrics.feedback("medical", "b", 0.5)
    metrics.feedback(None, None, 1.0)
    metrics.feedback("nobody knows", "this", 1.0)
    assert read(registry, "feedback_count") == {
        labels(category="medical", arm="b"): 2,
        labels(category="", arm=""): 2,
    }
    assert read(registry, "feedback_sum")[labels(category="medical", arm="b")] == -0.5


def test_lines_of_the_audit_record_are_counted(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.recorded(3, 0)
    metrics.recorded(0, 2)
    assert read(registry, "audit_lines_total") == {labels(outcome="written"): 3, labels(outcome="lost"): 2}


def test_batches_and_who_waits_are_seen(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.batched("domain", 3, 5)
    assert read(registry, "waiting_texts") == {labels(method="domain"): 5}
    assert smallest_bucket(registry, "batch_texts", method="domain") == 4
    metrics.batched("domain", 0, 0)
    assert read(registry, "waiting_texts") == {labels(method="domain"): 0}
    assert read(registry, "batch_texts_count") == {labels(method="domain"): 1}


def test_loads_reloads_and_the_configuration_in_force_are_seen(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.loaded(0.02)
    metrics.failed()
    metrics.reloaded("taken")
    metrics.generation(7)
    metrics.snapshots(1000)
    assert read(registry, "adapter_loads_total") == {labels(outcome="loaded"): 1, labels(outcome="failed"): 1}
    assert smallest_bucket(registry, "adapter_load_seconds") == 0.025
    assert read(registry, "reloads_total") == {labels(outcome="taken"): 1}
    assert (read(registry, "config_generation"), read(registry, "snapshot_bytes")) == ({(): 7}, {(): 1000})


def test_names_of_a_configuration_come_through_whatever_they_hold(registry: CollectorRegistry, decide: Decide) -> None:
    metrics = Metrics(registry)
    names = ['say "no"', "two\nlines", "a\\b", "{x=1}", "🩺", "Größe", "# HELP me", "a\ud83d", " ", "\r"]
    metrics.configure(names, names)
    for name in names:
        metrics.decided(drawn(decide(name, name), name, name))
    seen = ["a?" if name == "a\ud83d" else name for name in names]
    assert read(registry, "decisions_total") == {
        labels(category=name, adapter=name, method="domain", reason="routed"): 1 for name in seen
    }
    assert read(registry, "arms_total") == {labels(category=name, arm=name): 1 for name in seen}


def test_ten_thousand_hostile_names_make_no_series(
    metrics: Metrics, registry: CollectorRegistry, decide: Decide
) -> None:
    def use(name: Any) -> None:
        decision = drawn(decide(name, name, name, reason=name, evidence={}), name, name)
        failed = replace(decision, plan=replace(decision.plan, steps=(Step(name, 1.0, failure=name),)))
        for one in (decision, failed):
            metrics.decided(one)
            metrics.ended(Outcome(one, 200, 1.0, 2.0, False))
        metrics.feedback(name, name, 1.0)
        metrics.batched(name, 1, 0)

    use("the first")
    before = {name: series.keys() for name, series in scrape(registry).items()}
    for number in range(10_000):
        use(f'"{number}\n\\{{🩺}} # TYPE \ud83d')
    assert {name: series.keys() for name, series in scrape(registry).items()} == before
    assert read(registry, "decisions_total") == {
        labels(category="other", adapter="dynamic", method="other", reason="other"): 20_002
    }


def test_over_ever_new_configurations_the_series_stay_bounded_and_nothing_is_lost(
    registry: CollectorRegistry, decide: Decide
) -> None:
    metrics, reloads = Metrics(registry), 4 * MOST_NAMES
    for number in range(reloads):
        metrics.configure([f"category {number}", "medical"], [f"adapter {number}", "medical-lora"])
        metrics.decided(drawn(decide(f"category {number}", f"adapter {number}"), f"category {number}", f"arm {number}"))
    metrics.decided(decide())
    found = read(registry, "decisions_total")
    assert sum(found.values()) == reloads + 1
    # The first and the lasting ones have their names, and there is one series for all that came too late.
    assert len(found) == MOST_NAMES + 1
    assert found[labels(category="category 0", adapter="adapter 0", method="domain", reason="routed")] == 1
    assert found[labels(category="medical", adapter="medical-lora", method="domain", reason="routed")] == 1
    late = reloads - (MOST_NAMES - 1)
    assert found[labels(category="other", adapter="other", method="domain", reason="routed")] == late
    assert sum(read(registry, "arms_total").values()) == reloads
    assert len(read(registry, "arms_total")) <= MOST_NAMES + 1


CHILD = """
import sys
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.types import Candidate, Decision, Outcome, Plan, AppliedEdit

count = int(sys.argv[1])
metrics = Metrics()
metrics.configure(["medical"], ["medical-lora"])
metrics.generation(count)
candidate = Candidate("medical-lora", "medical-lora")
plan = Plan((), "routed", "medical", 0.91, "domain", (candidate,), "01234567")
decision = Decision("chatcmpl-7", plan, candidate, "routed", AppliedEdit(), 3.0)
for _ in range(count):
    metrics.decided(decision)
    metrics.ended(Outcome(decision, 200, 40.0, 50.0, False))
    metrics.feedback("medical", None, -1.0)
metrics.batched("domain", count, count)
print("told", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(folder: Path, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that counts everything `count` times, and lives on."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", CHILD, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"told\n"
        yield child


def test_several_processes_sum_and_the_one_that_is_behind_shows(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    with process(tmp_path, 2) as behind, process(tmp_path, 5):
        decided = labels(category="medical", adapter="medical-lora", method="domain", reason="routed")
        assert read(registry, "decisions_total") == {decided: 7}
        assert read(registry, "responses_total") == {labels(adapter="medical-lora", status="2xx"): 7}
        assert read(registry, "overhead_seconds_count") == {(): 7}
        assert smallest_bucket(registry, "overhead_seconds") == 0.005
        assert read(registry, "feedback_sum") == {labels(category="medical", arm=""): -7}
        assert read(registry, "config_generation") == {(): 2}
        assert read(registry, "waiting_texts") == {labels(method="domain"): 7}
        behind.communicate()
        mark_process_dead(behind.pid, str(tmp_path))
        assert read(registry, "config_generation") == {(): 5}
        assert read(registry, "waiting_texts") == {labels(method="domain"): 5}
        assert read(registry, "decisions_total") == {decided: 7}
