"""Reading and joining the files of several processes, and the lines that are missing."""

from __future__ import annotations

import json
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.observability.audit_schema import SCHEMA_VERSION, AuditLine
from vllm_lora_router.tools.audit.join import join_decisions
from vllm_lora_router.tools.audit.reader import AuditRecord, AuditRecordError, Gap
from vllm_lora_router.types import RequestInfo

from .conftest import at, decision, feedback, outcome

if TYPE_CHECKING:
    from .conftest import Write


def test_lines_of_several_processes_are_in_order_of_time(write: Write) -> None:
    write("a", *(decision(f"a{n}", n) for n in (0, 3, 4)))
    folder = write("b", *(decision(f"b{n}", n) for n in (1, 2, 5)))
    lines = list(AuditRecord.open(folder).lines())
    assert [line["id"] for line in lines] == ["a0", "b1", "b2", "a3", "a4", "b5"]
    record = AuditRecord.open(folder / "b.jsonl", folder / "b.jsonl")
    assert [line["id"] for line in record.lines()] == ["b1", "b2", "b5"]


def test_lines_of_the_same_time_are_in_order_of_process_and_number(write: Write) -> None:
    write("b", decision("b1"), decision("b2"))
    folder = write("a", decision("a1"), decision("a2"))
    assert [line["id"] for line in AuditRecord.open(folder).lines()] == ["a1", "a2", "b1", "b2"]


def test_outcome_and_feedback_are_joined_from_another_process(write: Write) -> None:
    write("a", decision("1", 0), decision("2", 1), decision("3", 2), outcome("3", 3))
    folder = write("b", outcome("1", 4), feedback(1.0, "2", 60), feedback(0.0, "2", 50), feedback(1.0, "unknown"))
    joined = list(join_decisions(AuditRecord.open(folder)))
    assert [each.decision["id"] for each in joined] == ["1", "2", "3"]
    assert [each.outcome and each.outcome["at"] for each in joined] == [at(4), None, at(3)]
    assert [[line["score"] for line in each.feedback] for each in joined] == [[], [1.0, 0.0], []]
    assert joined[1].line == {**joined[1].decision, "outcome": None, "feedback": joined[1].feedback}


def test_outcome_before_its_decision_is_joined(write: Write) -> None:
    write("a", decision("1", 1))
    folder = write("b", outcome("1", 0.5))
    (joined,) = join_decisions(AuditRecord.open(folder))
    assert joined.outcome is not None


def test_requests_with_the_same_id_get_their_outcomes_in_order(write: Write) -> None:
    folder = write(
        "a",
        decision("same", 0),
        decision("same", 1),
        decision("same", 2),
        outcome("same", 3, status=200),
        outcome("same", 4, status=500),
        feedback(1.0, "same"),
    )
    joined = list(join_decisions(AuditRecord.open(folder)))
    assert [each.outcome and each.outcome["status"] for each in joined] == [200, 500, None]
    assert [len(each.feedback) for each in joined] == [1, 0, 0]


def test_outcomes_are_joined_by_key_if_two_clients_chose_the_same_id(write: Write) -> None:
    folder = write(
        "a",
        decision("same", 0, key="1"),
        decision("same", 1, key="2"),
        outcome("same", 2, key="2", status=500),
        outcome("same", 3, key="1", status=200),
    )
    joined = list(join_decisions(AuditRecord.open(folder)))
    assert [(each.decision["key"], each.outcome and each.outcome["status"]) for each in joined] == [
        ("1", 200),
        ("2", 500),
    ]


def test_feedback_is_joined_to_the_decision_of_its_key_or_else_of_its_sender(write: Write) -> None:
    requests = [RequestInfo(tenant=tenant, api_key_fingerprint="f00") for tenant in ("acme", "globex")]
    folder = write(
        "a",
        *(decision("same", n, key=f"{n}", request=request) for n, request in enumerate(requests)),
        {**feedback(0.1, "same"), "key": "1", "tenant": "globex", "client": "f00"},
        {**feedback(0.2, "same"), "tenant": "acme", "client": "f00"},
        {**feedback(0.3, "same"), "tenant": "acme", "client": "another"},
        {**feedback(0.4, "same"), "tenant": None, "client": "f00"},
    )
    joined = list(join_decisions(AuditRecord.open(folder)))
    assert [[line["score"] for line in each.feedback] for each in joined] == [[0.2], [0.1]]


def test_records_without_keys_are_joined_by_id(write: Write) -> None:
    lines = [decision("1", 0), decision("2", 1), outcome("2", 2), outcome("1", 3)]
    for line in lines:
        del line["key"]
    joined = list(join_decisions(AuditRecord.open(write("a", *lines))))
    assert [(each.decision["id"], each.outcome and each.outcome["id"]) for each in joined] == [("1", "1"), ("2", "2")]


def test_decisions_that_do_not_match_keep_their_outcomes(write: Write) -> None:
    folder = write("a", decision("same", 0), decision("same", 1), outcome("same", 2, status=200), outcome("same", 3))
    (joined,) = join_decisions(AuditRecord.open(folder), lambda line: line["at"] == at(1))
    assert joined.outcome is not None and joined.outcome["at"] == at(3)


def test_invalid_lines_are_reported_and_the_others_are_read(write: Write) -> None:
    write("a", decision("1"), decision("2", 2), '{"run": "a", "seq": 3, "ty')
    write("empty")
    folder = write("b", "\0\0\0\n", '[1]\n{"type": "decision"}\n', decision("3", 1), first=-1)
    record = AuditRecord.open(folder)
    assert {line["id"] for line in record.lines()} == {"1", "2", "3"}
    assert record.missing.invalid == [f"{folder}/a.jsonl:3", *(f"{folder}/b.jsonl:{n}" for n in (1, 2, 3))]
    assert record.missing and record.missing.sentences()[0] == (
        f"{folder}/a.jsonl:3: invalid line (truncated or changed)"
    )


def test_missing_numbers_are_gaps_within_a_file_and_between_files(write: Write) -> None:
    write("1", decision(), decision(), run="r")
    write("2", decision(), run="r", first=5)
    numbered = [{"schema": SCHEMA_VERSION, "run": "r", "seq": seq, **decision()} for seq in (6, 8)]
    folder = write("3", *(json.dumps(line) + "\n" for line in numbered))
    record = AuditRecord.open(folder)
    assert record.missing.gaps == [Gap("r", 2, 5), Gap("r", 6, 8)]
    assert record.missing.sentences() == [
        "run r: 2 lines are missing between seq 2 and 5",
        "run r: 1 line is missing between seq 6 and 8",
    ]


def test_numbering_continues_in_the_next_file_of_a_run(write: Write) -> None:
    write("1", decision(), decision(), run="r")
    write("2", decision(), run="s")
    folder = write("0", decision(at_s=1), run="r", first=3)
    assert not AuditRecord.open(folder).missing


def test_deleted_files_are_reported_but_are_not_a_loss(write: Write) -> None:
    missing = AuditRecord.open(write("1", decision(), run="r", first=501)).missing
    assert not missing and missing.deleted == [Gap("r", 0, 501)]
    assert missing.sentences() == ["run r begins at seq 501: earlier files are missing"]


def test_lost_lines_are_counted(write: Write) -> None:
    lost = {"type": "lost", "at": at(2), "lines": 40}
    missing = AuditRecord.open(write("a", decision(), lost, decision(at_s=3), {**lost, "lines": 2})).missing
    assert missing and (missing.lost, missing.gaps, missing.invalid) == (42, [], [])
    assert missing.sentences() == ["42 lines could not be written and are lost"]


def test_files_of_the_audit_log_are_read_completely(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, rotate_bytes=4000, rotate_s=1e9)
    for n in range(20):
        log.append(lambda n=n: decision(f"chatcmpl-{n}", n, text="an unpaired surrogate \ud83d"))
        log.append(lambda n=n: outcome(f"chatcmpl-{n}", n + 0.5))
    log.close()
    record = AuditRecord.open(tmp_path)
    assert len(record.files) > 5 and not record.missing
    joined = list(join_decisions(record))
    assert [each.decision["id"] for each in joined] == [f"chatcmpl-{n}" for n in range(20)]
    assert all(each.outcome is not None and each.decision["text"].endswith("\ud83d") for each in joined)


def test_memory_holds_one_line_of_each_file_and_the_requests_in_progress(write: Write) -> None:
    def lines(name: str) -> Iterator[AuditLine]:
        yield decision(f"{name}-lost", 0, text="x" * 8000)
        for n in range(1, 400):
            yield decision(f"{name}{n}", n, text="x" * 8000)
            yield outcome(f"{name}{n}", n + 2.5)

    write("a", *lines("a"))
    folder = write("b", *lines("b"))
    tracemalloc.start()
    assert sum(1 for _ in join_decisions(AuditRecord.open(folder))) == 800
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (folder / "a.jsonl").stat().st_size > 3_000_000 and peak < 500_000


def test_only_files_that_overlap_in_time_are_open_together(write: Write) -> None:
    for n in range(1, 100):
        write(f"{n:03}", decision(f"{n}", n), outcome(f"{n}", n + 0.5))
    folder = write("000", decision("0", 0), outcome("0", 0.5))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, limits[1]))
    try:
        assert sum(1 for _ in join_decisions(AuditRecord.open(folder))) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditRecordError, match=r"missing: no such folder or file; name the folder of router\.audit"):
        AuditRecord.open(tmp_path / "missing")
    with pytest.raises(AuditRecordError, match=r"no \*\.jsonl file here; name the folder of router\.audit\.path"):
        AuditRecord.open(tmp_path)
