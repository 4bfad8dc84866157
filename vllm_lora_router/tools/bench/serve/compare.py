"""Ways to be served, compared in turns: the same questions, the same machine, the same minutes."""

import asyncio
import random
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import psutil

from vllm_lora_router.tools.bench.estimates import Estimate, median
from vllm_lora_router.tools.bench.load import Load, closed_loop, open_loop, percentile
from vllm_lora_router.tools.bench.serve.client import Answered, ask, request, session
from vllm_lora_router.tools.bench.serve.processes import alone, cpu_seconds, itself, let_go
from vllm_lora_router.tools.bench.serve.questions import Asking, Question
from vllm_lora_router.tools.progress import Told

WARM_UP = 20  # requests a way
SETTLED_S = 0.002  # that a server which was held has to itself before it is asked

T = TypeVar("T")


@dataclass(frozen=True)
class Way:
    """One way in which a client's question is served."""

    name: str
    server: str  # where it is sent, a name of `urls`
    model: str | None  # what the client names; None: the adapter
    takes: Mapping[str, psutil.Process] = field(default_factory=dict)  # the processes that it takes; empty: not known
    tells: bool = True  # whether its answers say which adapter gave them


@dataclass(frozen=True)
class Spread:
    """Percentiles, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(*(round(percentile(values, percent), 3) for percent in (50, 95, 99)))


@dataclass(frozen=True)
class Row:
    """How one way did under one load. What is compared is compared with the first way, round by round."""

    load: str  # such as "alone", "16 callers", "open, 40/s"
    way: str
    answered: int
    failed: int
    elsewhere: int  # answered by another adapter than the router would choose
    first: Spread  # time to first token
    total: Spread  # end to end
    per_second: float | None  # requests; None where one is alone
    cpu_ms: Mapping[str, float]  # of each process, a request; hundredths of a second of a round are not seen
    rounds: int
    first_more: Estimate | None  # of the rounds' medians, in milliseconds; None for the first way
    total_more: Estimate | None
    rate_ratio: Estimate | None
    first_more_here: Estimate | None = None  # than naming the adapter on the same server; None where nobody does
    rate_ratio_here: Estimate | None = None
    errors: tuple[str, ...] = ()  # the first few, each once


@dataclass
class _Seen:
    """What has been seen of a way under a load."""

    answers: list[list[Answered]] = field(default_factory=list)  # those of each round
    rates: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds
    elsewhere: int = 0


class Comparison:
    """Sends the same questions in every way."""

    def __init__(self, urls: Mapping[str, str], ways: Sequence[Way], asking: Asking, tokens: int, seed: int) -> None:
        """
        Args:
            tokens: of each answer.
        """
        self._urls, self._ways, self._asking, self._tokens = urls, ways, asking, tokens
        self._order = random.Random(seed)
        self._open = AsyncExitStack()
        self._http: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> "Comparison":
        for server in dict.fromkeys(way.server for way in self._ways):
            self._http[server] = await self._open.enter_async_context(session(self._urls[server]))
        for _ in range(WARM_UP):
            for way in self._ways:
                await self._in_turn(way, self._ask(way, self._asking(), []))
        return self

    async def __aexit__(self, *error: object) -> None:
        for way in self._ways:
            let_go(way.takes.values())
        await self._open.aclose()

    async def alone(self, rounds: int, told: Told = lambda what, done, of: None) -> list[Row]:
        """One request at a time: each round asks a question in every way, in random order."""
        seen = [_Seen() for _ in self._ways]
        for done in range(rounds):
            question = self._asking()
            for way, own in self._shuffled(seen):
                answers: list[Answered] = []
                own.elsewhere += await self._in_turn(way, self._ask(way, question, answers))
                own.answers.append(answers)
            told("one at a time", done + 1, rounds)
        return self._rows("alone", seen)

    async def callers(
        self, count: int, rounds: int, seconds: float, told: Told = lambda what, done, of: None
    ) -> list[Row]:
        """So many callers, each asking again when it was answered: each round gives every way so many seconds."""
        what = f"{count} callers"
        return await self._loads(what, rounds, told, lambda one, draw: closed_loop(one, draw, count, seconds))

    async def arriving(
        self, per_second: float, rounds: int, seconds: float, told: Told = lambda what, done, of: None
    ) -> list[Row]:
        """Questions that come at random moments, whether or not those before were answered."""
        what = f"open, {per_second:.3g}/s"
        return await self._loads(what, rounds, told, lambda one, draw: open_loop(one, draw, per_second, seconds))

    async def _loads(
        self,
        what: str,
        rounds: int,
        told: Told,
        load: Callable[[Callable[[Question], Awaitable[None]], Callable[[], Question]], Awaitable[Load]],
    ) -> list[Row]:
        seen = [_Seen() for _ in self._ways]
        done = 0
        for _ in range(rounds):
            for way, own in self._shuffled(seen):
                answers: list[Answered] = []

                async def one(
                    question: Question, way: Way = way, own: _Seen = own, answers: list[Answered] = answers
                ) -> None:
                    own.elsewhere += await self._ask(way, question, answers)

                before = cpu_seconds({**way.takes, **itself()})
                found = await self._in_turn(way, load(one, self._asking))
                for name, taken in cpu_seconds({**way.takes, **itself()}).items():
                    own.cpu[name] += taken - before.get(name, taken)
                own.answers.append(answers)
                own.rates.append(sum(not answer.error for answer in answers) / found.seconds)
                done += 1
                told(what, done, rounds * len(seen))
        return self._rows(what, seen)

    def _shuffled(self, seen: Sequence[_Seen]) -> list[tuple[Way, _Seen]]:
        both = list(zip(self._ways, seen, strict=True))
        self._order.shuffle(both)
        return both

    async def _in_turn(self, way: Way, work: Awaitable[T]) -> T:
        """What is done while the servers of the other ways are held."""
        own = {process.pid for process in way.takes.values()}
        others = {process.pid: process for other in self._ways for process in other.takes.values()}
        with alone(way.takes, [process for pid, process in others.items() if pid not in own]):
            await asyncio.sleep(SETTLED_S)
            return await work

    async def _ask(self, way: Way, question: Question, answers: list[Answered]) -> bool:
        """Whether another adapter answered than the router would choose."""
        content = request(way.model or question.adapter, self._asking.prompt(question), self._tokens)
        answered = await ask(self._http[way.server], content)
        answers.append(answered)
        return way.tells and not answered.error and answered.model != question.adapter

    def _rows(self, load: str, seen: Sequence[_Seen]) -> list[Row]:
        named = {way.server: own for way, own in zip(self._ways, seen, strict=True) if way.model is None}
        return [
            _row(
                load,
                way,
                own,
                first=None if own is seen[0] else seen[0],
                here=None if way.model is None else named.get(way.server),
            )
            for way, own in zip(self._ways, seen, strict=True)
        ]


def _row(load: str, way: Way, own: _Seen, *, first: _Seen | None, here: _Seen | None) -> Row:
    answered = [one for answers in own.answers for one in answers if not one.error]
    errors = [one.error for answers in own.answers for one in answers if one.error]
    firsts, totals = _medians(own, "first_ms"), _medians(own, "total_ms")
    return Row(
        load=load,
        way=way.name,
        answered=len(answered),
        failed=len(errors),
        elsewhere=own.elsewhere,
        first=Spread.of([one.first_ms for one in answered] or [float("nan")]),
        total=Spread.of([one.total_ms for one in answered] or [float("nan")]),
        per_second=statistics.fmean(own.rates) if own.rates else None,
        cpu_ms={name: round(taken * 1000 / max(len(answered), 1), 3) for name, taken in own.cpu.items()},
        rounds=len(own.answers),
        first_more=first and _more(firsts, _medians(first, "first_ms")),
        total_more=first and _more(totals, _medians(first, "total_ms")),
        rate_ratio=first and _ratio(own.rates, first.rates),
        first_more_here=here and _more(firsts, _medians(here, "first_ms")),
        rate_ratio_here=here and _ratio(own.rates, here.rates),
        errors=tuple(dict.fromkeys(errors))[:3],
    )


def _medians(seen: _Seen, what: str) -> list[float | None]:
    """Of each round; None where nothing was answered."""
    found: list[float | None] = []
    for answers in seen.answers:
        values = [getattr(one, what) for one in answers if not one.error]
        found.append(percentile(values, 50) if values else None)
    return found


def _more(values: Sequence[float | None], others: Sequence[float | None]) -> Estimate | None:
    both = [a - b for a, b in zip(values, others, strict=True) if a is not None and b is not None]
    return median(both) if both else None


def _ratio(rates: Sequence[float], others: Sequence[float]) -> Estimate | None:
    both = [a / b for a, b in zip(rates, others, strict=True) if b]
    return median(both) if both else None
