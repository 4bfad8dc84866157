"""How many decisions this process made, and how their responses went."""

from collections import Counter

from vllm_lora_router.types import Decision, Outcome


class Tally:
    """Counts for `/v1/router/health`; with several API-server processes each has its own."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.under_way = 0
        self.aborted = 0
        self.failed = 0  # answered with a status of 500 or more

    def decided(self, decision: Decision) -> None:
        self.reasons[decision.reason] += 1
        self.under_way += 1

    def ended(self, outcome: Outcome) -> None:
        self.under_way -= 1
        self.aborted += outcome.aborted
        self.failed += outcome.status is not None and outcome.status >= 500
