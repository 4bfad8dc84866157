"""Generate load: a closed loop of concurrent clients, or an open loop with random arrivals."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Question = TypeVar("Question")


@dataclass(frozen=True)
class LoadResult:
    """The result of a load. Times are in milliseconds; the lag is the lateness of the event loop."""

    times_ms: Sequence[float]
    seconds: float
    lag_ms: Sequence[float]

    @property
    def per_second(self) -> float:
        """Return the completed requests per second."""
        return len(self.times_ms) / self.seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the times."""
        return percentile(self.times_ms, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


async def closed_loop(
    ask: Callable[[Question], Awaitable[object]], draw: Callable[[], Question], callers: int, seconds: float
) -> LoadResult:
    """Run `callers` concurrent clients. Each client sends its next request after the last response."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            await _timed(ask, draw(), times)

    return await _with_lag(asyncio.gather(*(client() for _ in range(callers))), times)


async def open_loop(
    ask: Callable[[Question], Awaitable[object]], draw: Callable[[], Question], per_second: float, seconds: float
) -> LoadResult:
    """Send requests at random times, independent of responses (a Poisson process)."""
    times: list[float] = []
    chance = random.Random(0)

    async def arrivals() -> None:
        requests: list[asyncio.Future[None]] = []
        due = time.perf_counter()
        until = due + seconds
        while (due := due + chance.expovariate(per_second)) < until:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            requests.append(asyncio.ensure_future(_timed(ask, draw(), times, since=due)))
        await asyncio.gather(*requests)

    return await _with_lag(arrivals(), times)


async def _timed(
    ask: Callable[[Question], Awaitable[object]], question: Question, times: list[float], *, since: float | None = None
) -> None:
    began = time.perf_counter() if since is None else since
    await ask(question)
    times.append((time.perf_counter() - began) * 1000)


async def _with_lag(work: Awaitable[object], times: list[float]) -> LoadResult:
    lag: list[float] = []

    async def measure_lag() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            lag.append((time.perf_counter() - began - 0.005) * 1000)

    measuring = asyncio.ensure_future(measure_lag())
    began = time.perf_counter()
    await work
    seconds = time.perf_counter() - began
    measuring.cancel()
    return LoadResult(times, seconds, lag or [0.0])
