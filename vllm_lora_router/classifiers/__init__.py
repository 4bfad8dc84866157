"""Classification methods: the contract of a classifier, one module for each method, and the cascade that runs them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vllm_lora_router.types import Classification, Method, Query


class Classifier(Protocol):
    """A method that classifies queries."""

    method: Method
    reads: frozenset[str]  # the fields of a query that the classification depends on
    fingerprint: str  # identifies everything else that it depends on: rules, thresholds, weights

    async def classify(self, queries: Sequence[Query]) -> list[Classification]:
        """Return one classification for each query, in the same order.

        The cascade calls this method on the event loop, so it must not block.

        Raises:
            OverloadError: The queue of the classifier is full.
            UnavailableError: The classifier cannot answer at the moment.
            TimeoutError: The classifier did not answer within its own timeout.
        """
        ...


@runtime_checkable
class ImmediateClassifier(Protocol):
    """A classifier that can answer most queries without waiting."""

    def classify_now(self, query: Query) -> Classification | None:
        """Return the result of `classify` within a few hundred microseconds, or None if `classify` has to run."""
        ...


class OverloadError(Exception):
    """The queue of a classifier is full. The cascade runs the next method without delay."""


class UnavailableError(Exception):
    """A classifier cannot answer at the moment.

    The message states the reason. It quotes text from other systems only after its first colon.
    """


class StuckModelError(UnavailableError):
    """A model call does not return. The classifier accepts no queries until it does."""


class ClassifierError(ValueError):
    """A classifier cannot be built. The message names the setting, the place and the remedy."""
