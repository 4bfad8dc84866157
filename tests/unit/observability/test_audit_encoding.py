"""Encoding of audit lines: hostile content, and lines in place of lost lines."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from vllm_lora_router.observability.audit_schema import SCHEMA_VERSION, AuditLine, rfc3339

from .conftest import OpenLog, lines, numbers


def test_any_content_is_encoded_as_a_numbered_line(folder: Path, open_log: OpenLog) -> None:
    content = {
        "n": 0,
        "surrogate": "a\ud83d",
        "not a number": float("nan"),
        "breaks": "a\r\nb\u2028c",
        "schema": 99,
        "run": "forged",
        "seq": 9,
    }
    log = open_log()
    log.append(lambda: content)
    log.append(lambda: {**content, "surrogate": ""})
    log.append(lambda: {"n": 2, "big": 10**30, "bytes": b"\xff", "integer key": {1: "one"}})
    log.close()
    first, second, third = lines(folder)
    expected = {**content, "schema": SCHEMA_VERSION, "run": log.run, "not a number": None}
    assert first == {**expected, "seq": 1}
    assert second == {**expected, "seq": 2, "surrogate": ""}
    assert (third["big"], third["bytes"], third["integer key"]) == (10**30, "/w==", {"1": "one"})


def test_every_line_has_the_schema_version(folder: Path, open_log: OpenLog) -> None:
    log = open_log()
    log.append(partial(dict, n=0))
    log.append(lambda: {"n": object()})
    log.append(partial(dict, n=1))
    log.close()
    assert numbers(lines(folder)) == [0, ("lost", 1), 1]
    assert [line["schema"] for line in lines(folder)] == [SCHEMA_VERSION] * 3


def test_line_that_cannot_be_built_is_replaced_by_a_lost_line(
    folder: Path, open_log: OpenLog, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> AuditLine:
        raise KeyError("user text")

    log = open_log()
    for n in range(3):
        log.append(partial(dict, n=n))
        log.append(fail)
        log.append(lambda: {"user text": object()})
    log.close()
    assert numbers(lines(folder)) == [0, ("lost", 2), 1, ("lost", 2), 2, ("lost", 2)]
    assert (log.written, log.lost) == (3, 6)
    (message,) = [message for message in caplog.messages if "could not be built" in message]
    assert "KeyError at " in message and "user text" not in caplog.text


@pytest.mark.parametrize("at_s", [0.0, 1e9, 1795608000.25, 1795608000.9999998, 1795608000.0000005, 1795608000.1234565])
def test_times_are_formatted_as_datetime_formats_them(at_s: float) -> None:
    expected = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert rfc3339(at_s) == expected
