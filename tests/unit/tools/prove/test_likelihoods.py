"""Every model is asked about the same tokens, and what it says is averaged and put in its place."""

from statistics import fmean

import numpy as np
import pytest

from vllm_lora_router.tools.prove.endpoint import Endpoint, ServerError
from vllm_lora_router.tools.prove.likelihoods import Measurements, measure
from vllm_lora_router.tools.prove.pairs import Pair

from .conftest import ASSISTANT, BASE, END, START, SYSTEM, USER, Refused, Toy, pairs_of

MODELS = (BASE, "a-lora", "b-lora")
SYSTEM_PROMPTS = {"A": "Say a."}


async def measured(endpoint: Endpoint, pairs: list[Pair], tokens: int = 32, at_once: int = 4) -> Measurements:
    return await measure(endpoint, MODELS, pairs, SYSTEM_PROMPTS, tokens=tokens, at_once=at_once)


def truth(toy: Toy, model: str, pair: Pair, places: list[int]) -> float:
    """The mean over some of an answer's characters."""
    system = [SYSTEM, *map(ord, SYSTEM_PROMPTS["A"]), END] if pair.category == "A" else []
    before = [START, *system, USER, *map(ord, pair.prompt), END, ASSISTANT]
    text = list(map(ord, pair.answer))
    return fmean(toy.likelihood(model, [*before, *text[:place]], text[place]) for place in places)


async def test_a_value_is_the_mean_over_the_answers_tokens(toy: Toy, endpoint: Endpoint) -> None:
    pairs = [*pairs_of("A", "aabba", 3), *pairs_of("B", "cab", 2)]
    found = await measured(endpoint, pairs)
    assert list(found.by_category) == ["A", "B"] and not found.notes and not found.left_out
    for one in found.by_category.values():
        expected = [[truth(toy, model, pair, [*range(len(pair.answer))]) for model in MODELS] for pair in one.pairs]
        assert np.allclose(one.values, expected)
    assert (found.by_category["A"].answer_tokens, found.by_category["B"].answer_tokens) == (15, 6)
    assert found.answered == {model: model for model in MODELS}


async def test_of_a_long_answer_the_same_spread_tokens_are_asked_of_every_model(toy: Toy, endpoint: Endpoint) -> None:
    (pair,) = pairs_of("B", "abcdefghijk", 1)
    one = (await measured(endpoint, [pair], tokens=3, at_once=1)).by_category["B"]
    assert np.allclose(one.values, [[truth(toy, model, pair, [0, 5, 10]) for model in MODELS]])
    assert (one.answer_tokens, one.asked_tokens) == (11, 3)
    assert [chr(token) for _, _, token in toy.asked] == ["a", "f", "k"] * 3


async def test_the_base_is_asked_alone_and_no_more_at_once_than_wanted(toy: Toy, endpoint: Endpoint) -> None:
    toy.takes_s = 0.01
    await measured(endpoint, pairs_of("A", "aab", 6), at_once=5)
    assert max(sum(running.values()) for running in toy.together) == 5
    assert all(len(running) == 1 for running in toy.together)
    assert [model for model, _, _ in toy.asked] == [model for model in MODELS for _ in range(18)]


async def test_pairs_beyond_the_models_context_are_left_out_by_name(toy: Toy, endpoint: Endpoint) -> None:
    fits = Pair("q", "x" * (toy.context - 5), "B", "pairs.jsonl:1")
    too_long = Pair("q", "x" * (toy.context - 4), "B", "pairs.jsonl:2")
    found = await measured(endpoint, [fits, too_long], tokens=4)
    assert found.by_category["B"].pairs == (fits,)
    assert found.left_out == ("pairs.jsonl:2: prompt and answer are 201 tokens, and the model takes 200; left out",)
    alone = await measured(endpoint, [too_long])
    assert (alone.by_category, len(alone.left_out)) == ({}, 1)


async def test_a_pair_whose_answer_the_template_drops_is_left_out(toy: Toy, endpoint: Endpoint) -> None:
    toy.template = "trims"
    found = await measured(endpoint, [*pairs_of("B", "ab", 1), Pair("q", "\n\n", "B", "pairs.jsonl:2")])
    assert found.left_out == ("pairs.jsonl:2: the chat template leaves nothing of the answer; left out",)


async def test_how_prompts_were_put_is_noted_where_it_is_not_how_they_are_routed(toy: Toy, endpoint: Endpoint) -> None:
    toy.template = "no system"
    found = await measured(endpoint, [*pairs_of("A", "a", 1), *pairs_of("B", "b", 1)])
    assert found.notes == ("A: asked without the category's system prompt, which the chat template does not take",)


async def test_a_version_of_an_adapter_answers_for_it_and_is_named(toy: Toy, endpoint: Endpoint) -> None:
    toy.called = {"a-lora": "a-lora@1a2b3c4d"}
    assert (await measured(endpoint, pairs_of("A", "a", 2))).answered["a-lora"] == "a-lora@1a2b3c4d"


async def test_an_adapter_that_changes_in_between_is_an_error(toy: Toy, endpoint: Endpoint) -> None:
    def change(path: str, body: dict) -> None:
        if len(toy.asked) == 6:
            toy.called = {"a-lora": "a-lora@1a2b3c4d"}

    toy.refuse = change
    with pytest.raises(ServerError, match="'a-lora' changed while it was asked"):
        await measured(endpoint, pairs_of("A", "a", 4), at_once=1)


async def test_a_base_whose_requests_are_routed_is_an_error(toy: Toy, endpoint: Endpoint) -> None:
    toy.called = {BASE: "a-lora"}
    with pytest.raises(ServerError, match=r"answers requests for 'toy/base' as 'a-lora'.*route_base_model"):
        await measured(endpoint, pairs_of("A", "a", 2))


@pytest.mark.parametrize("value", [0.0, 17.5])
async def test_a_server_that_tells_no_raw_likelihoods_is_an_error(toy: Toy, endpoint: Endpoint, value: float) -> None:
    toy.certain = value
    with pytest.raises(ServerError, match="start the server without --logprobs-mode"):
        await measured(endpoint, pairs_of("A", "a", 2))


async def test_what_the_server_refuses_is_told_with_the_pair_the_model_and_its_own_words(
    toy: Toy, endpoint: Endpoint
) -> None:
    def refuse(path: str, body: dict) -> None:
        if body.get("model") == "b-lora":
            raise Refused(503, "b-lora could not be loaded")

    toy.refuse = refuse
    told = rf"^pairs.jsonl:1, model 'b-lora': POST {toy.url}/v1/completions: status 503: b-lora could not be loaded$"
    with pytest.raises(ServerError, match=told):
        await measured(endpoint, pairs_of("A", "a", 1))
