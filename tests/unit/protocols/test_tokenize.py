"""/tokenize gets the same edits as the chat or completion that it renders."""

from typing import Any

import pytest

from vllm_lora_router.protocols.chat import TOKENIZE
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.types import Edit, Mode, Query, Reasoning

from .conftest import (
    EFFORT,
    NO_THINKING,
    PROMPT,
    THINKING,
    assert_only_model_written,
    queries,
    user,
    with_prompt,
    with_reasoning,
)


def test_messages_are_read_like_a_chats_messages() -> None:
    assert queries(TOKENIZE, {"messages": [user("One?"), user("Two?")]}) == (Query("Two?", ("One?", "Two?")),)


def test_a_system_prompt_is_written_into_messages() -> None:
    client = {"role": "system", "content": "Client."}
    assert with_prompt(TOKENIZE, {"messages": [user("x")]}) == {"messages": [{**client, "content": PROMPT}, user("x")]}
    assert with_prompt(TOKENIZE, {"messages": [client]}) == {
        "messages": [{**client, "content": f"{PROMPT}\n\nClient."}]
    }
    assert with_prompt(TOKENIZE, {"messages": [client, client]}, "replace") == {
        "messages": [{**client, "content": PROMPT}]
    }


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "high"])
def test_an_effort_goes_into_the_template_kwargs(effort: str) -> None:
    """vLLM adds `enable_thinking` to the effort of a chat. It has no effort for /tokenize."""
    request = {"messages": [], "chat_template_kwargs": {"x": 0.5}}
    assert with_reasoning(TOKENIZE, request, Reasoning(True, effort=effort)) == {
        "messages": [],
        "chat_template_kwargs": {"x": 0.5, "reasoning_effort": effort, "enable_thinking": effort != "none"},
    }


@pytest.mark.parametrize("reasoning", [THINKING, NO_THINKING])
def test_template_kwargs_are_merged_with_the_clients_kwargs(reasoning: Reasoning) -> None:
    for client in ({}, {"chat_template_kwargs": None}, {"chat_template_kwargs": {"x": 0.5}}):
        kwargs = {**(client.get("chat_template_kwargs") or {}), **reasoning.template_kwargs}
        assert with_reasoning(TOKENIZE, {"messages": [], **client}, reasoning)["chat_template_kwargs"] == kwargs


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("reasoning", [None, THINKING, EFFORT])
@pytest.mark.parametrize("request_", [{"prompt": "x"}, {"prompt": "x", "chat_template_kwargs": {"y": 1}}])
def test_only_the_model_is_written_into_a_prompt_request(
    request_: dict[str, Any], reasoning: Reasoning | None, mode: Mode
) -> None:
    protocol = ROUTES["/tokenize"].protocol_for(request_)
    assert queries(protocol, request_) == (Query("x", ("x",), api="completions"),)
    assert_only_model_written(protocol, request_, Edit("m", PROMPT, mode, reasoning))
