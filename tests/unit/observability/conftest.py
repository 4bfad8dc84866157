"""Decisions to look at, and audit logs with what they wrote."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.observability.audit_log import AuditLog
from vllm_lora_router.types import AppliedEdit, Candidate, Classification, Decision, Method, Plan, Reason, Step

Decide = Callable[..., Decision]
Line = dict[str, Any]
Open = Callable[..., AuditLog]

EVIDENCE: Mapping[Method, Mapping[str, object]] = {
    "keyword": {"rule": 0, "operator": "OR", "keywords": ["blood pressure", "fever"]},
    "embedding": {"nearest": "Is this medicine safe?", "similarity": 0.91},
    "domain": {"labels": {"health": 0.91, "biology": 0.05}},
    "mcp": {},
}


@pytest.fixture
def decide() -> Decide:
    def decision(
        category: str | None = "medical",
        model: str = "medical-lora",
        method: Method = "domain",
        *,
        reason: Reason = "routed",
        confidence: float | None = 0.91,
        failure: Reason | None = None,
        evidence: Mapping[str, object] | None = None,
        written: AppliedEdit | None = None,
        id: str = "chatcmpl-7",
    ) -> Decision:
        candidate = Candidate(model, None if model == "base" else model)
        found = Classification(
            category,
            0.91,
            {},
            "probability",
            0.6,
            reason == "routed",
            EVIDENCE[method] if evidence is None else evidence,
        )
        step = (
            Step(method, 2.0, failure=failure, error="ValueError: the user's words")
            if failure
            else Step(method, 2.0, found)
        )
        sure = method if confidence is not None else None
        plan = Plan((step,), reason, category, confidence, sure, (candidate,), "01234567")
        return Decision(id, plan, candidate, reason, written or AppliedEdit(), 3.14159)

    return decision


CHILD = """
import json, os, resource, shutil, subprocess, sys, time
from functools import partial
from pathlib import Path
from vllm_lora_router.observability.audit_log import AuditLog

folder = Path(sys.argv[1])
plenty = dict(rotate_bytes=1 << 30, rotate_s=1e9)

def until(done, seconds=10):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)

def found():
    return [(path.name, path.read_bytes().decode()) for path in sorted(folder.iterdir())]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def open_log(folder: Path) -> Iterator[Open]:
    logs: list[AuditLog] = []

    def opened(**options: Any) -> AuditLog:
        logs.append(AuditLog(folder, **{"rotate_bytes": 1 << 30, "rotate_s": 1e9, "flush_s": 0.02, **options}))
        return logs[-1]

    yield opened
    for log in logs:
        log.close()


def until(done: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def lines(folder: Path) -> list[Line]:
    return parsed("".join(path.read_text() for path in files(folder)))


def parsed(text: str) -> list[Line]:
    assert text.endswith("\n") or not text, "the last line is broken"
    return [json.loads(line) for line in text.split("\n")[:-1]]


def told(found: list[Line]) -> list[object]:
    """The lines' own numbers, and how many were lost where; that the log's numbers have no gap is checked."""
    assert [line["seq"] for line in found] == list(range(1, len(found) + 1))
    return [("lost", line["lines"]) if line.get("type") == "lost" else line["n"] for line in found]


def child(program: str, folder: Path, *options: str, before: Sequence[str] = ()) -> "subprocess.Popen[str]":
    command = [*before, sys.executable, "-c", CHILD + program, str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said_by(running: "subprocess.Popen[str]") -> Any:
    with running:
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    return json.loads(said)
