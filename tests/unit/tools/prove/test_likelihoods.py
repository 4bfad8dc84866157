"""Scoring of pairs under all models."""

from statistics import fmean

import numpy as np
import pytest

from vllm_lora_router.tools.prove.endpoint import Endpoint, ServerError
from vllm_lora_router.tools.prove.likelihoods import Scores, score_pairs
from vllm_lora_router.tools.prove.pairs import Pair

from .conftest import ASSISTANT, BASE, END, START, SYSTEM, USER, RefusedError, ToyServer, pairs_of

MODELS = (BASE, "a-lora", "b-lora")
SYSTEM_PROMPTS = {"A": "Say a."}


async def scores_of(endpoint: Endpoint, pairs: list[Pair], tokens: int = 32, concurrency: int = 4) -> Scores:
    return await score_pairs(endpoint, MODELS, pairs, SYSTEM_PROMPTS, tokens=tokens, concurrency=concurrency)


def expected_score(toy: ToyServer, model: str, pair: Pair, positions: list[int]) -> float:
    """Return the mean over the characters of an answer at these positions."""
    system = [SYSTEM, *map(ord, SYSTEM_PROMPTS["A"]), END] if pair.category == "A" else []
    context = [START, *system, USER, *map(ord, pair.prompt), END, ASSISTANT]
    text = list(map(ord, pair.answer))
    return fmean(toy.log_likelihood(model, [*context, *text[:index]], text[index]) for index in positions)


async def test_score_is_the_mean_over_the_answers_tokens(toy: ToyServer, endpoint: Endpoint) -> None:
    pairs = [*pairs_of("A", "aabba", 3), *pairs_of("B", "cab", 2)]
    scores = await scores_of(endpoint, pairs)
    assert list(scores.by_category) == ["A", "B"] and not scores.notes and not scores.left_out
    for category in scores.by_category.values():
        expected = [
            [expected_score(toy, model, pair, [*range(len(pair.answer))]) for model in MODELS]
            for pair in category.pairs
        ]
        assert np.allclose(category.values, expected)
    assert (scores.by_category["A"].answer_tokens, scores.by_category["B"].answer_tokens) == (15, 6)
    assert scores.answered_as == {model: model for model in MODELS}


async def test_evenly_spaced_tokens_of_a_long_answer_are_scored(toy: ToyServer, endpoint: Endpoint) -> None:
    (pair,) = pairs_of("B", "abcdefghijk", 1)
    category = (await scores_of(endpoint, [pair], tokens=3, concurrency=1)).by_category["B"]
    assert np.allclose(category.values, [[expected_score(toy, model, pair, [0, 5, 10]) for model in MODELS]])
    assert (category.answer_tokens, category.scored_tokens) == (11, 3)
    assert [chr(token) for _, _, token in toy.requests] == ["a", "f", "k"] * 3


async def test_models_are_scored_sequentially_with_limited_concurrency(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.delay_s = 0.01
    await scores_of(endpoint, pairs_of("A", "aab", 6), concurrency=5)
    assert max(sum(running.values()) for running in toy.concurrent) == 5
    assert all(len(running) == 1 for running in toy.concurrent)
    assert [model for model, _, _ in toy.requests] == [model for model in MODELS for _ in range(18)]


async def test_pairs_longer_than_the_models_limit_are_left_out(toy: ToyServer, endpoint: Endpoint) -> None:
    fits = Pair("q", "x" * (toy.context - 5), "B", "pairs.jsonl:1")
    too_long = Pair("q", "x" * (toy.context - 4), "B", "pairs.jsonl:2")
    scores = await scores_of(endpoint, [fits, too_long], tokens=4)
    assert scores.by_category["B"].pairs == (fits,)
    assert scores.left_out == (
        "pairs.jsonl:2: prompt and answer have 201 tokens, and the model's limit is 200; left out",
    )
    only_too_long = await scores_of(endpoint, [too_long])
    assert (only_too_long.by_category, len(only_too_long.left_out)) == ({}, 1)


async def test_pair_without_answer_after_the_template_is_left_out(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.template = "trims"
    scores = await scores_of(endpoint, [*pairs_of("B", "ab", 1), Pair("q", "\n\n", "B", "pairs.jsonl:2")])
    assert scores.left_out == ("pairs.jsonl:2: the chat template removes the whole answer; left out",)


async def test_format_that_differs_from_routed_requests_is_noted(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.template = "no system"
    scores = await scores_of(endpoint, [*pairs_of("A", "a", 1), *pairs_of("B", "b", 1)])
    assert scores.notes == ("A: scored without the category's system prompt, which the chat template does not support",)


async def test_version_of_an_adapter_is_recorded(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.answered_as = {"a-lora": "a-lora@1a2b3c4d"}
    assert (await scores_of(endpoint, pairs_of("A", "a", 2))).answered_as["a-lora"] == "a-lora@1a2b3c4d"


async def test_adapter_that_changes_while_it_is_scored_is_an_error(toy: ToyServer, endpoint: Endpoint) -> None:
    def change(path: str, body: dict) -> None:
        if len(toy.requests) == 6:
            toy.answered_as = {"a-lora": "a-lora@1a2b3c4d"}

    toy.refuse = change
    with pytest.raises(ServerError, match="'a-lora' changed from 'a-lora' to 'a-lora@1a2b3c4d' while it was scored"):
        await scores_of(endpoint, pairs_of("A", "a", 4), concurrency=1)


async def test_routed_base_model_is_an_error(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.answered_as = {BASE: "a-lora"}
    with pytest.raises(ServerError, match=r"'a-lora' answers requests for 'toy/base'.*route_base_model"):
        await scores_of(endpoint, pairs_of("A", "a", 2))


@pytest.mark.parametrize("value", [0.0, 17.5])
async def test_server_without_raw_logprobs_is_an_error(toy: ToyServer, endpoint: Endpoint, value: float) -> None:
    toy.fixed_value = value
    with pytest.raises(ServerError, match="start the server without --logprobs-mode"):
        await scores_of(endpoint, pairs_of("A", "a", 2))


async def test_failed_request_is_reported_with_pair_and_model(toy: ToyServer, endpoint: Endpoint) -> None:
    def refuse(path: str, body: dict) -> None:
        if body.get("model") == "b-lora":
            raise RefusedError(503, "b-lora could not be loaded")

    toy.refuse = refuse
    message = rf"^pairs.jsonl:1, model 'b-lora': POST {toy.url}/v1/completions: status 503: b-lora could not be loaded$"
    with pytest.raises(ServerError, match=message):
        await scores_of(endpoint, pairs_of("A", "a", 1))
