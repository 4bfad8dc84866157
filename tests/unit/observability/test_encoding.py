"""Lines as they are written: whatever a client sends, and what was lost."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from vllm_lora_router.observability.audit_schema import rfc3339

from .conftest import Line, Open, lines, told


def test_whatever_a_client_sends_is_a_line(folder: Path, open_log: Open) -> None:
    sent = {"n": 0, "half": "a\ud83d", "not a number": float("nan"), "breaks": "a\r\nb\u2028c", "run": "mine", "seq": 9}
    log = open_log()
    log.append(lambda: sent)
    log.append(lambda: {**sent, "half": ""})
    log.append(lambda: {"n": 2, "big": 10**30, "bytes": b"\xff", "numbered": {1: "one"}})
    log.close()
    first, second, third = lines(folder)
    expected = {**sent, "run": log.run, "not a number": None}
    assert first == {**expected, "seq": 1}
    assert second == {**expected, "seq": 2, "half": ""}
    assert (third["big"], third["bytes"], third["numbered"]) == (10**30, "/w==", {"1": "one"})


def test_a_line_that_cannot_be_built_is_counted_and_told_of_in_its_place(
    folder: Path, open_log: Open, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> Line:
        raise KeyError("the user's words")

    log = open_log()
    for n in range(3):
        log.append(partial(dict, n=n))
        log.append(failing)
        log.append(lambda: {"the user's words": object()})
    log.close()
    assert told(lines(folder)) == [0, ("lost", 2), 1, ("lost", 2), 2, ("lost", 2)]
    assert (log.written, log.lost) == (3, 6)
    (message,) = [message for message in caplog.messages if "could not be built" in message]
    assert "KeyError at " in message and "the user's words" not in caplog.text


@pytest.mark.parametrize("at_s", [0.0, 1e9, 1795608000.25, 1795608000.9999998, 1795608000.0000005, 1795608000.1234565])
def test_times_are_written_as_datetime_writes_them(at_s: float) -> None:
    expected = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert rfc3339(at_s) == expected
