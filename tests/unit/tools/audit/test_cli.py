"""The command `vllm-lora-router audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vllm_lora_router.observability.audit_destination import hmac_key
from vllm_lora_router.observability.audit_schema import AuditLine, keep_hmac

from .conftest import at, cells, decision, feedback, outcome

if TYPE_CHECKING:
    from .conftest import Run, Write


def below_threshold(id: str, at_s: float) -> AuditLine:
    line = decision(id, at_s, reason="below_threshold")
    line["plan"] |= {"reason": "below_threshold", "category": None, "method": None, "confidence": None}
    line["plan"]["steps"][0] |= {"scores": {"medical": 0.5}, "score": 0.5, "accepted": False}
    line["plan"]["candidates"].pop(0)
    line["served"] |= {"model": "base", "adapter": None, "version": None, "content_digest": None}
    return line


@pytest.fixture
def folder(write: Write) -> Path:
    """Return the record of two processes, with three medical decisions and one below the threshold."""
    write("a", decision("1", 0), outcome("1", 1), decision("2", 10, text="a cough"), outcome("2", 11, status=500))
    return write(
        "b",
        below_threshold("3", 5),
        outcome("3", 6, status=None, aborted=True, finish_reason=None, first_byte_ms=None),
        decision("4", 20, text="a cough"),
        feedback(0.5, "1", 30),
        feedback(1, "unknown", 31),
    )


def ids(output: str) -> list[str]:
    return [json.loads(line)["id"] for line in output.splitlines()]


def test_summary_has_decisions_and_responses(run: Run, folder: Path) -> None:
    status, output, errors = run("audit", folder)
    lines = output.splitlines()
    assert (status, errors) == (0, "")
    assert lines[0] == f"4 decisions of 2 processes, {at(0)} to {at(20)}"
    rows = [cells(line) for line in lines]
    assert ["medical", "medical-lora", "domain", "routed", "3", "75.0%"] in rows
    assert ["-", "base", "-", "below_threshold", "1", "25.0%"] in rows
    assert ["status", "2xx 1, none 1, 5xx 1"] in rows
    assert ["finish reason", "stop 2, - 1"] in rows
    assert ["aborted", "1"] in rows and ["without outcome", "1"] in rows
    assert ["overhead", "p50 3.0 ms, p95 3.0 ms"] in rows and ["first byte", "p50 20.0 ms, p95 20.0 ms"] in rows
    assert ["feedback", "1, mean 0.5, from 0.5 to 0.5"] in rows and ["feedback on unknown ids", "1"] in rows
    assert lines[-1] == "missing lines: 0 invalid, 0 not in the record, 0 lost"


def test_summary_as_json(run: Run, folder: Path) -> None:
    summary = json.loads(run("audit", folder, "--json")[1])
    assert (summary["decisions"], summary["processes"], summary["aborted"], summary["mean_score"]) == (4, 2, 1, 0.5)
    assert summary["by"]["category"] == {"medical": 3, "-": 1}
    assert summary["by"]["served"] == {"medical-lora": 3, "base": 1}
    assert summary["groups"][0]["decisions"] == 3 and summary["status"] == {"2xx": 1, "5xx": 1, "none": 1}
    assert summary["missing"] == {"invalid": [], "gaps": [], "lost": 0, "deleted": []}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), "1 3 2 4"),
        (("--category", "medical"), "1 2 4"),
        (("--category", "-"), "3"),
        (("--adapter", "medical-lora"), "1 2 4"),
        (("--adapter", "base"), "3"),
        (("--method", "domain", "--since", at(1)), "2 4"),
        (("--reason", "below_threshold"), "3"),
        (("--tenant", "acme", "--until", at(10)), "1 3"),
        (("--client", "unknown"), ""),
        (("--path", "/v1/chat/completions", "--since", "2026-11-25T13:00:05+01:00"), "3 2 4"),
        (("--since", "2026-11-26"), ""),
        (("--text", "a cough"), "2 4"),
    ],
)
def test_lines_are_filtered_and_joined_in_order_of_time(
    run: Run, folder: Path, filters: tuple[str, ...], expected: str
) -> None:
    status, output, _ = run("audit", folder, *filters, "--lines")
    lines = [json.loads(line) for line in output.splitlines()]
    assert (status, " ".join(line["id"] for line in lines)) == (0, expected)
    for line in lines:
        assert (line["outcome"] or {}).get("id", line["id"]) == line["id"]
        assert [rating["score"] for rating in line["feedback"]] == ([0.5] if line["id"] == "1" else [])
    assert sum(line["outcome"] is None for line in lines) == ("4" in expected)


@pytest.mark.parametrize(
    ("age", "expected"), [("90s", ["new"]), ("1.5h", ["new"]), ("2w", ["old", "new"]), ("1d", ["new"])]
)
def test_since_accepts_an_age(
    run: Run, write: Write, age: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime as module

    class Clock(module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> module.datetime:
            return module.datetime.fromisoformat(at(30))

    monkeypatch.setattr("vllm_lora_router.tools.audit.filters.datetime", Clock)
    folder = write("a", decision("old", -3 * 86400), decision("new", 0))
    assert ids(run("audit", folder, "--lines", "--since", age)[1]) == expected


def test_invalid_time_is_an_error(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("audit", folder, "--since", "yesterday")
    assert "'yesterday' is not a time: use a time such as 2026-01-31T12:00:00Z" in capsys.readouterr().err


def test_observed_decision_matches_its_planned_reason(run: Run, write: Write) -> None:
    observed = decision("1", reason="observe")
    folder = write("a", observed, decision("2", reason="not_loadable"))
    for reason, expected in (("observe", ["1"]), ("routed", ["1"]), ("not_loadable", ["2"])):
        assert ids(run("audit", folder, "--lines", "--reason", reason)[1]) == expected


def test_text_is_found_by_its_keyed_hash(run: Run, write: Write, tmp_path: Path) -> None:
    retention = keep_hmac(hmac_key(tmp_path / "record"))
    lines = [decision("1"), decision("2", 1), decision("3", 2)]
    for line, texts in zip(lines, (["a cough"], ["a fever"], ["x", "a cough"]), strict=True):
        del line["text"]
        line |= retention(texts)
    folder = write("a", *lines)
    status, output, _ = run("audit", folder, "--text", "a cough")
    assert (status, [cells(line)[1] for line in output.splitlines() if "2026" in line]) == (0, ["1", "3"])
    assert ids(run("audit", folder, "--text", "a cough", "--json")[1]) == ["1", "3"]
    status, output, errors = run("audit", folder, "--text", "a cold")
    assert (status, output) == (1, "") and "no decision on exactly this text" in errors
    # The key is found for a file of the record, too.
    assert run("audit", folder / "a.jsonl", "--text", "a fever")[0] == 0


def test_decision_is_explained(run: Run, folder: Path) -> None:
    status, output, errors = run("audit", folder, "--explain", "1")
    assert (status, errors) == (0, "")
    assert "The category is medical (0.8300 by the domain model)." in output.splitlines()
    assert any(line.startswith("Feedback at") for line in output.splitlines())
    explained = json.loads(run("audit", folder, "--explain", "1", "--json")[1])
    assert explained["explanation"] == output.splitlines()
    change = explained["change"]
    assert (explained["replayed"]["model"], change["quantity"], change["amount"]) == ("medical-lora", "score", -0.2301)


def test_unknown_id_is_an_error(run: Run, folder: Path) -> None:
    assert run("audit", folder, "--explain", "no\nid") == (1, "", "no decision with the id no\\nid in this record\n")


def test_missing_record_is_an_error(run: Run, tmp_path: Path) -> None:
    status, output, errors = run("audit", tmp_path / "missing")
    assert (status, output) == (1, "")
    assert errors == f"{tmp_path}/missing: no such folder or file; name the folder of router.audit.path\n"


def test_check_replays_every_decision(run: Run, write: Write, traffic: list[str]) -> None:
    folder = write("a", *(f"{line}\n" for line in traffic[:200]))
    assert run("audit", folder, "--check") == (
        0,
        "200 of 200 decisions are identical when replayed from their lines\nno line is invalid, missing or lost\n",
        "",
    )


def test_check_reports_a_changed_line(run: Run, write: Write) -> None:
    changed = decision("2")
    changed["plan"]["steps"][0]["scores"]["legal"] = 0.9
    folder = write("a", decision("1"), changed, {"type": "decision", "at": at(0), "id": "3"})
    status, output, _ = run("audit", folder, "--check", "--category", "medical")
    assert status == 1 and output.startswith("1 of 2 decisions are identical when replayed from their lines\n")
    assert "a seq 2: 2: plan.category: recorded 'medical', replayed 'legal'; " in output
    result = json.loads(run("audit", folder, "--check", "--json")[1])
    assert (result["decisions"], result["identical"], list(result["differences"])) == (2, 1, ["a seq 2: 2"])
    assert result["missing"]["invalid"] == [f"{folder}/a.jsonl:3"]


def test_check_reports_an_incomplete_decision(run: Run, write: Write) -> None:
    folder = write("a", decision("1"), {"type": "decision", "at": at(0), "id": "3", "plan": {}, "served": {}})
    status, output, _ = run("audit", folder, "--check")
    assert status == 1 and "1 of 2 decisions" in output
    assert "a seq 2: 3: not a complete decision line (KeyError: 'reason')" in output
    assert run("audit", folder, "--check", "--category", "medical")[1].startswith("1 of 1 decisions")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([decision("1"), '{"run": "a", "se'], "a.jsonl:2: invalid line (truncated or changed)"),
        (
            [decision("1"), json.dumps({"schema": 2, "run": "a", "seq": 4, **decision("2")}) + "\n"],
            "run a: 2 lines are missing",
        ),
        ([decision("1"), {"type": "lost", "at": at(1), "lines": 3}], "3 lines could not be written and are lost"),
    ],
)
def test_check_reports_missing_lines_and_other_actions_warn(
    run: Run, write: Write, lines: list[AuditLine | str], message: str
) -> None:
    folder = write("a", *lines)
    status, output, _ = run("audit", folder, "--check")
    assert status == 1 and message in output and "no line is invalid" not in output
    for options in ((), ("--lines",), ("--text", "a fever")):
        status, _, errors = run("audit", folder, *options)
        assert status == 0 and errors.startswith("warning: ") and message in errors


def test_names_with_markup_are_printed_unchanged(run: Run, write: Write) -> None:
    line = decision()
    line["plan"]["category"] = "[red]x[/y]"
    assert "[red]x[/y]" in run("audit", write("a", line))[1]
