"""A circuit breaker: after repeated failures, calls are refused for a while."""

import math
import time
from collections.abc import Callable


class CircuitOpenError(Exception):
    """The circuit breaker is open, so the call must not be made."""

    def __init__(self, remaining_s: float) -> None:
        super().__init__(remaining_s)
        self.remaining_s = remaining_s


class CircuitBreaker:
    """A circuit breaker after M. Nygard, Release It!, "Circuit Breaker".

    After several consecutive failures it opens. When the pause is over, a single trial call decides: a success closes
    the breaker, a failure opens it again for twice as long. The result of a call that began before the breaker last
    opened or closed is ignored.
    """

    def __init__(
        self,
        *,
        max_failures: int = 5,
        first_pause_s: float = 1.0,
        max_pause_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a closed circuit breaker.

        Args:
            max_failures: Number of consecutive failures that open the breaker.
            first_pause_s: Duration of the first pause. Each failed trial call doubles it, up to `max_pause_s`.
        """
        self.failures = 0  # consecutive
        self.times_opened = 0
        self._max_failures, self._first_pause_s, self._max_pause_s = max_failures, first_pause_s, max_pause_s
        self._clock = clock
        self._pause_s = first_pause_s
        self._until = -math.inf
        self._trial_running = False
        self._period = 0  # incremented whenever the breaker opens or closes

    @property
    def remaining_s(self) -> float:
        """Return the rest of the current pause in seconds; 0 if a call may be made."""
        return max(self._until - self._clock(), 0.0)

    @property
    def is_open(self) -> bool:
        """Return whether the last calls failed and no trial call has succeeded since."""
        return self.failures >= self._max_failures

    def acquire(self) -> int:
        """Request permission for a call and return the period in which it begins, for `record_success` and the others.

        Raises:
            CircuitOpenError: The call must not be made.
        """
        if self.is_open:
            if self._trial_running or self.remaining_s > 0:
                raise CircuitOpenError(self.remaining_s)
            self._trial_running = True
        return self._period

    def record_success(self, period: int) -> bool:
        """Record a successful call and return whether it closed the breaker."""
        if period != self._period:
            return False
        was_open, self.failures = self.is_open, 0
        if was_open:
            self._pause_s = self._first_pause_s
            self._begin_period()
        return was_open

    def record_failure(self, period: int) -> float | None:
        """Record a failed call and return the pause in seconds if it opened the breaker, otherwise None."""
        if period != self._period:
            return None
        self.failures += 1
        if not self.is_open:
            return None
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._max_pause_s)
        self._until = self._clock() + pause_s
        self.times_opened += 1
        self._begin_period()
        return pause_s

    def record_cancelled(self, period: int) -> None:
        """Record a call without a result, because its client disconnected or its arguments cannot be sent."""
        if period == self._period:
            self._trial_running = False

    def _begin_period(self) -> None:
        self._period += 1
        self._trial_running = False
