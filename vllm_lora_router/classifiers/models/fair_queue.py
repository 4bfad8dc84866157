"""A queue that flows share fairly: no client can take the model away from the others.

Service follows the virtual token counter of Sheng et al., Fairness in Serving Large Language Models (OSDI 2024): the
flow that has received the least service is next, and a flow that was idle gets no credit for that time. Places follow
longest queue drop: when the queue is full, the flow with the most waiting items loses its newest one.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
Flow = Hashable | None  # None: requests with the lowest priority

# Flows without waiting items whose received service is remembered while other flows wait.
MAX_IDLE_FLOWS = 1024


class FairQueue(Generic[T]):
    """Items of several flows. An item is served in the order of arrival within its flow, unless items are alike."""

    def __init__(self, limit: int) -> None:
        """Create an empty queue for at most `limit` items."""
        self.limit = limit
        self._waiting: dict[Flow, dict[T, None]] = {}  # flow -> its items in the order of arrival; never empty
        self._service: dict[Flow, float] = {}  # flow -> service that it has received since the queue was empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, flow: Flow, item: T) -> T | None:
        """Add an item and return the item that is dropped for it, which is the item itself if its flow has the most."""
        if self._count >= self.limit:
            longest = max(self._waiting, key=lambda other: (other is None, len(self._waiting[other])))
            own = self._waiting.get(flow, ())
            if flow is None or (longest is not None and len(own) >= len(self._waiting[longest])):
                return item
            dropped = next(reversed(self._waiting[longest]))
            self.remove(longest, dropped)
        else:
            dropped = None
        if flow not in self._waiting:
            least = min((self._service[other] for other in self._waiting if other is not None), default=0.0)
            self._service[flow] = max(self._service.get(flow, 0.0), least)
            self._waiting[flow] = {}
        self._waiting[flow][item] = None
        self._count += 1
        return dropped

    def remove(self, flow: Flow, item: T, cost: float = 0.0) -> None:
        """Remove an item, if it is still waiting, and charge its flow for the service that the item receives."""
        items = self._waiting.get(flow, {})
        if item not in items:
            return
        del items[item]
        self._count -= 1
        self._service[flow] += cost
        if not items:
            del self._waiting[flow]
            if not self._waiting:
                self._service.clear()
            elif len(self._service) - len(self._waiting) > MAX_IDLE_FLOWS:
                del self._service[next(other for other in self._service if other not in self._waiting)]

    def in_order(self, distance: Callable[[T, T], float]) -> Iterator[tuple[Flow, T]]:
        """Yield the oldest item of the next flow, then all others in the order in which they may share its batch.

        In each round, every flow gives the item that is most similar to the first one; the flow None comes last.
        """
        if not self._waiting:
            return
        flow = min(self._waiting, key=lambda flow: (flow is None, self._service[flow]))
        oldest = next(iter(self._waiting[flow]))
        yield flow, oldest
        others: list[tuple[bool, int, float, Flow, T]] = []
        for flow, items in self._waiting.items():
            by_distance = sorted((distance(oldest, item), number, item) for number, item in enumerate(items))
            others += [(flow is None, place, apart, flow, item) for place, (apart, _, item) in enumerate(by_distance)]
        others.sort(key=lambda other: other[:3])
        for _, _, _, flow, item in others:
            if item is not oldest:
                yield flow, item
