"""What a crowd of adapters costs: time to first token and throughput by how many are asked for, and how evenly."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from vllm_lora_router.tools.bench.adapters.serving import NotAnswered, ask_adapter, ask_each
from vllm_lora_router.tools.bench.estimates import Estimate, median
from vllm_lora_router.tools.bench.load import closed_loop, percentile
from vllm_lora_router.tools.bench.serve.client import Answered, session
from vllm_lora_router.tools.bench.serve.questions import Mix


@dataclass(frozen=True)
class Crowd:
    """Medians over the rounds, whose intervals are from the least to the greatest of so few. Times in milliseconds."""

    adapters: int
    mix: Mix
    first_p50: Estimate  # time to first token
    first_p95: Estimate
    per_second: Estimate  # answers
    answers: int  # in all rounds
    errors: int


@dataclass(frozen=True)
class _Run:
    firsts: Sequence[float]
    per_second: float
    errors: int


async def crowding(
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
) -> list[Crowd]:
    """Callers that ask one request after the other, each for one of the first `count` names by Zipf's law.

    In each round every pair of a count and an exponent has its turn, in random order. A turn begins with half as long a
    time that does not count, in which the adapters that are asked for most take the places of those before them.

    Args:
        url: a server with `configuration` of these adapters. A configuration with `max_loads_per_s` bounds the answers
            of adapters that are not in the engine's memory to that many a second.
        names: of its adapters, the one that is asked for most first.
        exponents: 0 asks for all alike.
        clients: callers.
        seconds: a turn takes, beside what does not count.
        tokens: of each answer.

    Raises:
        NotAnswered: an adapter cannot be served at all, or none was in a turn.
        ValueError: there are too few names.
    """
    if max(counts) > len(names):
        raise ValueError(f"{max(counts)} adapters are to be asked for, and there are {len(names)}")
    chance = random.Random(seed)
    cells = list(itertools.product(counts, [Mix(exponent) for exponent in exponents]))
    runs: dict[tuple[int, Mix], list[_Run]] = {cell: [] for cell in cells}
    async with session(url) as http:
        # The first request for an adapter has it checked and copied, which no later one does.
        await ask_each(http, names[: max(counts)][::-1], chance)
        for _ in range(rounds):
            for count, mix in chance.sample(cells, len(cells)):
                await _run(http, names[:count], mix, clients, seconds / 2, tokens, chance)
                runs[count, mix].append(await _run(http, names[:count], mix, clients, seconds, tokens, chance))
    return [_crowd(count, mix, runs[count, mix]) for count, mix in cells]


async def _run(
    http: aiohttp.ClientSession,
    names: Sequence[str],
    mix: Mix,
    clients: int,
    seconds: float,
    tokens: int,
    chance: random.Random,
) -> _Run:
    draw = mix.draws(len(names), chance)
    seen: list[Answered] = []

    async def ask(name: str) -> None:
        seen.append(await ask_adapter(http, name, tokens, chance))

    load = await closed_loop(ask, lambda: names[draw()], clients, seconds)
    answers = [one for one in seen if not one.error]
    if not answers:
        raise NotAnswered(seen[0].error)
    return _Run([one.first_ms for one in answers], len(answers) / load.seconds, len(seen) - len(answers))


def _crowd(count: int, mix: Mix, runs: Sequence[_Run]) -> Crowd:
    return Crowd(
        adapters=count,
        mix=mix,
        first_p50=median([percentile(run.firsts, 50) for run in runs]),
        first_p95=median([percentile(run.firsts, 95) for run in runs]),
        per_second=median([run.per_second for run in runs]),
        answers=sum(len(run.firsts) for run in runs),
        errors=sum(run.errors for run in runs),
    )
