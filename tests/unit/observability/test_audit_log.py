"""The audit log with real files, hanging disks and killed processes."""

import contextlib
import gc
import json
import logging
import os
import re
import signal
import statistics
import threading
import time
import weakref
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from vllm_lora_router.observability import audit_log
from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.observability.audit_schema import AuditLine

from .conftest import OpenLog, child, files, lines, numbers, parse, until

FILE_NAME = re.compile(r"[\w.-]+-(\d+)-\d{8}T\d{6}\.\d{6}Z\.jsonl")


def test_lines_are_on_disk_in_order(folder: Path) -> None:
    log = AuditLog(folder, rotate_bytes=1 << 30, rotate_s=1e9)
    for n in range(500):
        log.append(partial(dict, n=n))
    until(lambda: log.written == 500)
    (file,) = files(folder)
    assert numbers(lines(folder)) == list(range(500))
    assert file.read_text().startswith(f'{{"schema":2,"run":"{log.run}","seq":1,"n":0}}\n')
    assert re.fullmatch("[0-9a-f]{8}", log.run)
    name = FILE_NAME.fullmatch(file.name)
    assert name and int(name[1]) == os.getpid()
    assert file.stat().st_mode & 0o777 & ~0o640 == 0
    assert (log.lost, log.problem) == (0, None)
    log.close()


def test_lines_within_the_flush_time_are_one_write(open_log: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    write = os.write

    def counting_write(fd: int, data: bytes) -> int:
        writes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counting_write)
    log = open_log(flush_s=0.2)
    for n in range(100):
        log.append(partial(dict, n=n))
        time.sleep(0.0005)
    until(lambda: log.written == 100)
    assert len(writes) == 1


def test_close_writes_queued_lines_and_refuses_later_ones(folder: Path, open_log: OpenLog) -> None:
    log = open_log(flush_s=60.0)
    for n in range(100):
        log.append(partial(dict, n=n))
    log.close()
    log.close()
    assert numbers(lines(folder)) == list(range(100))
    log.append(partial(dict, n=100))
    assert (log.written, log.lost) == (100, 1)


def test_close_without_a_timeout_still_writes_queued_lines(
    folder: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(flush_s=60.0)
    for n in range(5000):
        log.append(partial(dict, n=n))
    log.close(0)
    assert log.written < 5000
    until(lambda: log.written == 5000)
    assert numbers(lines(folder)) == list(range(5000)) and not log.lost
    assert caplog.messages == []


def test_folder_is_created_with_the_first_line(folder: Path, open_log: OpenLog) -> None:
    log = open_log()
    time.sleep(0.1)
    assert not folder.exists()
    log.append(partial(dict, n=0))
    until(lambda: log.written)
    assert len(files(folder)) == 1


def test_log_keeps_no_reference_to_a_request_after_its_line_is_built(open_log: OpenLog) -> None:
    class Request:
        def line(self) -> AuditLine:
            return {"n": 0}

    log, request = open_log(), Request()
    reference = weakref.ref(request)
    log.append(request.line)
    del request
    until(lambda: log.written)
    gc.collect()
    assert reference() is None

    log.close()
    request = Request()
    reference = weakref.ref(request)
    log.append(request.line)
    del request
    gc.collect()
    assert reference() is None


def test_written_and_lost_lines_are_reported_immediately(open_log: OpenLog, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()

    def report(written: int, lost: int) -> None:
        counts.update(written=written, lost=lost)
        raise ValueError("no such metric")

    log = open_log(report=report)
    for n in range(3):
        log.append(partial(dict, n=n))
        log.append(lambda: {"n": object()})
        until(lambda n=n: counts == {"written": n + 1, "lost": n + 1})
    assert [message for message in caplog.messages if "could not be counted in metrics (ValueError at " in message]


def test_every_line_of_concurrent_threads_is_written_or_counted_as_lost(folder: Path, open_log: OpenLog) -> None:
    log = open_log(max_lines=500)

    def append(thread: int) -> None:
        for n in range(3000):
            log.append(partial(dict, n=(thread, n)))

    threads = [threading.Thread(target=append, args=[thread]) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    recorded = numbers(lines(folder))
    losses = [number[1] for number in recorded if isinstance(number, tuple)]
    written = [number for number in recorded if isinstance(number, list)]
    assert log.lost and sum(losses) == log.lost and len(written) == log.written
    assert log.written + log.lost == 12000
    for thread in range(4):
        of_thread = [n for writer, n in written if writer == thread]
        assert of_thread == sorted(of_thread)


APPEND_UNTIL_KILLED = """
log = AuditLog(folder, **no_rotation)
n, began = 0, time.time()
while True:
    while n < 2000 * (time.time() - began):
        log.append(partial(dict, n=n, at=time.time(), text="x" * 500))
        n += 1
    if n // 100 != (n - 10) // 100:
        print(n, time.time(), flush=True)
    time.sleep(0.002)
"""


def test_killed_process_loses_at_most_its_last_second(folder: Path, full: bool) -> None:
    """The short form checks only that the lines on disk are complete and stay."""
    with child(APPEND_UNTIL_KILLED, folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        until(lambda: len(lines(folder)) > 500)
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        killed_at = time.time()
        printed = [line.split() for line in process.stdout.read().splitlines()]
    (file,) = files(folder)
    complete, _, _ = file.read_text().rpartition("\n")
    recorded = [json.loads(line) for line in complete.splitlines()]
    assert numbers(recorded) == list(range(len(recorded)))
    assert len(recorded) > 500
    if full:
        assert recorded[-1]["at"] > killed_at - 1
        appended = [int(n) for n, at in printed if float(at) < killed_at - 1]
        assert appended[-1] > 500 and len(recorded) >= appended[-1]


def test_unusable_folder_is_logged_once_and_lines_are_written_when_it_is_usable(
    folder: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("")
    with caplog.at_level(logging.INFO, "vllm_lora_router.observability"):
        log = open_log()
        log.append(partial(dict, n=0))
        until(lambda: caplog.records)
        assert log.problem == f"{folder}: Not a directory"
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        time.sleep(1.2)
        log.append(partial(dict, n=1))
        folder.unlink()
        until(lambda: log.written == 2)
        until(lambda: len(caplog.records) > 1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert str(folder) in caplog.messages[0]
    assert "1 lines wait until the problem is solved; 0 lines lost so far" in caplog.messages[0]
    assert (numbers(lines(folder)), log.problem) == ([0, 1], None)


def test_close_counts_unwritten_lines_as_lost(
    folder: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("")
    log = open_log()
    for n in range(3):
        log.append(partial(dict, n=n))
    log.close(0.5)
    assert (log.written, log.lost) == (0, 3)
    assert "closed with 3 lines never written" in caplog.text


def test_append_never_waits_for_a_hanging_disk(
    folder: Path, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full: bool
) -> None:
    monkeypatch.setattr(audit_log, "STUCK_S", 0.2)

    def create(path: Path) -> int:  # a pipe without a reader accepts 64 kB
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)

    live = 0

    class Request:
        def __init__(self, n: int) -> None:
            nonlocal live
            live += 1
            self.n = n

        def __del__(self) -> None:
            nonlocal live
            live -= 1

        def line(self) -> AuditLine:
            return {"n": self.n, "text": "x" * 1000}

    log = open_log(create=create, max_lines=1000)
    appended, times_s = 0, []

    def append(count: int) -> None:
        nonlocal appended
        for n in range(appended, appended + count):
            line = Request(n).line
            began = time.perf_counter()
            log.append(line)
            times_s.append(time.perf_counter() - began)
        appended += count

    append(200)
    until(lambda: log.problem)
    assert re.fullmatch(f"{re.escape(str(folder))} has not responded for \\d+ s", log.problem or "")
    times_s.clear()
    append(20_000)
    # An append that waited for the disk would never return.
    assert not full or (statistics.quantiles(times_s, n=1000)[-1] < 50e-6 and max(times_s) < 0.05)
    assert live <= 1001 and log.lost == 19_000

    began = time.monotonic()
    log.close(0.3)
    assert time.monotonic() - began > 0.25
    assert "closing timed out after 0.3 s with 1200 lines not written" in caplog.text
    append(5)

    content = bytearray()
    reader = os.open(files(folder)[0], os.O_RDONLY | os.O_NONBLOCK)

    def read_all() -> bool:
        is_done = log.written == 1200
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reader, 1 << 20):
                content.extend(data)
        return is_done

    until(read_all)
    os.close(reader)
    assert log.written + log.lost == appended
    assert numbers(parse(content.decode())) == [*range(1200), ("lost", 19_005)]
