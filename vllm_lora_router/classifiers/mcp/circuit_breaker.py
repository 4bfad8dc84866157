"""Who fails again and again is left alone for a while."""

import math
import time
from collections.abc import Callable


class Open(Exception):
    """Nothing is asked now."""

    def __init__(self, left_s: float) -> None:
        super().__init__(left_s)
        self.left_s = left_s


class Breaker:
    """A circuit breaker: after some failures in a row it opens, for longer each time; then one try decides.

    After M. Nygard, Release It!, "Circuit Breaker".
    """

    def __init__(
        self,
        *,
        most: int = 5,
        first_s: float = 1.0,
        longest_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            most: failures in a row.
            first_s: for how long it opens at first; twice as long after every try that fails, up to `longest_s`.
        """
        self.failures = 0  # in a row
        self.opened = 0  # times
        self._most, self._first_s, self._longest_s, self._clock = most, first_s, longest_s, clock
        self._pause_s = first_s
        self._until = -math.inf
        self._trying = False

    @property
    def left_s(self) -> float:
        """For how long nothing is asked any more; 0 when it may be."""
        return max(self._until - self._clock(), 0.0)

    @property
    def is_open(self) -> bool:
        """Whether the last tries failed, and the next one has not succeeded yet."""
        return self.failures >= self._most

    def enter(self) -> None:
        """Before a try. Raises `Open` where there is to be none."""
        if self.is_open:
            if self._trying or self.left_s > 0:
                raise Open(self.left_s)
            self._trying = True

    def succeeded(self) -> bool:
        """After a try; whether this closed it."""
        closed, self.failures, self._trying, self._pause_s = self.is_open, 0, False, self._first_s
        return closed

    def failed(self) -> float | None:
        """After a try; the seconds for which this opened it, None when it did not."""
        was_open, tried, self._trying = self.is_open, self._trying, False
        self.failures += 1
        if not self.is_open or (was_open and not tried):
            return None  # those that were under way when it opened
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._longest_s)
        self._until = self._clock() + pause_s
        self.opened += 1
        return pause_s

    def gave_up(self) -> None:
        """After a try that says nothing: whoever asked has left."""
        self._trying = False
