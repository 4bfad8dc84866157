"""The log-likelihood of every pair's answer under every model, by a running server."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vllm_lora_router.tools.prove.endpoint import RAW, Endpoint, ServerError
from vllm_lora_router.tools.prove.pairs import Pair
from vllm_lora_router.tools.prove.tokens import Spelled, Way, way_for

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Measured:
    """What the server says of a category's pairs."""

    pairs: tuple[Pair, ...]
    values: np.ndarray  # [pairs, models] mean log-likelihood of an answer's tokens, in nats
    answer_tokens: int
    asked_tokens: int  # of them, each of every model


@dataclass(frozen=True)
class Measurements:
    """What came of all pairs."""

    by_category: Mapping[str, Measured]  # those of which a pair is left
    answered: Mapping[str, str]  # model -> what answers call it: an adapter's version stands behind its name
    left_out: tuple[str, ...]  # pairs, each with its place and why
    notes: tuple[str, ...]  # how prompts were put, where that is not how routed requests are


@dataclass(frozen=True, slots=True)
class Asked:
    """A pair, and the tokens of its answer that models are asked about: evenly spread where it has more than enough."""

    pair: Pair
    spelled: Spelled
    tokens: tuple[int, ...]  # their places in `spelled.ids`

    @classmethod
    def of(cls, pair: Pair, spelled: Spelled, most: int) -> "Asked":
        places = np.linspace(spelled.before, len(spelled.ids) - 1, min(most, spelled.answer_tokens))
        return cls(pair, spelled, tuple(map(int, places)))


async def measure(
    endpoint: Endpoint,
    models: Sequence[str],
    pairs: Sequence[Pair],
    system_prompts: Mapping[str, str | None],
    *,
    tokens: int,
    at_once: int,
    planned: Callable[[int], None] = lambda requests: None,
    advance: Callable[[], None] = lambda: None,
) -> Measurements:
    """Asks every model how likely it finds every answer.

    One model after the other, with many requests at once: an adapter is loaded once, and the base is in no batch with
    adapters, where vLLM's CPU kernels may answer with an adapter's weights (vllm-project/vllm#48421).

    Args:
        models: the base first.
        system_prompts: category -> what stands before its prompts.
        tokens: of an answer that are asked about at most, each by a request to every model.
        at_once: requests under way at a time.
        planned: called with the number of requests once it is known.
        advance: called after each of them.

    Raises:
        ServerError: the server cannot be reached, answers with an error, or with another model than was asked.
    """
    spelled, ways = await _spell(endpoint, models[0], pairs, system_prompts, at_once)
    why_not = {pair: why for pair, one in spelled.items() if (why := _why_not(one)) is not None}
    asked = [Asked.of(pair, one, tokens) for pair, one in spelled.items() if pair not in why_not]
    requests = [(row, place) for row, one in enumerate(asked) for place in one.tokens]
    planned(len(requests) * len(models))
    values = np.empty((len(asked), len(models)))
    answered: dict[str, str] = {}
    for column, model in enumerate(models):

        async def ask(request: tuple[int, int], model: str = model) -> float:
            row, place = request
            pair, ids = asked[row].pair, asked[row].spelled.ids
            try:
                by, value = await endpoint.likelihood(model, ids[:place], ids[place])
            except ServerError as error:
                raise ServerError(f"{pair.place}, model {model!r}: {error}", error.status) from None
            _check_answerer(model, by, answered.setdefault(model, by))
            advance()
            return value

        told = np.array(await _each(ask, requests, at_once))
        by_row = np.array([row for row, _ in requests], dtype=int)
        values[:, column] = np.bincount(by_row, told, len(asked)) / [len(one.tokens) for one in asked]
    if values.size and not values.any():
        raise ServerError(f"every model is said to find every answer certain; {RAW}")
    left_out = tuple(f"{pair.place}: {why}; left out" for pair, why in why_not.items())
    return Measurements(_by_category(asked, values), answered, left_out, _notes(ways))


async def _spell(
    endpoint: Endpoint, base: str, pairs: Sequence[Pair], system_prompts: Mapping[str, str | None], at_once: int
) -> tuple[dict[Pair, Spelled], dict[str, Way]]:
    """Every pair in tokens, and the way of each category."""
    ways: dict[str, Way] = {}
    for pair in pairs:
        if pair.category not in ways:
            ways[pair.category] = await way_for(endpoint, base, pair, system_prompts.get(pair.category))

    async def spell(pair: Pair) -> Spelled:
        try:
            return await ways[pair.category].spell(endpoint, base, pair)
        except ServerError as error:
            raise ServerError(f"{pair.place}: {error}", error.status) from None

    return dict(zip(pairs, await _each(spell, pairs, at_once), strict=True)), ways


def _why_not(spelled: Spelled) -> str | None:
    """Why a pair cannot be asked."""
    if len(spelled.ids) > spelled.longest:
        return f"prompt and answer are {len(spelled.ids):,} tokens, and the model takes {spelled.longest:,}"
    return "the chat template leaves nothing of the answer" if spelled.answer_tokens < 1 else None


def _check_answerer(model: str, by: str, before: str) -> None:
    if by != model and not by.startswith(f"{model}@"):
        raise ServerError(
            f"the server answers requests for {model!r} as {by!r}: something between routes them; set "
            "router.route_base_model to false while you prove"
        )
    if by != before:
        raise ServerError(f"{model!r} changed while it was asked, from {before!r} to {by!r}; prove it again")


def _by_category(asked: Sequence[Asked], values: np.ndarray) -> dict[str, Measured]:
    rows: dict[str, list[int]] = {}
    for row, one in enumerate(asked):
        rows.setdefault(one.pair.category, []).append(row)
    return {
        category: Measured(
            tuple(asked[row].pair for row in own),
            values[own],
            sum(asked[row].spelled.answer_tokens for row in own),
            sum(len(asked[row].tokens) for row in own),
        )
        for category, own in rows.items()
    }


def _notes(ways: Mapping[str, Way]) -> tuple[str, ...]:
    said: dict[str, list[str]] = {}
    for category, way in ways.items():
        if way.said:
            said.setdefault(way.said, []).append(category)
    return tuple(f"{', '.join(categories)}: {what}" for what, categories in said.items())


async def _each(work: Callable[[Item], Awaitable[T]], items: Sequence[Item], at_once: int) -> list[T]:
    """What comes of each, in order; the first failure ends all."""
    done: dict[int, T] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for place, item in waiting:
            done[place] = await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [done[place] for place in range(len(items))]
