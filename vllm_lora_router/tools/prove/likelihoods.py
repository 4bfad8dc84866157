"""Scoring: the log-likelihood of each pair's answer under each model of a running server."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vllm_lora_router.tools.prove.endpoint import RAW_LOGPROBS, Endpoint, ServerError
from vllm_lora_router.tools.prove.pairs import Pair
from vllm_lora_router.tools.prove.tokens import PromptFormat, TokenizedPair, choose_format

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class CategoryScores:
    """The scores of a category's pairs."""

    pairs: tuple[Pair, ...]
    values: np.ndarray  # [pairs, models] mean log-likelihood of an answer's tokens, in nats
    answer_tokens: int
    scored_tokens: int  # of the answer tokens, for each model


@dataclass(frozen=True)
class Scores:
    """The scores of all pairs."""

    by_category: Mapping[str, CategoryScores]  # categories with at least one scored pair
    answered_as: Mapping[str, str]  # model -> its name in responses; an adapter's version follows the adapter's name
    left_out: tuple[str, ...]  # pairs that were not scored: location and reason
    notes: tuple[str, ...]  # categories whose prompts are rendered differently from routed requests


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A pair and the answer tokens to score; the tokens of a long answer are evenly spaced."""

    pair: Pair
    tokenized: TokenizedPair
    positions: tuple[int, ...]  # of the scored tokens in `tokenized.ids`

    @classmethod
    def of(cls, pair: Pair, tokenized: TokenizedPair, max_tokens: int) -> "ScoredPair":
        """Choose at most `max_tokens` tokens of the answer."""
        count = min(max_tokens, tokenized.answer_tokens)
        positions = np.linspace(tokenized.answer_start, len(tokenized.ids) - 1, count)
        return cls(pair, tokenized, tuple(map(int, positions)))


async def score_pairs(
    endpoint: Endpoint,
    models: Sequence[str],
    pairs: Sequence[Pair],
    system_prompts: Mapping[str, str | None],
    *,
    tokens: int,
    concurrency: int,
    on_planned: Callable[[int], None] = lambda requests: None,
    on_request: Callable[[], None] = lambda: None,
) -> Scores:
    """Score every answer under every model.

    Models are scored one after the other, each with many concurrent requests. An adapter is loaded once, and the base
    is in no batch with adapters, where vLLM's CPU kernels may answer with an adapter's weights
    (vllm-project/vllm#48421).

    Args:
        models: Models to score, the base first.
        system_prompts: category -> the system prompt of its prompts.
        tokens: Maximum number of scored tokens per answer. Each is one request per model.
        concurrency: Maximum number of concurrent requests.
        on_planned: Called with the number of requests when it is known.
        on_request: Called after each request.

    Raises:
        ServerError: A request fails, or another model than the requested one answers.
    """
    tokenized, formats = await _tokenize(endpoint, models[0], pairs, system_prompts, concurrency)
    problems = {pair: problem for pair, tokens_of in tokenized.items() if (problem := _problem(tokens_of)) is not None}
    scored = [
        ScoredPair.of(pair, pair_tokens, tokens) for pair, pair_tokens in tokenized.items() if pair not in problems
    ]
    requests = [(row, position) for row, pair in enumerate(scored) for position in pair.positions]
    on_planned(len(requests) * len(models))
    values = np.empty((len(scored), len(models)))
    answered_as: dict[str, str] = {}
    for column, model in enumerate(models):

        async def request_score(request: tuple[int, int], model: str = model) -> float:
            row, position = request
            pair, ids = scored[row].pair, scored[row].tokenized.ids
            try:
                answered_by, value = await endpoint.log_likelihood(model, ids[:position], ids[position])
            except ServerError as error:
                raise ServerError(f"{pair.location}, model {model!r}: {error}", error.status) from None
            _check_answered_by(model, answered_by, answered_as.setdefault(model, answered_by))
            on_request()
            return value

        results = np.array(await _gather(request_score, requests, concurrency))
        rows = np.array([row for row, _ in requests], dtype=int)
        values[:, column] = np.bincount(rows, results, len(scored)) / [len(pair.positions) for pair in scored]
    if values.size and not values.any():
        raise ServerError(f"the log-likelihood of every answer is 0 under every model; {RAW_LOGPROBS}")
    left_out = tuple(f"{pair.location}: {problem}; left out" for pair, problem in problems.items())
    return Scores(_by_category(scored, values), answered_as, left_out, _notes(formats))


async def _tokenize(
    endpoint: Endpoint, base: str, pairs: Sequence[Pair], system_prompts: Mapping[str, str | None], concurrency: int
) -> tuple[dict[Pair, TokenizedPair], dict[str, PromptFormat]]:
    """Return the tokens of every pair, and the prompt format of every category."""
    formats: dict[str, PromptFormat] = {}
    for pair in pairs:
        if pair.category not in formats:
            formats[pair.category] = await choose_format(endpoint, base, pair, system_prompts.get(pair.category))

    async def tokenize(pair: Pair) -> TokenizedPair:
        try:
            return await formats[pair.category].tokenize(endpoint, base, pair)
        except ServerError as error:
            raise ServerError(f"{pair.location}: {error}", error.status) from None

    return dict(zip(pairs, await _gather(tokenize, pairs, concurrency), strict=True)), formats


def _problem(tokenized: TokenizedPair) -> str | None:
    """Return the reason why a pair cannot be scored."""
    if len(tokenized.ids) > tokenized.max_model_len:
        count, limit = len(tokenized.ids), tokenized.max_model_len
        return f"prompt and answer have {count:,} tokens, and the model's limit is {limit:,}"
    return "the chat template removes the whole answer" if tokenized.answer_tokens < 1 else None


def _check_answered_by(model: str, answered_by: str, first_answered_by: str) -> None:
    if answered_by != model and not answered_by.startswith(f"{model}@"):
        raise ServerError(
            f"{answered_by!r} answers requests for {model!r}, so requests are routed; set router.route_base_model to "
            "false while prove runs"
        )
    if answered_by != first_answered_by:
        raise ServerError(
            f"{model!r} changed from {first_answered_by!r} to {answered_by!r} while it was scored; run prove again"
        )


def _by_category(scored: Sequence[ScoredPair], values: np.ndarray) -> dict[str, CategoryScores]:
    rows_of: dict[str, list[int]] = {}
    for row, pair in enumerate(scored):
        rows_of.setdefault(pair.pair.category, []).append(row)
    return {
        category: CategoryScores(
            tuple(scored[row].pair for row in rows),
            values[rows],
            sum(scored[row].tokenized.answer_tokens for row in rows),
            sum(len(scored[row].positions) for row in rows),
        )
        for category, rows in rows_of.items()
    }


def _notes(formats: Mapping[str, PromptFormat]) -> tuple[str, ...]:
    categories_of: dict[str, list[str]] = {}
    for category, prompt_format in formats.items():
        if prompt_format.note:
            categories_of.setdefault(prompt_format.note, []).append(category)
    return tuple(f"{', '.join(categories)}: {note}" for note, categories in categories_of.items())


async def _gather(work: Callable[[Item], Awaitable[T]], items: Sequence[Item], concurrency: int) -> list[T]:
    """Return the results in the order of the items; the first failure cancels the remaining work."""
    results: dict[int, T] = {}
    remaining = iter(enumerate(items))

    async def run_worker() -> None:
        for index, item in remaining:
            results[index] = await work(item)

    workers = [asyncio.ensure_future(run_worker()) for _ in range(min(concurrency, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]
