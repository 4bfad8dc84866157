"""What a request does not have to wait for."""

import asyncio
from collections.abc import Callable

# By then the engine has the request, and the process that handed it on waits for the first token.
SOON_S = 0.005


class Later:
    """Work that is done once, in a little while or when it is asked for, whichever comes first."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self._timer = asyncio.get_running_loop().call_later(SOON_S, self.now)

    def now(self) -> None:
        """Does the work unless it is done."""
        if (work := self._work) is not None:
            self._work = None
            self._timer.cancel()
            work()
