"""Tokenizing says how a chat or a prompt would be rendered, so that it takes the edit that those take."""

from typing import Any

import pytest

from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.protocols.tokenize import TOKENIZE
from vllm_lora_router.types import Edit, Mode, Query, Reasoning

from .conftest import DO_NOT, EFFORT, OURS, THINK, prompted, queries, reasoned, untouched, user


def test_messages_are_read_as_a_chats() -> None:
    assert queries(TOKENIZE, {"messages": [user("One?"), user("Two?")]}) == (Query("Two?", ("One?", "Two?")),)


def test_a_prompt_of_a_category_goes_into_messages() -> None:
    own = {"role": "system", "content": "Own."}
    assert prompted(TOKENIZE, {"messages": [user("x")]}) == {"messages": [{**own, "content": OURS}, user("x")]}
    assert prompted(TOKENIZE, {"messages": [own]}) == {"messages": [{**own, "content": f"{OURS}\n\nOwn."}]}
    assert prompted(TOKENIZE, {"messages": [own, own]}, "replace") == {"messages": [{**own, "content": OURS}]}


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "high"])
def test_an_effort_goes_into_the_template_as_it_would_for_a_chat(effort: str) -> None:
    """vLLM adds `enable_thinking` to a chat's effort, and knows no effort here."""
    request = {"messages": [], "chat_template_kwargs": {"x": 0.5}}
    assert reasoned(TOKENIZE, request, Reasoning(True, effort=effort)) == {
        "messages": [],
        "chat_template_kwargs": {"x": 0.5, "reasoning_effort": effort, "enable_thinking": effort != "none"},
    }


@pytest.mark.parametrize("reasoning", [THINK, DO_NOT])
def test_template_kwargs_are_merged_with_the_clients(reasoning: Reasoning) -> None:
    for own in ({}, {"chat_template_kwargs": None}, {"chat_template_kwargs": {"x": 0.5}}):
        kwargs = {**(own.get("chat_template_kwargs") or {}), **reasoning.template_kwargs}
        assert reasoned(TOKENIZE, {"messages": [], **own}, reasoning)["chat_template_kwargs"] == kwargs


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("reasoning", [None, THINK, EFFORT])
@pytest.mark.parametrize("request_", [{"prompt": "x"}, {"prompt": "x", "chat_template_kwargs": {"y": 1}}])
def test_a_prompt_is_a_completions_and_gets_the_model_alone(
    request_: dict[str, Any], reasoning: Reasoning | None, mode: Mode
) -> None:
    shape = ROUTES["/tokenize"].shape_of(request_)
    assert queries(shape, request_) == (Query("x", ("x",), api="completions"),)
    untouched(shape, request_, Edit("m", OURS, mode, reasoning))
