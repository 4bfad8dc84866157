"""Tokenization of pairs under different chat templates."""

import re

import pytest

from vllm_lora_router.tools.prove.endpoint import Endpoint, ServerError
from vllm_lora_router.tools.prove.pairs import Pair
from vllm_lora_router.tools.prove.tokens import choose_format

from .conftest import ASSISTANT, BASE, END, START, SYSTEM, THOUGHT, USER, RefusedError, ToyServer

PAIR = Pair("Why?", "1a, so", "A", "pairs.jsonl:7")


def chars(text: str) -> list[int]:
    return list(map(ord, text))


async def tokenize(endpoint: Endpoint, pair: Pair = PAIR, system_prompt: str | None = None) -> tuple[list, list, str]:
    """Return the tokens before the answer, the answer's tokens, and the note of the format."""
    prompt_format = await choose_format(endpoint, BASE, pair, system_prompt)
    tokens = await prompt_format.tokenize(endpoint, BASE, pair)
    assert tokens.max_model_len == 200
    return list(tokens.ids[: tokens.answer_start]), list(tokens.ids[tokens.answer_start :]), prompt_format.note


@pytest.mark.parametrize("answer", ["1a, so", "a1", "so", "Größe 量 🩺", "1", "a", "a\n\n"])
async def test_answer_is_the_assistants_message_in_the_chat_template(endpoint: Endpoint, answer: str) -> None:
    context, answer_tokens, note = await tokenize(endpoint, Pair("Why?", answer, "A"), "Be kind.")
    assert context == [START, SYSTEM, *chars("Be kind."), END, USER, *chars("Why?"), END, ASSISTANT]
    assert (answer_tokens, note) == (chars(answer), "")


async def test_tokens_inserted_before_the_answer_are_not_scored(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.template = "thinks"
    context, answer_tokens, _ = await tokenize(endpoint)
    assert context == [START, USER, *chars("Why?"), END, ASSISTANT, THOUGHT, *chars("\n")]
    assert answer_tokens == chars(PAIR.answer)


async def test_template_without_system_role_omits_the_system_prompt_with_a_note(
    toy: ToyServer, endpoint: Endpoint
) -> None:
    toy.template = "no system"
    context, answer_tokens, note = await tokenize(endpoint, system_prompt="Be kind.")
    assert (context, answer_tokens) == ([START, USER, *chars("Why?"), END, ASSISTANT], chars(PAIR.answer))
    assert note.startswith("scored without the category's system prompt")


async def test_template_that_cannot_continue_gets_the_answer_after_the_generation_prompt(
    toy: ToyServer, endpoint: Endpoint
) -> None:
    toy.template = "no answers"
    context, answer_tokens, note = await tokenize(endpoint, system_prompt="Be kind.")
    assert (context, answer_tokens) == ([START, USER, *chars("Why?"), END, ASSISTANT], chars(PAIR.answer))
    assert "cannot continue a message" in note


async def test_without_template_the_answer_follows_the_prompt(toy: ToyServer, endpoint: Endpoint) -> None:
    toy.template = "none"
    context, answer_tokens, note = await tokenize(endpoint)
    assert (context, answer_tokens) == ([START, *chars("Why?")], chars(PAIR.answer))
    assert "no chat template" in note


async def test_server_that_accepts_no_format_is_reported_with_its_message(toy: ToyServer, endpoint: Endpoint) -> None:
    def refuse(path: str, body: dict) -> None:
        raise RefusedError(400, f"no {'chat' if 'messages' in body else 'text'} today")

    toy.refuse = refuse
    message = rf"^pairs.jsonl:7: POST {re.escape(toy.url)}/tokenize: status 400: no chat today$"
    with pytest.raises(ServerError, match=message):
        await tokenize(endpoint)


async def test_other_status_than_400_is_raised_at_once(toy: ToyServer, endpoint: Endpoint) -> None:
    def refuse(path: str, body: dict) -> None:
        if "messages" in body:
            raise RefusedError(500, "boom")

    toy.refuse = refuse
    with pytest.raises(ServerError, match=r"status 500: boom$"):
        await tokenize(endpoint)
