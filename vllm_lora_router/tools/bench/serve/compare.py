"""Compare setups in turn with the same questions on the same machine."""

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

from vllm_lora_router.tools.bench.load import LoadResult, closed_loop, open_loop, percentile
from vllm_lora_router.tools.bench.serve.client import Response, chat_request, send, session
from vllm_lora_router.tools.bench.serve.questions import Question, QuestionSampler
from vllm_lora_router.tools.bench.serve.server_processes import client_process, cpu_seconds, resume, run_exclusively
from vllm_lora_router.tools.progress import ReportProgress, no_progress
from vllm_lora_router.tools.statistics import Estimate, median

WARM_UP = 20  # requests for each setup
RESUME_PAUSE_S = 0.002  # pause after a server is resumed

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """One setup that serves the client's questions."""

    name: str
    server: str  # a name in `urls`
    model: str | None  # the requested model; None: the adapter
    processes: Mapping[str, psutil.Process] = field(
        default_factory=dict
    )  # the processes that it takes; empty: not known
    reports_adapter: bool = True  # whether responses name the adapter that answered


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
    """The result of one setup under one load. Comparisons are with the first setup, round by round."""

    load: str  # for example "alone", "16 callers", "open, 40/s"
    setup: str
    succeeded: int
    failed: int
    other_adapter: int  # responses of another adapter than the router selects
    first: Spread  # time to first token
    total: Spread  # end to end
    per_second: float | None  # requests; None for one request at a time
    cpu_ms: Mapping[str, float]  # CPU time of each process per request, with a resolution of 10 ms per round
    rounds: int
    first_more: Estimate | None  # difference of the rounds' medians in ms; None for the first setup
    total_more: Estimate | None
    rate_ratio: Estimate | None
    first_more_here: Estimate | None = None  # compared with naming the adapter on the same server, if measured
    rate_ratio_here: Estimate | None = None
    errors: tuple[str, ...] = ()  # the first distinct errors


@dataclass
class _Samples:
    """The measurements of one setup under one load."""

    responses: list[list[Response]] = field(default_factory=list)  # responses of each round
    rates: list[float] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds
    other_adapter: int = 0


class Comparison:
    """Sends the same questions to every setup."""

    def __init__(
        self, urls: Mapping[str, str], ways: Sequence[Setup], asking: QuestionSampler, tokens: int, seed: int
    ) -> None:
        """
        Args:
            tokens: of each answer.
        """
        self._urls, self._setups, self._sampler, self._tokens = urls, ways, asking, tokens
        self._order = random.Random(seed)
        self._open = AsyncExitStack()
        self._http: dict[str, aiohttp.ClientSession] = {}

    async def __aenter__(self) -> "Comparison":
        for server in dict.fromkeys(setup.server for setup in self._setups):
            self._http[server] = await self._open.enter_async_context(session(self._urls[server]))
        for _ in range(WARM_UP):
            for setup in self._setups:
                await self._exclusively(setup, self._send(setup, self._sampler(), []))
        return self

    async def __aexit__(self, *error: object) -> None:
        for setup in self._setups:
            resume(setup.processes.values())
        await self._open.aclose()

    async def one_at_a_time(self, rounds: int, report_progress: ReportProgress = no_progress) -> list[Row]:
        """Send one request at a time: each round sends a question to every setup, in random order."""
        all_samples = [_Samples() for _ in self._setups]
        for done in range(rounds):
            question = self._sampler()
            for setup, samples in self._shuffled(all_samples):
                responses: list[Response] = []
                samples.other_adapter += await self._exclusively(setup, self._send(setup, question, responses))
                samples.responses.append(responses)
            report_progress("one at a time", done + 1, rounds)
        return self._rows("alone", all_samples)

    async def concurrent(
        self, count: int, rounds: int, seconds: float, report_progress: ReportProgress = no_progress
    ) -> list[Row]:
        """Run `count` concurrent clients in a closed loop, for `seconds` for each setup in each round."""
        label = f"{count} callers"
        return await self._loads(
            label, rounds, report_progress, lambda send, draw: closed_loop(send, draw, count, seconds)
        )

    async def open_loop(
        self, per_second: float, rounds: int, seconds: float, report_progress: ReportProgress = no_progress
    ) -> list[Row]:
        """Send questions at random times, independent of responses."""
        label = f"open, {per_second:.3g}/s"
        return await self._loads(
            label, rounds, report_progress, lambda send, draw: open_loop(send, draw, per_second, seconds)
        )

    async def _loads(
        self,
        label: str,
        rounds: int,
        report_progress: ReportProgress,
        load: Callable[[Callable[[Question], Awaitable[None]], Callable[[], Question]], Awaitable[LoadResult]],
    ) -> list[Row]:
        all_samples = [_Samples() for _ in self._setups]
        done = 0
        for _ in range(rounds):
            for setup, samples in self._shuffled(all_samples):
                responses: list[Response] = []

                async def send_one(
                    question: Question,
                    setup: Setup = setup,
                    samples: _Samples = samples,
                    responses: list[Response] = responses,
                ) -> None:
                    samples.other_adapter += await self._send(setup, question, responses)

                before = cpu_seconds({**setup.processes, **client_process()})
                result = await self._exclusively(setup, load(send_one, self._sampler))
                for name, seconds in cpu_seconds({**setup.processes, **client_process()}).items():
                    samples.cpu[name] += seconds - before.get(name, seconds)
                samples.responses.append(responses)
                samples.rates.append(sum(not response.error for response in responses) / result.seconds)
                done += 1
                report_progress(label, done, rounds * len(all_samples))
        return self._rows(label, all_samples)

    def _shuffled(self, all_samples: Sequence[_Samples]) -> list[tuple[Setup, _Samples]]:
        pairs = list(zip(self._setups, all_samples, strict=True))
        self._order.shuffle(pairs)
        return pairs

    async def _exclusively(self, setup: Setup, work: Awaitable[T]) -> T:
        """Run `work` while the servers of the other setups are paused."""
        used = {process.pid for process in setup.processes.values()}
        others = {process.pid: process for other in self._setups for process in other.processes.values()}
        with run_exclusively(setup.processes, [process for pid, process in others.items() if pid not in used]):
            await asyncio.sleep(RESUME_PAUSE_S)
            return await work

    async def _send(self, setup: Setup, question: Question, responses: list[Response]) -> bool:
        """Send a question and return whether another adapter answered than the router selects."""
        content = chat_request(setup.model or question.adapter, self._sampler.prompt(question), self._tokens)
        response = await send(self._http[setup.server], content)
        responses.append(response)
        return setup.reports_adapter and not response.error and response.model != question.adapter

    def _rows(self, load: str, all_samples: Sequence[_Samples]) -> list[Row]:
        named = {
            setup.server: samples
            for setup, samples in zip(self._setups, all_samples, strict=True)
            if setup.model is None
        }
        return [
            _result_row(
                load,
                setup,
                samples,
                first=None if samples is all_samples[0] else all_samples[0],
                here=None if setup.model is None else named.get(setup.server),
            )
            for setup, samples in zip(self._setups, all_samples, strict=True)
        ]


def _result_row(load: str, setup: Setup, samples: _Samples, *, first: _Samples | None, here: _Samples | None) -> Row:
    succeeded = [response for responses in samples.responses for response in responses if not response.error]
    errors = [response.error for responses in samples.responses for response in responses if response.error]
    firsts, totals = _medians(samples, "first_ms"), _medians(samples, "total_ms")
    return Row(
        load=load,
        setup=setup.name,
        succeeded=len(succeeded),
        failed=len(errors),
        other_adapter=samples.other_adapter,
        first=Spread.of([response.first_ms for response in succeeded] or [float("nan")]),
        total=Spread.of([response.total_ms for response in succeeded] or [float("nan")]),
        per_second=statistics.fmean(samples.rates) if samples.rates else None,
        cpu_ms={name: round(seconds * 1000 / max(len(succeeded), 1), 3) for name, seconds in samples.cpu.items()},
        rounds=len(samples.responses),
        first_more=first and _difference(firsts, _medians(first, "first_ms")),
        total_more=first and _difference(totals, _medians(first, "total_ms")),
        rate_ratio=first and _ratio(samples.rates, first.rates),
        first_more_here=here and _difference(firsts, _medians(here, "first_ms")),
        rate_ratio_here=here and _ratio(samples.rates, here.rates),
        errors=tuple(dict.fromkeys(errors))[:3],
    )


def _medians(samples: _Samples, attribute: str) -> list[float | None]:
    """Return the median of each round, or None if no request succeeded."""
    medians: list[float | None] = []
    for responses in samples.responses:
        values = [getattr(response, attribute) for response in responses if not response.error]
        medians.append(percentile(values, 50) if values else None)
    return medians


def _difference(values: Sequence[float | None], others: Sequence[float | None]) -> Estimate | None:
    differences = [a - b for a, b in zip(values, others, strict=True) if a is not None and b is not None]
    return median(differences) if differences else None


def _ratio(rates: Sequence[float], others: Sequence[float]) -> Estimate | None:
    ratios = [a / b for a, b in zip(rates, others, strict=True) if b]
    return median(ratios) if ratios else None
