"""From a query to a category: one contract, one file a method, and the cascade over them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vllm_lora_router.types import Classification, Method, Query


class Classifier(Protocol):
    """One method of finding a category."""

    method: Method
    reads: frozenset[str]  # the fields of a query that the answer depends on
    fingerprint: str  # changes with everything else that the answer depends on: rules, thresholds, weights

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        """One classification a query, in their order. Called on the event loop, which it must not hold.

        Raises:
            Overload: too many queries wait already.
            Unavailable: it cannot answer now.
            TimeoutError: it did not answer within a time of its own.
        """
        ...


@runtime_checkable
class AtOnce(Protocol):
    """A classifier that can say most things without waiting for anything."""

    def now(self, query: Query) -> Classification | None:
        """What `classify` would say, within a few hundred microseconds; None: it is to be asked there."""
        ...


class Overload(Exception):
    """A classifier that has more to do than it can; the request takes the next candidate at once."""


class Unavailable(Exception):
    """A classifier that cannot answer now; the message says why, and quotes others only behind its first colon."""


class Stuck(Unavailable):
    """A classifier whose model does not return; it is not asked any more until it does."""


class ClassifierError(ValueError):
    """A classifier that cannot be built; the message names the setting, the place and the way out."""
