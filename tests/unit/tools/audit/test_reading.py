"""Files of several processes as one record, and what is missing in it."""

from __future__ import annotations

import json
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.tools.audit.join import joined
from vllm_lora_router.tools.audit.reader import Gap, Line, Record, RecordError

from .conftest import at, decision, feedback, outcome

if TYPE_CHECKING:
    from .conftest import Write


def test_lines_of_several_processes_come_by_time(write: Write) -> None:
    write("a", *(decision(f"a{n}", n) for n in (0, 3, 4)))
    folder = write("b", *(decision(f"b{n}", n) for n in (1, 2, 5)))
    lines = list(Record.of(folder).lines())
    assert [line["id"] for line in lines] == ["a0", "b1", "b2", "a3", "a4", "b5"]
    assert [line["id"] for line in Record.of(folder / "b.jsonl", folder / "b.jsonl").lines()] == ["b1", "b2", "b5"]


def test_of_the_same_moment_they_come_by_process_and_number(write: Write) -> None:
    write("b", decision("b1"), decision("b2"))
    folder = write("a", decision("a1"), decision("a2"))
    assert [line["id"] for line in Record.of(folder).lines()] == ["a1", "a2", "b1", "b2"]


def test_outcome_and_feedback_are_joined_from_another_processs_file(write: Write) -> None:
    write("a", decision("1", 0), decision("2", 1), decision("3", 2), outcome("3", 3))
    folder = write("b", outcome("1", 4), feedback(1.0, "2", 60), feedback(0.0, "2", 50), feedback(1.0, "nobody's"))
    found = list(joined(Record.of(folder)))
    assert [one.decision["id"] for one in found] == ["1", "2", "3"]
    assert [one.outcome and one.outcome["at"] for one in found] == [at(4), None, at(3)]
    assert [[line["score"] for line in one.feedback] for one in found] == [[], [1.0, 0.0], []]
    assert found[1].line == {**found[1].decision, "outcome": None, "feedback": found[1].feedback}


def test_an_outcome_whose_clock_is_behind_is_joined_too(write: Write) -> None:
    write("a", decision("1", 1))
    folder = write("b", outcome("1", 0.5))
    (found,) = joined(Record.of(folder))
    assert found.outcome is not None


def test_requests_that_a_client_gave_one_id_get_their_outcomes_in_order(write: Write) -> None:
    folder = write(
        "a",
        decision("same", 0),
        decision("same", 1),
        decision("same", 2),
        outcome("same", 3, status=200),
        outcome("same", 4, status=500),
        feedback(1.0, "same"),
    )
    found = list(joined(Record.of(folder)))
    assert [one.outcome and one.outcome["status"] for one in found] == [200, 500, None]
    assert [len(one.feedback) for one in found] == [1, 0, 0]


def test_decisions_that_nobody_wants_keep_their_outcomes(write: Write) -> None:
    folder = write("a", decision("same", 0), decision("same", 1), outcome("same", 2, status=200), outcome("same", 3))
    (found,) = joined(Record.of(folder), lambda line: line["at"] == at(1))
    assert found.outcome is not None and found.outcome["at"] == at(3)


def test_the_end_of_a_file_that_was_cut_off_is_named_and_the_rest_is_read(write: Write) -> None:
    write("a", decision("1"), decision("2", 2), '{"run": "a", "seq": 3, "ty')
    write("empty")
    folder = write("b", "\0\0\0\n", '[1]\n{"type": "decision"}\n', decision("3", 1), first=-1)
    record = Record.of(folder)
    assert {line["id"] for line in record.lines()} == {"1", "2", "3"}
    assert record.missing.broken == [f"{folder}/a.jsonl:3", *(f"{folder}/b.jsonl:{n}" for n in (1, 2, 3))]
    assert record.missing and f"{folder}/a.jsonl:3: not a line" in record.missing.sentences()[0]


def test_numbers_that_are_missing_are_gaps_within_a_file_and_between_two(write: Write) -> None:
    write("1", decision(), decision(), run="r")
    write("2", decision(), run="r", first=5)
    folder = write("3", *(json.dumps({"run": "r", "seq": seq, **decision()}) + "\n" for seq in (6, 8)))
    record = Record.of(folder)
    assert record.missing.gaps == [Gap("r", 2, 5), Gap("r", 6, 8)]
    assert record.missing.sentences() == [
        "run r: 2 lines are missing between seq 2 and 5",
        "run r: 1 line is missing between seq 6 and 8",
    ]


def test_a_run_goes_on_in_its_next_file_and_others_have_their_own_numbers(write: Write) -> None:
    write("1", decision(), decision(), run="r")
    write("2", decision(), run="s")
    folder = write("0", decision(at_s=1), run="r", first=3)
    assert not Record.of(folder).missing


def test_files_that_were_cleared_away_are_told_of_and_are_no_loss(write: Write) -> None:
    missing = Record.of(write("1", decision(), run="r", first=501)).missing
    assert not missing and missing.cleared == [Gap("r", 0, 501)]
    assert missing.sentences() == ["run r begins at seq 501 here: earlier files are not here"]


def test_lines_that_could_not_be_written_are_counted(write: Write) -> None:
    lost = {"type": "lost", "at": at(2), "lines": 40}
    missing = Record.of(write("a", decision(), lost, decision(at_s=3), {**lost, "lines": 2})).missing
    assert missing and (missing.lost, missing.gaps, missing.broken) == (42, [], [])
    assert missing.sentences() == ["42 lines could not be written when they came, and are lost"]


def test_what_the_server_writes_is_read(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, rotate_bytes=4000, rotate_s=1e9)
    for n in range(20):
        log.append(lambda n=n: decision(f"chatcmpl-{n}", n, text="half an emoji \ud83d"))
        log.append(lambda n=n: outcome(f"chatcmpl-{n}", n + 0.5))
    log.close()
    record = Record.of(tmp_path)
    assert len(record.files) > 5 and not record.missing
    found = list(joined(record))
    assert [one.decision["id"] for one in found] == [f"chatcmpl-{n}" for n in range(20)]
    assert all(one.outcome is not None and one.decision["text"].endswith("\ud83d") for one in found)


def test_in_memory_is_a_line_of_each_file_and_what_is_under_way(write: Write) -> None:
    def lines(name: str) -> Iterator[Line]:
        yield decision(f"{name}-lost", 0, text="x" * 8000)
        for n in range(1, 400):
            yield decision(f"{name}{n}", n, text="x" * 8000)
            yield outcome(f"{name}{n}", n + 2.5)

    write("a", *lines("a"))
    folder = write("b", *lines("b"))
    tracemalloc.start()
    assert sum(1 for _ in joined(Record.of(folder))) == 800
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (folder / "a.jsonl").stat().st_size > 3_000_000 and peak < 500_000


def test_no_more_files_are_open_at_once_than_overlap(write: Write) -> None:
    for n in range(1, 100):
        write(f"{n:03}", decision(f"{n}", n), outcome(f"{n}", n + 0.5))
    folder = write("000", decision("0", 0), outcome("0", 0.5))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, limits[1]))
    try:
        assert sum(1 for _ in joined(Record.of(folder))) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere: no such folder or file; router\.audit\.path names"):
        Record.of(tmp_path / "nowhere")
    with pytest.raises(RecordError, match=r"no \*\.jsonl in this folder"):
        Record.of(tmp_path)
