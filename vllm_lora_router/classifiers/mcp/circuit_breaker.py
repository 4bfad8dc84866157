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
    the breaker, a failure opens it again for twice as long.
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

    @property
    def remaining_s(self) -> float:
        """Return the rest of the current pause in seconds; 0 if a call may be made."""
        return max(self._until - self._clock(), 0.0)

    @property
    def is_open(self) -> bool:
        """Return whether the last calls failed and no trial call has succeeded since."""
        return self.failures >= self._max_failures

    def acquire(self) -> None:
        """Request permission for a call.

        Raises:
            CircuitOpenError: The call must not be made.
        """
        if self.is_open:
            if self._trial_running or self.remaining_s > 0:
                raise CircuitOpenError(self.remaining_s)
            self._trial_running = True

    def record_success(self) -> bool:
        """Record a successful call and return whether it closed the breaker."""
        closed, self.failures, self._trial_running, self._pause_s = self.is_open, 0, False, self._first_pause_s
        return closed

    def record_failure(self) -> float | None:
        """Record a failed call and return the pause in seconds if it opened the breaker, otherwise None."""
        was_open, was_trial, self._trial_running = self.is_open, self._trial_running, False
        self.failures += 1
        if not self.is_open or (was_open and not was_trial):
            return None  # calls that were running when the breaker opened do not extend the pause
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._max_pause_s)
        self._until = self._clock() + pause_s
        self.times_opened += 1
        return pause_s

    def record_cancelled(self) -> None:
        """Record a call without a result because its client disconnected."""
        self._trial_running = False
