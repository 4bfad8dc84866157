"""Measure how much of the time Python's interpreter lock was contention, which delays the event loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

POLL_US, SAMPLE_US = 500, 2000


@dataclass
class GilContention:
    """The measured share of time."""

    share: float | None = None  # between 0 and 1; None if it was not measured


@contextmanager
def measure_gil() -> Iterator[GilContention]:
    """Measure while the context is open and set the share at its end. Needs the package gilknocker."""
    contention = GilContention()
    if find_spec("gilknocker") is None:
        yield contention
        return
    from gilknocker import KnockKnock  # pyright: ignore[reportAttributeAccessIssue]

    knocker = KnockKnock(polling_interval_micros=POLL_US, sampling_interval_micros=SAMPLE_US)
    knocker.start()
    try:
        yield contention
    finally:
        contention.share = knocker.contention_metric
        knocker.stop()
