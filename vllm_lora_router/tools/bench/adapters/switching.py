"""What it costs to ask for another adapter, by where that is, and for how long it makes another stream pause."""

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import aiohttp

from vllm_lora_router.tools.bench.adapters.page_cache import drop, keep, kept_share
from vllm_lora_router.tools.bench.adapters.serving import (
    NotAnswered,
    Whereabouts,
    ask_adapter,
    ask_each,
    unlike,
    whereabouts,
)
from vllm_lora_router.tools.bench.estimates import Estimate, median
from vllm_lora_router.tools.bench.serve.client import Answered, ask, request, session

State = Literal["slot", "memory", "page cache", "disk"]  # the nearest place that has the adapter
STATES: tuple[State, ...] = get_args(State)

SETTLED = 20  # pieces of the other stream before a request: so long nothing else happens


@dataclass(frozen=True)
class Cost:
    """Requests for an adapter in one state, one a round. Times are in milliseconds."""

    first: Estimate  # time to first token
    more: Estimate  # than the same round's request for an adapter in a slot
    pause: Estimate  # the longest between two pieces of the other stream until the first token
    longest_pause: float


@dataclass(frozen=True)
class Switching:
    """The cost of each state, and what it is compared with."""

    costs: Mapping[State, Cost]
    usual_gap: Estimate  # ms between two pieces of the other stream while it is alone
    rounds: int  # that count
    astray: int  # rounds that do not: an adapter was not where it should be, or the other stream ended meanwhile
    kept_share: float  # of the files that were dropped from the page cache, how much was still there at the most


@dataclass(frozen=True)
class Asked:
    """One request as it went."""

    first: float  # ms to first token
    pause: float  # ms, the longest of the other stream meanwhile
    gaps: Sequence[float]  # ms between the other stream's pieces before it
    kept_share: float  # of the adapter's files in the page cache
    sound: bool  # all was as it should be


async def switching(
    url: str, names: Sequence[str], rounds: int, tokens: int, seed: int, *, admin_key: str, stream_tokens: int = 1500
) -> Switching:
    """Asks for an adapter in each of the states, in random order, round after round, and each time beside one stream.

    Which adapters have a slot or are in memory follows from the order in which they were used: the engine lets go of
    what was not used for longest, and nobody else asks it. Before each request the server says what is in memory, which
    must agree; of slots it cannot tell. The adapter in a slot is the one that was asked for just before, that in memory
    one that lost its slot since, and that on disk the one not used for longest. Of the latter the files (the source's
    and our copy) are read just before, or dropped from the page cache. Of a dropped file the kernel still knows where
    on the disk it lies, and the disk may have memory of its own.

    Args:
        url: a server on this machine that nobody else asks, of one process and one engine, with `configuration` of
            these adapters and at least two slots.
        names: its adapters, two more than the engine keeps in memory, or more. The first serves the other stream.
        tokens: of each answer.
        admin_key: for `GET /v1/router/adapters`.
        stream_tokens: of the other stream, as many as the model's length allows. It begins again after half of them.

    Raises:
        NotAnswered: a request failed, or no round counts.
        ValueError: there are too few slots, places in memory or adapters.
    """
    async with session(url) as http:
        chance = random.Random(seed)
        stream_name, *order = dict.fromkeys(names)
        check(await whereabouts(http, admin_key), len(order))
        await ask_each(http, [*order, stream_name], chance)
        stream = _Stream(http, stream_name, stream_tokens, chance)
        done: list[Mapping[State, Asked]] = []
        try:
            for _ in range(rounds):
                asked: dict[State, Asked] = {}
                for state in chance.sample(STATES, len(STATES)):
                    asked[state] = await _ask(http, state, order, stream, tokens, chance, admin_key)
                done.append(asked)
        finally:
            await stream.stop()
        return summary(done)


def check(where: Whereabouts, others: int) -> None:
    """Raises ValueError unless so many adapters beside the stream's can be in every state."""
    if where.slots < 2:
        raise ValueError("the other stream takes a slot for itself: start the server with --max-loras 2 or more")
    if where.in_memory <= where.slots:
        raise ValueError(
            f"every adapter in memory has a slot: start the server with --max-cpu-loras {where.slots + 1} or more"
        )
    if others <= where.in_memory:
        raise ValueError(f"{others + 1} adapters are too few, {where.in_memory + 2} or more are needed")


def choose(state: State, order: Sequence[str], slots: int, in_memory: int) -> str:
    """The adapter that is in a state.

    Args:
        order: the adapters as they were last used, the latest last, without the other stream's: that one is always
            in use, and has one of the slots and of the places in memory.
    """
    if state == "slot":
        return order[-1]
    if state == "memory":
        # Of the last ones the first `slots - 1` have a slot and `in_memory - 1` are in memory: far from both borders.
        return order[-((slots + in_memory - 1) // 2)]
    return order[0]


def summary(rounds: Sequence[Mapping[State, Asked]]) -> Switching:
    """Over the rounds of which every request was sound.

    Raises:
        NotAnswered: there is none.
    """
    sound = [one for one in rounds if all(asked.sound for asked in one.values())]
    if not sound:
        raise NotAnswered(f"in none of {len(rounds)} rounds was every adapter where it should be: who else asks?")
    costs: dict[State, Cost] = {}
    for state in STATES:
        pauses = [one[state].pause for one in sound]
        costs[state] = Cost(
            first=median([one[state].first for one in sound]),
            more=median([one[state].first - one["slot"].first for one in sound]),
            pause=median(pauses),
            longest_pause=max(pauses),
        )
    return Switching(
        costs=costs,
        usual_gap=median([gap for one in sound for asked in one.values() for gap in asked.gaps]),
        rounds=len(sound),
        astray=len(rounds) - len(sound),
        kept_share=max(one["disk"].kept_share for one in sound),
    )


async def _ask(
    http: aiohttp.ClientSession,
    state: State,
    order: list[str],
    stream: "_Stream",
    tokens: int,
    chance: random.Random,
    admin_key: str,
) -> Asked:
    where = await whereabouts(http, admin_key)
    name = choose(state, order, where.slots, where.in_memory)
    right = (name in where.loaded) == (state in ("slot", "memory"))
    # Blocks the stream's reader as well, whose pieces are not looked at before it has settled again.
    (drop if state == "disk" else keep)(where.files[name])
    kept = kept_share(where.files[name])
    gaps = await stream.settle()
    answered = await ask_adapter(http, name, tokens, chance)
    order.remove(name)
    order.append(name)
    if answered.error:
        raise NotAnswered(f"{name}: {answered.error}")
    goes_on = await stream.pieces(1)
    pause = longest_pause(stream.answered.moments, answered.began, answered.moments[0])
    return Asked(answered.first_ms, pause, gaps, kept, sound=right and goes_on)


def longest_pause(moments: Sequence[float], began: float, ended: float) -> float:
    """The longest in ms between two of the moments, of those pauses that reach into a time."""
    pairs = itertools.pairwise(moments)
    return max(((after - before) * 1000 for before, after in pairs if after > began and before < ended), default=0.0)


class _Stream:
    """A stream of one adapter that begins again after half of its tokens, and between requests only."""

    def __init__(self, http: aiohttp.ClientSession, name: str, tokens: int, chance: random.Random) -> None:
        self._http, self._name, self._tokens, self._chance = http, name, tokens, chance
        self._task: asyncio.Task[Answered] | None = None
        self.answered = Answered(0.0)

    async def settle(self) -> Sequence[float]:
        """Returns when it has run for a while, and what was between its pieces meanwhile, in ms.

        Raises:
            NotAnswered: it ended before.
        """
        if self._task is None or len(self.answered.moments) > self._tokens // 2:
            await self._begin()
        before = len(self.answered.moments)
        if not await self.pieces(SETTLED):
            # Tokens that came together are one piece: it was nearer to its end than its pieces say.
            await self._begin()
            before = 0
            if not await self.pieces(SETTLED):
                raise NotAnswered(f"{self._name}: {self.answered.error or 'the other stream is too short'}")
        return self.answered.gaps_ms[before : before + SETTLED - 1]

    async def _begin(self) -> None:
        await self.stop()
        self.answered = Answered(time.perf_counter())
        content = request(self._name, unlike(self._chance), self._tokens)
        self._task = asyncio.ensure_future(ask(self._http, content, self.answered))

    async def pieces(self, count: int) -> bool:
        """Returns when so many more have come; False when it ended before."""
        wanted = len(self.answered.moments) + count
        while self._task is not None and not self._task.done():
            if len(self.answered.moments) >= wanted:
                return True
            await asyncio.sleep(0.002)
        return False

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
