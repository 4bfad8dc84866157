"""For how much of the time Python's interpreter lock was held, which is what keeps an event loop waiting."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

POLL_US, SAMPLE_US = 500, 2000


@dataclass
class Held:
    share: float | None = None  # of the time, between 0 and 1; None when it was not measured


@contextmanager
def gil() -> Iterator[Held]:
    """Measures while it is open; the figure is there when it ends. Needs the package gilknocker."""
    held = Held()
    if find_spec("gilknocker") is None:
        yield held
        return
    from gilknocker import KnockKnock  # pyright: ignore[reportAttributeAccessIssue]

    knocker = KnockKnock(polling_interval_micros=POLL_US, sampling_interval_micros=SAMPLE_US)
    knocker.start()
    try:
        yield held
    finally:
        held.share = knocker.contention_metric
        knocker.stop()
