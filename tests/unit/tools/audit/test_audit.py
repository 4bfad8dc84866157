"""`vllm-lora-router audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.observability.audit_destination import hmac_key
from vllm_lora_router.observability.audit_schema import by_hmac

from .conftest import at, decision, feedback, outcome

if TYPE_CHECKING:
    from .conftest import Run, Write

Line = dict[str, Any]


def unsure(id: str, at_s: float) -> Line:
    line = decision(id, at_s, reason="below_threshold")
    line["plan"] |= {"reason": "below_threshold", "category": None, "method": None, "confidence": None}
    line["plan"]["steps"][0] |= {"scores": {"medical": 0.5}, "score": 0.5, "sure": False}
    line["plan"]["candidates"].pop(0)
    line["served"] |= {"model": "base", "adapter": None, "version": None, "digest": None}
    return line


@pytest.fixture
def folder(write: Write) -> Path:
    """Three medical decisions and an unsure one, of two processes."""
    write("a", decision("1", 0), outcome("1", 1), decision("2", 10, text="a cough"), outcome("2", 11, status=500))
    return write(
        "b",
        unsure("3", 5),
        outcome("3", 6, status=None, aborted=True, finish=None, first_byte_ms=None),
        decision("4", 20, text="a cough"),
        feedback(0.5, "1", 30),
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]


def test_the_summary_counts_ways_and_responses(run: Run, folder: Path) -> None:
    status, printed, errors = run("audit", folder)
    lines = printed.splitlines()
    assert (status, errors) == (0, "")
    assert lines[0] == f"4 decisions of 2 processes, {at(0)} to {at(20)}"
    rows = [cells(line) for line in lines]
    assert ["medical", "medical-lora", "domain", "routed", "3", "75.0%"] in rows
    assert ["-", "base", "-", "below_threshold", "1", "25.0%"] in rows
    assert ["status", "2xx 1, none 1, 5xx 1"] in rows
    assert ["finish reason", "stop 2, - 1"] in rows
    assert ["aborted", "1"] in rows and ["without outcome", "1"] in rows
    assert ["overhead", "p50 3.0 ms, p95 3.0 ms"] in rows and ["first byte", "p50 20.0 ms, p95 20.0 ms"] in rows
    assert ["feedback", "1, mean 0.5"] in rows
    assert lines[-1] == "missing: 0 broken lines, 0 in gaps of the numbering, 0 lost"


def test_the_summary_as_json_is_nothing_but_json(run: Run, folder: Path) -> None:
    found = json.loads(run("audit", folder, "--json")[1])
    assert (found["decisions"], found["processes"], found["aborted"], found["mean_score"]) == (4, 2, 1, 0.5)
    assert found["by"]["category"] == {"medical": 3, "-": 1} and found["by"]["served"] == {"medical-lora": 3, "base": 1}
    assert found["ways"][0]["decisions"] == 3 and found["status"] == {"2xx": 1, "5xx": 1, "none": 1}
    assert found["missing"] == {"broken": [], "gaps": [], "lost": 0, "cleared": []}


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ((), "1 3 2 4"),
        (("--category", "medical"), "1 2 4"),
        (("--category", "-"), "3"),
        (("--adapter", "medical-lora"), "1 2 4"),
        (("--adapter", "base"), "3"),
        (("--method", "domain", "--since", at(1)), "2 4"),
        (("--reason", "below_threshold"), "3"),
        (("--tenant", "acme", "--until", at(10)), "1 3"),
        (("--client", "nobody"), ""),
        (("--path", "/v1/chat/completions", "--since", "2026-11-25T13:00:05+01:00"), "3 2 4"),
        (("--since", "2026-11-26"), ""),
        (("--text", "a cough"), "2 4"),
    ],
)
def test_lines_are_filtered_and_come_by_time_with_what_followed(
    run: Run, folder: Path, filters: tuple[str, ...], ids: str
) -> None:
    status, printed, _ = run("audit", folder, *filters, "--lines")
    lines = [json.loads(line) for line in printed.splitlines()]
    assert (status, " ".join(line["id"] for line in lines)) == (0, ids)
    for line in lines:
        assert (line["outcome"] or {}).get("id", line["id"]) == line["id"]
        assert [one["score"] for one in line["feedback"]] == ([0.5] if line["id"] == "1" else [])
    assert sum(line["outcome"] is None for line in lines) == ("4" in ids)


@pytest.mark.parametrize(("ago", "ids"), [("90s", "new"), ("1.5h", "new"), ("2w", "old new"), ("1d", "new")])
def test_since_may_be_how_long_ago(run: Run, write: Write, ago: str, ids: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime as module

    class Clock(module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> module.datetime:
            return module.datetime.fromisoformat(at(30))

    monkeypatch.setattr("vllm_lora_router.tools.audit.filters.datetime", Clock)
    folder = write("a", decision("old", -3 * 86400), decision("new", 0))
    printed = run("audit", folder, "--lines", "--since", ago)[1]
    assert " ".join(json.loads(line)["id"] for line in printed.splitlines()) == ids


def test_a_moment_that_is_none_is_told(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("audit", folder, "--since", "yesterday")
    assert "'yesterday' is no moment: write 2026-01-31T12:00:00Z" in capsys.readouterr().err


def test_a_decision_that_was_only_observed_is_found_by_what_it_would_have_been(run: Run, write: Write) -> None:
    observed = decision("1", reason="observe")
    folder = write("a", observed, decision("2", reason="not_loadable"))
    for reason, ids in (("observe", ["1"]), ("routed", ["1"]), ("not_loadable", ["2"])):
        printed = run("audit", folder, "--lines", "--reason", reason)[1]
        assert [json.loads(line)["id"] for line in printed.splitlines()] == ids


def test_a_text_is_found_by_its_keyed_hash(run: Run, write: Write, tmp_path: Path) -> None:
    words = by_hmac(hmac_key(tmp_path / "record"))
    lines = [decision("1"), decision("2", 1), decision("3", 2)]
    for line, texts in zip(lines, (["a cough"], ["a fever"], ["x", "a cough"]), strict=True):
        del line["text"]
        line |= words(texts)
    folder = write("a", *lines)
    status, printed, _ = run("audit", folder, "--text", "a cough")
    assert (status, [cells(line)[1] for line in printed.splitlines() if "2026" in line]) == (0, ["1", "3"])
    assert [json.loads(line)["id"] for line in run("audit", folder, "--text", "a cough", "--json")[1].splitlines()] == [
        "1",
        "3",
    ]
    status, printed, errors = run("audit", folder, "--text", "a cold")
    assert (status, printed) == (1, "") and "no decision on this very text" in errors
    # A file of the record is as good as its folder.
    assert run("audit", folder / "a.jsonl", "--text", "a fever")[0] == 0


def test_a_decision_is_explained(run: Run, folder: Path) -> None:
    status, printed, errors = run("audit", folder, "--explain", "1")
    assert (status, errors) == (0, "")
    assert "So the category is medical (0.8300 by the domain model)." in printed.splitlines()
    assert any(line.startswith("Feedback at") for line in printed.splitlines())
    told = json.loads(run("audit", folder, "--explain", "1", "--json")[1])
    assert (told["again"]["model"], told["change"]["what"], told["change"]["amount"]) == (
        "medical-lora",
        "score",
        -0.2301,
    )


def test_an_id_that_is_not_there_is_told(run: Run, folder: Path) -> None:
    assert run("audit", folder, "--explain", "no\nid") == (1, "", "no decision has the id no\\nid here\n")


def test_a_record_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    status, printed, errors = run("audit", tmp_path / "nowhere")
    assert (status, printed) == (1, "")
    assert errors == f"{tmp_path}/nowhere: no such folder or file; router.audit.path names the record's folder\n"


def test_check_makes_every_decision_again(run: Run, write: Write, traffic: list[str]) -> None:
    folder = write("a", *(f"{line}\n" for line in traffic[:200]))
    assert run("audit", folder, "--check") == (
        0,
        "200 of 200 decisions are the same when made again from their line alone\nno line is broken, missing or lost\n",
        "",
    )


def test_check_finds_what_was_changed(run: Run, write: Write) -> None:
    changed = decision("2")
    changed["plan"]["steps"][0]["scores"]["legal"] = 0.9
    folder = write("a", decision("1"), changed, {"type": "decision", "at": at(0), "id": "3"})
    status, printed, _ = run("audit", folder, "--check", "--category", "medical")
    assert status == 1 and printed.startswith("1 of 2 decisions are the same when made again from their line alone\n")
    assert "a seq 2: 2: plan.category: 'medical', decided again 'legal'; " in printed
    found = json.loads(run("audit", folder, "--check", "--json")[1])
    assert (found["decisions"], found["agree"], list(found["differences"])) == (2, 1, ["a seq 2: 2"])
    assert found["missing"]["broken"] == [f"{folder}/a.jsonl:3"]


def test_a_decision_of_another_form_is_told_and_breaks_nothing(run: Run, write: Write) -> None:
    folder = write("a", decision("1"), {"type": "decision", "at": at(0), "id": "3", "plan": {}, "served": {}})
    status, printed, _ = run("audit", folder, "--check")
    assert status == 1 and "1 of 2 decisions" in printed
    assert "a seq 2: 3: not a decision's line (KeyError: 'reason')" in printed
    assert run("audit", folder, "--check", "--category", "medical")[1].startswith("1 of 1 decisions")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([decision("1"), '{"run": "a", "se'], "a.jsonl:2: not a line of the record: cut off, or changed"),
        ([decision("1"), json.dumps({"run": "a", "seq": 4, **decision("2")}) + "\n"], "run a: 2 lines are missing"),
        ([decision("1"), {"type": "lost", "at": at(1), "lines": 3}], "3 lines could not be written when they came"),
    ],
)
def test_check_finds_what_is_missing_and_others_warn_of_it(
    run: Run, write: Write, lines: list[Line | str], said: str
) -> None:
    folder = write("a", *lines)
    status, printed, _ = run("audit", folder, "--check")
    assert status == 1 and said in printed and "no line is broken" not in printed
    for how in ((), ("--lines",), ("--text", "a fever")):
        status, _, errors = run("audit", folder, *how)
        assert status == 0 and errors.startswith("warning: ") and said in errors


def test_names_that_look_like_markup_are_printed_as_they_are(run: Run, write: Write) -> None:
    line = decision()
    line["plan"]["category"] = "[red]x[/y]"
    assert "[red]x[/y]" in run("audit", write("a", line))[1]
