"""Example decisions, and audit logs with the lines that they write."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.types import AppliedEdit, Candidate, Classification, Decision, Method, Plan, Reason, Step

MakeDecision = Callable[..., Decision]
OpenLog = Callable[..., AuditLog]

EVIDENCE: Mapping[Method, Mapping[str, object]] = {
    "keyword": {"rule": 0, "operator": "OR", "keywords": ["blood pressure", "fever"]},
    "embedding": {"nearest": "Is this medicine safe?", "similarity": 0.91},
    "domain": {"labels": {"health": 0.91, "biology": 0.05}},
    "mcp": {},
}


@pytest.fixture
def make_decision() -> MakeDecision:
    """Return a function that makes a decision with one step."""

    def make(
        category: str | None = "medical",
        model: str = "medical-lora",
        method: Method = "domain",
        *,
        reason: Reason = "routed",
        confidence: float | None = 0.91,
        failure: Reason | None = None,
        evidence: Mapping[str, object] | None = None,
        applied: AppliedEdit | None = None,
        id: str = "chatcmpl-7",
    ) -> Decision:
        candidate = Candidate(model, None if model == "base" else model)
        classification = Classification(
            category,
            0.91,
            {},
            "probability",
            0.6,
            reason == "routed",
            EVIDENCE[method] if evidence is None else evidence,
        )
        step = (
            Step(method, 2.0, failure=failure, error="ValueError: user text")
            if failure
            else Step(method, 2.0, classification)
        )
        deciding_method = method if confidence is not None else None
        plan = Plan((step,), reason, category, confidence, deciding_method, (candidate,), "01234567")
        return Decision(id, plan, candidate, reason, applied or AppliedEdit(), 3.14159)

    return make


CHILD = """
import json, os, resource, shutil, subprocess, sys, time
from functools import partial
from pathlib import Path
from vllm_lora_router.observability.audit_log import AuditLog

folder = Path(sys.argv[1])
no_rotation = dict(rotate_bytes=1 << 30, rotate_s=1e9)

def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

def contents():
    return [(path.name, path.read_bytes().decode()) for path in sorted(folder.iterdir())]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def open_log(folder: Path) -> Iterator[OpenLog]:
    """Return a function that opens an audit log in `folder`. The logs are closed after the test."""
    logs: list[AuditLog] = []

    def open_and_track(**options: Any) -> AuditLog:
        logs.append(AuditLog(folder, **{"rotate_bytes": 1 << 30, "rotate_s": 1e9, "flush_s": 0.02, **options}))
        return logs[-1]

    yield open_and_track
    for log in logs:
        log.close()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.005)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def lines(folder: Path) -> list[AuditLine]:
    """Return the lines of all files in a folder."""
    return parse("".join(path.read_text() for path in files(folder)))


def parse(text: str) -> list[AuditLine]:
    assert text.endswith("\n") or not text, "the last line is truncated"
    return [json.loads(line) for line in text.split("\n")[:-1]]


def numbers(lines: list[AuditLine]) -> list[object]:
    """Check that `seq` has no gap. Return the `n` of each line, and ("lost", count) for a `lost` line."""
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    return [("lost", line["lines"]) if line.get("type") == "lost" else line["n"] for line in lines]


def child(program: str, folder: Path, *options: str, prefix: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """Start a Python process that runs a program with the helpers of `CHILD`."""
    command = [*prefix, sys.executable, "-c", CHILD + program, str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def output_of(process: "subprocess.Popen[str]") -> Any:
    """Wait for a process, and return the JSON that it printed."""
    with process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)
