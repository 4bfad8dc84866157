"""Requests that could go on at the same moment go on one after the other."""

import asyncio
from collections import deque


class Turns:
    """One request goes on in an iteration of the event loop, and everything else has its turn in between.

    A batch that is classified lets go of all its requests at once, and so does a deadline that came to requests which
    had arrived together, or an adapter that was loaded. What vLLM does with a request until the engine has it takes
    milliseconds; a loop that does that for thirty requests in one go is late by all of it for everybody's streams.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def mine(self) -> None:
        """Returns when nobody else has gone on in this iteration; at once where nobody has."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next, loop)
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            if not (turn := self._waiting.popleft()).done():  # who was given up does not wait any more
                turn.set_result(None)
                loop.call_soon(self._next, loop)
                return
        self._taken = False
