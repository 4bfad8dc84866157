"""What the audit record takes from the event loop, and of a core."""

import statistics
import time
from functools import partial
from pathlib import Path

import pytest

from .conftest import Line, Open, child, files, said_by


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
