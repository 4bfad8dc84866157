"""Load on a router or a server: callers that ask one after the other, or questions that come by themselves."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Question = TypeVar("Question")


@dataclass(frozen=True)
class Load:
    """What came of it. Times are in milliseconds; a loop's lag is by how much it was late to do something else."""

    times_ms: Sequence[float]
    seconds: float
    lag_ms: Sequence[float]

    @property
    def per_second(self) -> float:
        return len(self.times_ms) / self.seconds

    def percentile(self, percent: float) -> float:
        return percentile(self.times_ms, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


async def closed_loop(
    ask: Callable[[Question], Awaitable[object]], draw: Callable[[], Question], callers: int, seconds: float
) -> Load:
    """Each of `callers` asks its next question when the last one was answered."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < until:
            await _timed(ask, draw(), times)

    return await _with_lag(asyncio.gather(*(caller() for _ in range(callers))), times)


async def open_loop(
    ask: Callable[[Question], Awaitable[object]], draw: Callable[[], Question], per_second: float, seconds: float
) -> Load:
    """Questions that come at random moments, whether or not those before were answered (a Poisson process)."""
    times: list[float] = []
    chance = random.Random(0)

    async def arrivals() -> None:
        asked: list[asyncio.Future[None]] = []
        due = time.perf_counter()
        until = due + seconds
        while (due := due + chance.expovariate(per_second)) < until:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            asked.append(asyncio.ensure_future(_timed(ask, draw(), times, since=due)))
        await asyncio.gather(*asked)

    return await _with_lag(arrivals(), times)


async def _timed(
    ask: Callable[[Question], Awaitable[object]], question: Question, times: list[float], *, since: float | None = None
) -> None:
    began = time.perf_counter() if since is None else since
    await ask(question)
    times.append((time.perf_counter() - began) * 1000)


async def _with_lag(work: Awaitable[object], times: list[float]) -> Load:
    lag: list[float] = []

    async def look() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            lag.append((time.perf_counter() - began - 0.005) * 1000)

    looking = asyncio.ensure_future(look())
    began = time.perf_counter()
    await work
    seconds = time.perf_counter() - began
    looking.cancel()
    return Load(times, seconds, lag or [0.0])
