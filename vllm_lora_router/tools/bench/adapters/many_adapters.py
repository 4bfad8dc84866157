"""Measure time to first token and throughput by the number and distribution of requested adapters."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from vllm_lora_router.tools.bench.adapters.serving import RequestFailedError, request_adapter, request_each
from vllm_lora_router.tools.bench.load import closed_loop, percentile
from vllm_lora_router.tools.bench.serve.client import Response, session
from vllm_lora_router.tools.bench.serve.questions import AdapterMix
from vllm_lora_router.tools.statistics import Estimate, median


@dataclass(frozen=True)
class ManyAdaptersResult:
    """Medians over the rounds, with the smallest and largest value as interval. Times are in milliseconds."""

    adapters: int
    mix: AdapterMix
    first_p50: Estimate  # time to first token
    first_p95: Estimate
    per_second: Estimate  # answers per second
    answers: int  # in all rounds
    errors: int


@dataclass(frozen=True)
class _Run:
    firsts: Sequence[float]
    per_second: float
    errors: int


async def measure_many_adapters(
    url: str,
    names: Sequence[str],
    counts: Sequence[int],
    exponents: Sequence[float],
    clients: int,
    seconds: float,
    tokens: int,
    seed: int,
    *,
    rounds: int = 3,
) -> list[ManyAdaptersResult]:
    """Run concurrent clients that request one of the first `count` adapters by Zipf's law.

    Each round measures every combination of a count and an exponent, in random order. A measurement starts with a
    warm-up of half its duration, which loads the most requested adapters and is not counted.

    Args:
        url: a server with `configuration` for these adapters. `max_loads_per_s` would limit the answers of adapters
            that are not in the engine's memory to this rate.
        names: adapter names, the most requested first.
        counts: numbers of adapters.
        exponents: exponents of Zipf's law; 0 is uniform.
        clients: number of concurrent clients.
        seconds: duration of a measurement, without the warm-up.
        tokens: tokens of each answer.

    Raises:
        RequestFailedError: an adapter cannot be served, or a measurement has no answer.
        ValueError: there are too few names.
    """
    if max(counts) > len(names):
        raise ValueError(f"{max(counts)} adapters are to be requested, but there are only {len(names)}")
    chance = random.Random(seed)
    cells = list(itertools.product(counts, [AdapterMix(exponent) for exponent in exponents]))
    runs: dict[tuple[int, AdapterMix], list[_Run]] = {cell: [] for cell in cells}
    async with session(url) as http:
        # The first request for an adapter validates and copies it.
        await request_each(http, names[: max(counts)][::-1], chance)
        for _ in range(rounds):
            for count, mix in chance.sample(cells, len(cells)):
                await _run(http, names[:count], mix, clients, seconds / 2, tokens, chance)
                runs[count, mix].append(await _run(http, names[:count], mix, clients, seconds, tokens, chance))
    return [_result(count, mix, runs[count, mix]) for count, mix in cells]


async def _run(
    http: aiohttp.ClientSession,
    names: Sequence[str],
    mix: AdapterMix,
    clients: int,
    seconds: float,
    tokens: int,
    chance: random.Random,
) -> _Run:
    draw = mix.sampler(len(names), chance)
    responses: list[Response] = []

    async def ask(name: str) -> None:
        responses.append(await request_adapter(http, name, tokens, chance))

    load = await closed_loop(ask, lambda: names[draw()], clients, seconds)
    answers = [response for response in responses if not response.error]
    if not answers:
        raise RequestFailedError(responses[0].error)
    return _Run([answer.first_ms for answer in answers], len(answers) / load.seconds, len(responses) - len(answers))


def _result(count: int, mix: AdapterMix, runs: Sequence[_Run]) -> ManyAdaptersResult:
    return ManyAdaptersResult(
        adapters=count,
        mix=mix,
        first_p50=median([percentile(run.firsts, 50) for run in runs]),
        first_p95=median([percentile(run.firsts, 95) for run in runs]),
        per_second=median([run.per_second for run in runs]),
        answers=sum(len(run.firsts) for run in runs),
        errors=sum(run.errors for run in runs),
    )
