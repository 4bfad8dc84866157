"""The tokens that count are the answer's, whatever the server's chat template puts around it."""

import re

import pytest

from vllm_lora_router.tools.prove.endpoint import Endpoint, ServerError
from vllm_lora_router.tools.prove.pairs import Pair
from vllm_lora_router.tools.prove.tokens import way_for

from .conftest import ASSISTANT, BASE, END, START, SYSTEM, THOUGHT, USER, Refused, Toy

PAIR = Pair("Why?", "1a, so", "A", "pairs.jsonl:7")


def chars(text: str) -> list[int]:
    return list(map(ord, text))


async def spelled(endpoint: Endpoint, pair: Pair = PAIR, system_prompt: str | None = None) -> tuple[list, list, str]:
    way = await way_for(endpoint, BASE, pair, system_prompt)
    found = await way.spell(endpoint, BASE, pair)
    assert found.longest == 200
    return list(found.ids[: found.before]), list(found.ids[found.before :]), way.said


@pytest.mark.parametrize("answer", ["1a, so", "a1", "so", "Größe 量 🩺", "1", "a", "a\n\n"])
async def test_an_answer_stands_in_the_chat_template_as_the_assistants(endpoint: Endpoint, answer: str) -> None:
    before, own, said = await spelled(endpoint, Pair("Why?", answer, "A"), "Be kind.")
    assert before == [START, SYSTEM, *chars("Be kind."), END, USER, *chars("Why?"), END, ASSISTANT]
    assert (own, said) == (chars(answer), "")


async def test_what_a_template_puts_before_an_answer_is_no_part_of_it(toy: Toy, endpoint: Endpoint) -> None:
    toy.template = "thinks"
    before, own, _ = await spelled(endpoint)
    assert before == [START, USER, *chars("Why?"), END, ASSISTANT, THOUGHT, *chars("\n")]
    assert own == chars(PAIR.answer)


async def test_a_template_without_a_system_role_is_asked_without_it_and_that_is_said(
    toy: Toy, endpoint: Endpoint
) -> None:
    toy.template = "no system"
    before, own, said = await spelled(endpoint, system_prompt="Be kind.")
    assert (before, own) == ([START, USER, *chars("Why?"), END, ASSISTANT], chars(PAIR.answer))
    assert said.startswith("asked without the category's system prompt")


async def test_a_template_that_takes_no_answer_gets_it_where_one_would_be_generated(
    toy: Toy, endpoint: Endpoint
) -> None:
    toy.template = "no answers"
    before, own, said = await spelled(endpoint, system_prompt="Be kind.")
    assert (before, own) == ([START, USER, *chars("Why?"), END, ASSISTANT], chars(PAIR.answer))
    assert "takes none to go on with" in said


async def test_without_a_template_an_answer_stands_right_behind_its_prompt(toy: Toy, endpoint: Endpoint) -> None:
    toy.template = "none"
    before, own, said = await spelled(endpoint)
    assert (before, own) == ([START, *chars("Why?")], chars(PAIR.answer))
    assert "no chat template" in said


async def test_a_server_that_takes_none_of_it_is_told_of_in_its_own_words(toy: Toy, endpoint: Endpoint) -> None:
    def refuse(path: str, body: dict) -> None:
        raise Refused(400, f"no {'chat' if 'messages' in body else 'text'} today")

    toy.refuse = refuse
    told = rf"^pairs.jsonl:7: POST {re.escape(toy.url)}/tokenize: status 400: no chat today$"
    with pytest.raises(ServerError, match=told):
        await spelled(endpoint)


async def test_an_error_that_is_no_400_is_not_taken_for_a_template_that_lacks_something(
    toy: Toy, endpoint: Endpoint
) -> None:
    def refuse(path: str, body: dict) -> None:
        if "messages" in body:
            raise Refused(500, "boom")

    toy.refuse = refuse
    with pytest.raises(ServerError, match=r"status 500: boom$"):
        await spelled(endpoint)
