"""What the audit record takes from the event loop, and of a core."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random

import pytest

from vllm_lora_router.config.schema import Audit
from vllm_lora_router.observability.audit_destination import Destination
from vllm_lora_router.observability.audit_schema import by_hmac
from vllm_lora_router.observability.recorder import Recorder
from vllm_lora_router.types import (
    ActiveTopic,
    Affinity,
    AppliedEdit,
    Candidate,
    Classification,
    Client,
    Decision,
    Method,
    Outcome,
    Plan,
    RequestInfo,
    Scale,
    Step,
    Turn,
)

from .conftest import Line, Open, child, files, lines, said_by

pytestmark = pytest.mark.alone


def test_appending_takes_less_than_two_microseconds(open_log: Open) -> None:
    log, line = open_log(flush_s=5.0), partial(dict, n=0)

    def appended_in() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            log.append(line)
        return (time.perf_counter() - began) / 1000

    took_s = min(appended_in() for _ in range(20))
    print(f"appending a line takes {took_s * 1e6:.2f} us")
    assert took_s < 2e-6 and not log.lost


def test_a_long_queue_does_not_keep_the_event_loop_waiting(open_log: Open) -> None:
    def line(n: int) -> Line:
        return {"n": n, "sum": sum(range(3000))}

    log = open_log(flush_s=0.1)
    for n in range(5000):
        log.append(partial(line, n))
    time.sleep(0.12)
    late_s: list[float] = []
    while log.written < 5000:
        began = time.perf_counter()
        time.sleep(0.001)
        late_s.append(time.perf_counter() - began - 0.001)
    print(f"woken {statistics.median(late_s) * 1e3:.2f} ms late")
    assert len(late_s) > 20 and statistics.median(late_s) < 0.002


COST = """
def line(n):
    return {
        "type": "decision", "at": time.time(), "id": f"chatcmpl-{n:032x}", "text": "What is the dose of it? " * 20,
        "scores": {f"category-{k}": k / 14 for k in range(14)}, "refused": [],
        "served": {"model": "medical-lora", "adapter": "medical-lora", "digest": "0" * 64},
        "ms": {"classify": 2.125, "load": 0.25, "overhead": 3.125},
    }

counting = sys.argv[1] == "/counting"
log = None if counting else AuditLog(folder, **plenty)
n, began, cpu = 0, time.monotonic(), time.process_time()
while n < 5000:
    for _ in range(10):
        if log is not None:
            log.append(partial(line, n))
        n += 1
    time.sleep(max(0.0, began + n / 1000 - time.monotonic()))
used, took = time.process_time() - cpu, time.monotonic() - began
if log is not None:
    log.close()
    assert log.written == 5000
print(json.dumps([used, took]))
"""


def test_a_thousand_lines_a_second_take_less_than_three_percent_of_a_core(folder: Path) -> None:
    for _ in range(3):
        running = [child(COST, where) for where in (folder, Path("/counting"))]
        (used_s, took_s), (counting_s, _) = map(said_by, running)
        share = (used_s - counting_s) / took_s
        size = files(folder)[-1].stat().st_size / 5000
        print(f"1,000 lines of {size:.0f} bytes a second take {share:.2%} of a core, {share * 1e3:.1f} us a line")
        if share < 0.03:
            return
    pytest.fail("it took more each time")


CATEGORIES = ["medical", "legal", "coding", "travel", "cooking", "finance", "history", "physics", "sports", "music"]


def held(n: int) -> Decision:
    """One that has everything: two methods were asked, and the conversation kept its adapter for three turns."""
    chance = Random(n)

    def found(scale: Scale, evidence: Mapping[str, object]) -> Classification:
        scores = {category: chance.random() for category in CATEGORIES}
        best = max(CATEGORIES, key=scores.__getitem__)
        thresholds = dict.fromkeys(CATEGORIES, 0.6)
        return Classification(best, scores[best], scores, scale, 0.6, True, evidence, thresholds=thresholds)

    def turn(back: int, method: Method) -> Turn:
        return Turn(back, chance.choice(CATEGORIES), chance.random(), method, chance.random())

    nearest = {"nearest": f"Is this medicine safe? {n}", "similarity": chance.random()}
    labels = {"labels": {category: round(chance.random(), 4) for category in CATEGORIES[:5]}}
    last = found("probability", labels)
    steps = (
        Step("embedding", chance.uniform(1, 5), found("similarity", nearest)),
        Step("domain", chance.uniform(1, 5), last),
    )
    category = CATEGORIES[n % 10]
    affinity = Affinity(
        category,
        True,
        last.category,
        0.15,
        (turn(3, "domain"), turn(2, "embedding"), turn(1, "domain")),
        ActiveTopic(category, chance.random(), "domain"),
    )
    candidates = (Candidate(f"{category}-lora", f"{category}-lora"), Candidate("base", None))
    return Decision(
        f"chatcmpl-{n:032x}",
        Plan(steps, "affinity", category, last.score, "domain", candidates, "0a1b2c3d", affinity),
        candidates[0],
        "affinity",
        AppliedEdit(system_prompt=True, reasoning=False),
        chance.uniform(2, 9),
        version=f"{category}-lora@1a2b3c4d",
        content_digest="1a2b3c4d5e6f",
        request=RequestInfo("/v1/chat/completions", "chat", "MoM", Client("acme", "0a1b2c3d4e5f")),
        timings_ms={name: chance.uniform(0, 3) for name in ("read", "plan", "lease", "edit")},
    )


def cpu_s(count: int, once: Callable[[int], object]) -> float:
    """What it takes of a core to do it so many times, a thousand a second."""
    began, cpu = time.monotonic(), time.process_time()
    for n in range(count):
        once(n)
        if n % 10 == 9:
            time.sleep(max(0.0, began + (n + 1) / 1000 - time.monotonic()))
    return time.process_time() - cpu


def test_a_thousand_decisions_a_second_take_less_than_fifteen_percent_of_a_core(folder: Path) -> None:
    count = 3000
    decisions = [held(n) for n in range(count)]
    outcomes = [
        Outcome(decision, 200, 12.0 + n / 7, 340.0 + n / 7, False, "stop") for n, decision in enumerate(decisions)
    ]
    texts = [[f"What is the dose of it, {n}? " * 8] for n in range(count)]
    for run in range(3):
        recorder, where = Recorder(), folder / str(run)
        recorder.write_to(Destination(Audit(path=str(where)), where, by_hmac(b"k" * 32)))

        def record(n: int, recorder: Recorder = recorder) -> None:
            recorder.decided(decisions[n], texts[n])
            recorder.ended(outcomes[n])

        used_s = cpu_s(count, record)
        recorder.close()
        share = (used_s - cpu_s(count, lambda n: None)) / count * 1000
        assert recorder.status() == {"written": 2 * count, "lost": 0, "problem": None}
        written = lines(where)
        assert [line["type"] for line in written] == ["decision", "outcome"] * count
        first = written[0]["plan"]
        assert [len(step["scores"]) for step in first["steps"]] == [10, 10] and len(first["affinity"]["turns"]) == 3
        size = sum(file.stat().st_size for file in files(where)) / count
        print(f"1,000 decisions of {size:.0f} bytes a second take {share:.2%} of a core")
        if share < 0.15:
            return
    pytest.fail("it took more each time")
