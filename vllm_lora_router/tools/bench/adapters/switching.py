"""Measure the cost of a request for an adapter by its location, and the pause that it causes in another stream."""

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import aiohttp

from vllm_lora_router.tools.bench.adapters.page_cache import cached_share, drop_from_cache, read_into_cache
from vllm_lora_router.tools.bench.adapters.serving import (
    AdapterLocations,
    RequestFailedError,
    adapter_locations,
    request_adapter,
    request_each,
    unique_prompt,
)
from vllm_lora_router.tools.bench.serve.client import Response, chat_request, send, session
from vllm_lora_router.tools.statistics import Estimate, median

State = Literal["slot", "memory", "page cache", "disk"]  # the nearest location of the adapter
STATES: tuple[State, ...] = get_args(State)

SETTLE_CHUNKS = 20  # chunks of the background stream before each request


@dataclass(frozen=True)
class Cost:
    """Requests for an adapter in one state, one in each round. Times are in milliseconds."""

    first: Estimate  # time to first token
    more: Estimate  # more than the same round's request for an adapter in a slot
    pause: Estimate  # longest gap in the background stream until the first token
    longest_pause: float


@dataclass(frozen=True)
class SwitchingResult:
    """The cost of each state and the baseline."""

    costs: Mapping[State, Cost]
    usual_gap: Estimate  # ms between chunks of the background stream without other requests
    rounds: int  # valid rounds
    discarded: int  # invalid rounds: an adapter was in another state, or the background stream ended
    cached_share: float  # largest share of dropped files that was still in the page cache


@dataclass(frozen=True)
class StateRequest:
    """The result of one request."""

    first: float  # ms to first token
    pause: float  # ms, longest gap in the background stream meanwhile
    gaps: Sequence[float]  # ms between chunks of the background stream before it
    cached_share: float  # of the adapter's files in the page cache
    valid: bool  # the adapter was in its expected state


async def measure_switching(
    url: str, names: Sequence[str], rounds: int, tokens: int, seed: int, *, admin_key: str, stream_tokens: int = 1500
) -> SwitchingResult:
    """Request an adapter in each state, in random order, round after round, while one background stream runs.

    The states follow from the order of use, because the engine evicts the least recently used adapter and has no other
    clients. Before each request the server reports which adapters are in memory, which must agree; it cannot report
    slots. The adapter in a slot is the last one requested, the adapter in memory has lost its slot since, and the
    adapter on disk is the least recently used one. Its files (the source and the snapshot) are read, or dropped from
    the page cache, just before the request. The kernel still knows the disk location of a dropped file, and the disk
    may have a cache of its own.

    Args:
        url: a server on this machine without other clients, with one process, one engine, `configuration` for these
            adapters and at least two slots.
        names: its adapters, at least two more than the engine keeps in memory. The first serves the background stream.
        tokens: tokens of each answer.
        admin_key: the key for `GET /v1/router/adapters`.
        stream_tokens: tokens of the background stream, as many as the model allows. It restarts after half of them.

    Raises:
        RequestFailedError: a request failed, or no round is valid.
        ValueError: there are too few slots, adapters or places in memory.
    """
    async with session(url) as http:
        chance = random.Random(seed)
        stream_name, *order = dict.fromkeys(names)
        check_capacity(await adapter_locations(http, admin_key), len(order))
        await request_each(http, [*order, stream_name], chance)
        stream = _BackgroundStream(http, stream_name, stream_tokens, chance)
        rounds_done: list[Mapping[State, StateRequest]] = []
        try:
            for _ in range(rounds):
                requests: dict[State, StateRequest] = {}
                for state in chance.sample(STATES, len(STATES)):
                    requests[state] = await _request(http, state, order, stream, tokens, chance, admin_key)
                rounds_done.append(requests)
        finally:
            await stream.stop()
        return summarize(rounds_done)


def check_capacity(locations: AdapterLocations, others: int) -> None:
    """Raise ValueError unless `others` adapters besides the background stream's can be in every state."""
    if locations.slots < 2:
        raise ValueError("the background stream needs a slot of its own: start the server with --max-loras 2 or more")
    if locations.in_memory <= locations.slots:
        raise ValueError(
            f"every adapter in memory has a slot: start the server with --max-cpu-loras {locations.slots + 1} or more"
        )
    if others <= locations.in_memory:
        raise ValueError(f"{others + 1} adapters are too few: at least {locations.in_memory + 2} are needed")


def adapter_in_state(state: State, order: Sequence[str], slots: int, in_memory: int) -> str:
    """Return the adapter that is in a state.

    Args:
        state: the state.
        order: the adapters by last use, the latest last, without that of the background stream, which always has a slot
            and a place in memory.
        slots: number of slots.
        in_memory: number of places in memory.
    """
    if state == "slot":
        return order[-1]
    if state == "memory":
        # The last `slots - 1` adapters have a slot and the last `in_memory - 1` are in memory: take one in between.
        return order[-((slots + in_memory - 1) // 2)]
    return order[0]


def summarize(rounds: Sequence[Mapping[State, StateRequest]]) -> SwitchingResult:
    """Return the costs over the rounds with only valid requests.

    Raises:
        RequestFailedError: there is no valid round.
    """
    valid = [requests for requests in rounds if all(request.valid for request in requests.values())]
    if not valid:
        raise RequestFailedError(
            f"all {len(rounds)} rounds had an adapter in an unexpected state: does the server have other clients?"
        )
    costs: dict[State, Cost] = {}
    for state in STATES:
        pauses = [requests[state].pause for requests in valid]
        costs[state] = Cost(
            first=median([requests[state].first for requests in valid]),
            more=median([requests[state].first - requests["slot"].first for requests in valid]),
            pause=median(pauses),
            longest_pause=max(pauses),
        )
    return SwitchingResult(
        costs=costs,
        usual_gap=median([gap for requests in valid for request in requests.values() for gap in request.gaps]),
        rounds=len(valid),
        discarded=len(rounds) - len(valid),
        cached_share=max(requests["disk"].cached_share for requests in valid),
    )


async def _request(
    http: aiohttp.ClientSession,
    state: State,
    order: list[str],
    stream: "_BackgroundStream",
    tokens: int,
    chance: random.Random,
    admin_key: str,
) -> StateRequest:
    locations = await adapter_locations(http, admin_key)
    name = adapter_in_state(state, order, locations.slots, locations.in_memory)
    as_expected = (name in locations.loaded) == (state in ("slot", "memory"))
    # This also blocks the reader of the background stream, which must become steady again before the measurement.
    (drop_from_cache if state == "disk" else read_into_cache)(locations.files[name])
    cached = cached_share(locations.files[name])
    gaps = await stream.wait_until_steady()
    response = await request_adapter(http, name, tokens, chance)
    order.remove(name)
    order.append(name)
    if response.error:
        raise RequestFailedError(f"{name}: {response.error}")
    still_running = await stream.wait_for_chunks(1)
    pause = longest_pause(stream.response.chunk_times, response.started_at, response.chunk_times[0])
    return StateRequest(response.first_ms, pause, gaps, cached, valid=as_expected and still_running)


def longest_pause(chunk_times: Sequence[float], start: float, end: float) -> float:
    """Return the longest gap in ms between two chunks, among gaps that overlap the interval."""
    pairs = itertools.pairwise(chunk_times)
    return max(((after - before) * 1000 for before, after in pairs if after > start and before < end), default=0.0)


class _BackgroundStream:
    """A stream of one adapter, restarted between requests after half of its tokens."""

    def __init__(self, http: aiohttp.ClientSession, name: str, tokens: int, chance: random.Random) -> None:
        self._http, self._name, self._tokens, self._chance = http, name, tokens, chance
        self._task: asyncio.Task[Response] | None = None
        self.response = Response(0.0)

    async def wait_until_steady(self) -> Sequence[float]:
        """Wait until the stream has run for `SETTLE_CHUNKS` chunks and return the gaps between them, in ms.

        Raises:
            RequestFailedError: the stream ended before.
        """
        if self._task is None or len(self.response.chunk_times) > self._tokens // 2:
            await self._restart()
        before = len(self.response.chunk_times)
        if not await self.wait_for_chunks(SETTLE_CHUNKS):
            # Several tokens may share a chunk, so the stream was nearer to its end than its chunks indicate.
            await self._restart()
            before = 0
            if not await self.wait_for_chunks(SETTLE_CHUNKS):
                raise RequestFailedError(f"{self._name}: {self.response.error or 'the background stream is too short'}")
        return self.response.gaps_ms[before : before + SETTLE_CHUNKS - 1]

    async def _restart(self) -> None:
        await self.stop()
        self.response = Response(time.perf_counter())
        content = chat_request(self._name, unique_prompt(self._chance), self._tokens)
        self._task = asyncio.ensure_future(send(self._http, content, self.response))

    async def wait_for_chunks(self, count: int) -> bool:
        """Wait for `count` more chunks; return False if the stream ended before."""
        needed = len(self.response.chunk_times) + count
        while self._task is not None and not self._task.done():
            if len(self.response.chunk_times) >= needed:
                return True
            await asyncio.sleep(0.002)
        return False

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
