"""The audit log, on real files, hanging disks and processes that are killed."""

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

from .conftest import Line, Open, child, files, lines, parsed, told, until

pytestmark = pytest.mark.alone

NAME = re.compile(r"[\w.-]+-(\d+)-\d{8}T\d{6}\.\d{6}Z\.jsonl")


def test_lines_are_on_disk_within_a_second_in_the_order_they_came(folder: Path) -> None:
    log = AuditLog(folder, rotate_bytes=1 << 30, rotate_s=1e9)
    for n in range(500):
        log.append(partial(dict, n=n))
    began = time.monotonic()
    until(lambda: log.written == 500)
    assert time.monotonic() - began < 1
    (file,) = files(folder)
    assert told(lines(folder)) == list(range(500))
    assert file.read_text().startswith(f'{{"run":"{log.run}","seq":1,"n":0}}\n')
    assert re.fullmatch("[0-9a-f]{8}", log.run)
    named = NAME.fullmatch(file.name)
    assert named and int(named[1]) == os.getpid()
    assert file.stat().st_mode & 0o777 & ~0o640 == 0
    assert (log.lost, log.problem) == (0, None)
    log.close()


def test_lines_that_come_within_a_moment_are_one_write(open_log: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    write = os.write

    def noted(fd: int, data: bytes) -> int:
        writes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", noted)
    log = open_log(flush_s=0.2)
    for n in range(100):
        log.append(partial(dict, n=n))
        time.sleep(0.0005)
    until(lambda: log.written == 100)
    assert len(writes) == 1


def test_closing_writes_what_is_left_and_does_not_wait_for_more(folder: Path, open_log: Open) -> None:
    log = open_log(flush_s=60.0)
    for n in range(100):
        log.append(partial(dict, n=n))
    began = time.monotonic()
    log.close()
    log.close()
    assert time.monotonic() - began < 1
    assert told(lines(folder)) == list(range(100))
    log.append(partial(dict, n=100))
    assert (log.written, log.lost) == (100, 1)


def test_closing_without_waiting_still_writes_what_is_left(
    folder: Path, open_log: Open, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(flush_s=60.0)
    for n in range(5000):
        log.append(partial(dict, n=n))
    log.close(0)
    assert log.written < 5000
    until(lambda: log.written == 5000)
    assert told(lines(folder)) == list(range(5000)) and not log.lost
    assert caplog.messages == []


def test_nothing_is_made_before_there_is_a_line(folder: Path, open_log: Open) -> None:
    log = open_log()
    time.sleep(0.1)
    assert not folder.exists()
    log.append(partial(dict, n=0))
    until(lambda: log.written)
    assert len(files(folder)) == 1


def test_nothing_of_a_request_is_kept_once_its_line_is_built(open_log: Open) -> None:
    class Request:
        def line(self) -> Line:
            return {"n": 0}

    log, request = open_log(), Request()
    left = weakref.ref(request)
    log.append(request.line)
    del request
    until(lambda: log.written)
    gc.collect()
    assert left() is None

    log.close()
    request = Request()
    left = weakref.ref(request)
    log.append(request.line)
    del request
    gc.collect()
    assert left() is None


def test_what_was_written_and_lost_is_reported_as_it_happens(open_log: Open, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()

    def counted(written: int, lost: int) -> None:
        counts.update(written=written, lost=lost)
        raise ValueError("no such metric")

    log = open_log(counted=counted)
    for n in range(3):
        log.append(partial(dict, n=n))
        log.append(lambda: {"n": object()})
        until(lambda n=n: counts == {"written": n + 1, "lost": n + 1})
    assert [message for message in caplog.messages if "could not be counted: ValueError at " in message]


def test_threads_may_append_at_once_and_every_line_is_accounted_for(folder: Path, open_log: Open) -> None:
    log = open_log(most_lines=500)

    def append(thread: int) -> None:
        for n in range(3000):
            log.append(partial(dict, n=(thread, n)))

    threads = [threading.Thread(target=append, args=[thread]) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = told(lines(folder))
    losses = [one[1] for one in found if isinstance(one, tuple)]
    kept = [one for one in found if isinstance(one, list)]
    assert log.lost and sum(losses) == log.lost and len(kept) == log.written
    assert log.written + log.lost == 12000
    for thread in range(4):
        own = [n for by, n in kept if by == thread]
        assert own == sorted(own)


KILLED = """
log = AuditLog(folder, **plenty)
n, began = 0, time.time()
while True:
    while n < 2000 * (time.time() - began):
        log.append(partial(dict, n=n, at=time.time(), text="x" * 500))
        n += 1
    if n // 100 != (n - 10) // 100:
        print(n, time.time(), flush=True)
    time.sleep(0.002)
"""


def test_a_process_that_is_killed_loses_at_most_its_last_second(folder: Path) -> None:
    with child(KILLED, folder) as running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(2.0)
        running.send_signal(signal.SIGKILL)
        killed_at = time.time()
        said = [line.split() for line in running.stdout.read().splitlines()]
    (file,) = files(folder)
    whole, _, _ = file.read_text().rpartition("\n")
    found = [json.loads(line) for line in whole.splitlines()]
    assert told(found) == list(range(len(found)))
    assert found[-1]["at"] > killed_at - 1
    appended = [int(n) for n, at in said if float(at) < killed_at - 1]
    assert appended[-1] > 500 and len(found) >= appended[-1]


def test_a_folder_that_is_a_file_is_said_once_and_its_lines_are_written_when_it_is_none(
    folder: Path, open_log: Open, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("")
    with caplog.at_level(logging.INFO, "vllm_lora_router.record"):
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
    assert str(folder) in caplog.messages[0] and "1 lines wait; 0 lines were lost so far" in caplog.messages[0]
    assert (told(lines(folder)), log.problem) == ([0, 1], None)


def test_lines_that_were_never_written_are_lost_when_it_closes(
    folder: Path, open_log: Open, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("")
    log = open_log()
    for n in range(3):
        log.append(partial(dict, n=n))
    began = time.monotonic()
    log.close(0.5)
    assert time.monotonic() - began < 0.5
    assert (log.written, log.lost) == (0, 3)
    assert "3 lines were never written" in caplog.text


def test_nobody_waits_for_a_disk_that_hangs_and_every_line_is_accounted_for(
    folder: Path, open_log: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_log, "STUCK_S", 0.2)

    def create(path: Path) -> int:  # a pipe that nobody reads takes 64 kB, and then no more
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

        def line(self) -> Line:
            return {"n": self.n, "text": "x" * 1000}

    log = open_log(create=create, most_lines=1000)
    appended, took_s = 0, []

    def append(count: int) -> None:
        nonlocal appended
        for n in range(appended, appended + count):
            line = Request(n).line
            began = time.perf_counter()
            log.append(line)
            took_s.append(time.perf_counter() - began)
        appended += count

    append(200)
    until(lambda: log.problem)
    assert re.fullmatch(f"{re.escape(str(folder))} has not answered for [01] s", log.problem or "")
    took_s.clear()
    append(20_000)
    assert statistics.quantiles(took_s, n=1000)[-1] < 50e-6 and max(took_s) < 0.05
    assert live <= 1001 and log.lost == 19_000

    began = time.monotonic()
    log.close(0.3)
    assert 0.25 < time.monotonic() - began < 1
    assert "its last 1200 lines are not written after 0.3 s" in caplog.text
    append(5)

    read = bytearray()
    reader = os.open(files(folder)[0], os.O_RDONLY | os.O_NONBLOCK)

    def drained() -> bool:
        ended = log.written == 1200
        with contextlib.suppress(BlockingIOError):
            while some := os.read(reader, 1 << 20):
                read.extend(some)
        return ended

    until(drained)
    os.close(reader)
    assert log.written + log.lost == appended
    assert told(parsed(read.decode())) == [*range(1200), ("lost", 19_005)]
