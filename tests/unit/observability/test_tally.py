"""What /v1/router/health counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lora_router.observability.tally import Tally
from vllm_lora_router.types import Decision, Outcome

if TYPE_CHECKING:
    from .conftest import Decide


def outcome(decision: Decision, status: int | None, *, aborted: bool = False) -> Outcome:
    return Outcome(decision, status, 10.0, 20.0, aborted)


def test_decisions_are_counted_by_reason_and_are_under_way_until_they_end(decide: Decide) -> None:
    tally, routed, unsure = Tally(), decide(), decide(None, "base", reason="below_threshold", confidence=None)
    for decision in (routed, routed, unsure):
        tally.decided(decision)
    assert (dict(tally.reasons), tally.under_way) == ({"routed": 2, "below_threshold": 1}, 3)
    tally.ended(outcome(routed, 200))
    assert (dict(tally.reasons), tally.under_way) == ({"routed": 2, "below_threshold": 1}, 2)


def test_responses_that_failed_and_clients_that_left_are_counted(decide: Decide) -> None:
    tally, decision = Tally(), decide()
    ends = [(200, False), (400, False), (499, True), (500, False), (503, True), (None, True)]
    for status, aborted in ends:
        tally.decided(decision)
        tally.ended(outcome(decision, status, aborted=aborted))
    assert (tally.under_way, tally.failed, tally.aborted) == (0, 2, 3)
