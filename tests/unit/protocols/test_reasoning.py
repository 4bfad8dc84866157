"""Reasoning settings: the client's own take precedence in every protocol; otherwise the category's are written."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols.batch import BATCH
from vllm_lora_router.protocols.chat import CHAT, COHERE, TOKENIZE
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import ApiProtocol
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.types import Edit, Reasoning

from .conftest import EFFORT, NO_THINKING, THINKING, apply_edit, assert_only_model_written, user, with_reasoning

PROTOCOLS = (CHAT, BATCH, RESPONSES, MESSAGES, COHERE, TOKENIZE)
BOTH = Reasoning(True, template_kwargs={"think_hard": True}, effort="low")
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.api)
every_reasoning = pytest.mark.parametrize("reasoning", [THINKING, NO_THINKING, EFFORT, BOTH], ids=str)

CLIENT_REASONING: list[dict[str, Any]] = [
    {"reasoning_effort": "none"},
    {"reasoning_effort": 5},
    {"reasoning": {"effort": "low"}},
    {"reasoning": {"summary": "auto", "effort": "none"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"max_tokens": 0}},
    {"reasoning": "high"},
    {"reasoning": ["high"]},
    {"reasoning": False},
    {"thinking": {"type": "disabled"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": False},
    {"thinking_token_budget": 0},
    {"output_config": {"effort": "low"}},
    {"output_config": {"format": {"type": "json_schema"}, "effort": "max"}},
    {"output_config": "low"},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"enable_thinking": None}},
    {"chat_template_kwargs": {"thinking": True}},
    {"chat_template_kwargs": {"reasoning_effort": "low"}},
    {"chat_template_kwargs": "not an object"},
    {"chat_template_kwargs": []},
]

NO_CLIENT_REASONING: list[dict[str, Any]] = [
    {},
    {"reasoning": {"summary": "auto"}},
    {"reasoning": {"summary": "auto", "effort": None}},
    {"reasoning": {}},
    {"output_config": {"format": {"type": "json_schema", "schema": {"effort": "low"}}}},
    {"output_config": {"effort": None}},
    {"reasoning": None, "reasoning_effort": None, "thinking": None, "thinking_token_budget": None},
    {"output_config": None, "chat_template_kwargs": None},
    {"chat_template_kwargs": {"documents": [{"enable_thinking": True}]}},
    {"include_reasoning": False},
    {"metadata": {"reasoning_effort": "low"}},
]


def request(protocol: ApiProtocol) -> dict[str, Any]:
    if protocol is RESPONSES:
        return {"input": "x"}
    return {"messages": [[user("x")]] if protocol is BATCH else [user("x")]}


@every_protocol
@every_reasoning
@pytest.mark.parametrize("settings", CLIENT_REASONING, ids=json.dumps)
def test_only_the_model_is_written_if_the_client_sets_reasoning(
    protocol: ApiProtocol, reasoning: Reasoning, settings: dict[str, Any]
) -> None:
    assert_only_model_written(protocol, {**request(protocol), **settings}, Edit("m", reasoning=reasoning))


@every_protocol
def test_the_clients_own_template_parameter_takes_precedence(protocol: ApiProtocol) -> None:
    for value in (False, None):
        assert_only_model_written(
            protocol, {**request(protocol), "chat_template_kwargs": {"think_hard": value}}, Edit("m", reasoning=BOTH)
        )


@every_protocol
@pytest.mark.parametrize("settings", NO_CLIENT_REASONING, ids=json.dumps)
def test_other_settings_do_not_prevent_reasoning(protocol: ApiProtocol, settings: dict[str, Any]) -> None:
    client_kwargs = settings.get("chat_template_kwargs") or {}
    for reasoning in (THINKING, NO_THINKING):
        assert with_reasoning(protocol, {**request(protocol), **settings}, reasoning) == {
            **request(protocol),
            **settings,
            "chat_template_kwargs": {**client_kwargs, **reasoning.template_kwargs},
        }


@pytest.mark.parametrize(
    "protocol", [protocol for protocol in PROTOCOLS if protocol is not COHERE], ids=lambda protocol: protocol.api
)
@pytest.mark.parametrize("settings", NO_CLIENT_REASONING, ids=json.dumps)
def test_an_effort_is_written_to_the_place_of_the_protocol(protocol: ApiProtocol, settings: dict[str, Any]) -> None:
    places: dict[str, tuple[str, dict[str, Any] | str]] = {
        "chat": ("reasoning_effort", "high"),
        "batch": ("reasoning_effort", "high"),
        "responses": ("reasoning", {"effort": "high"}),
        "messages": ("output_config", {"effort": "high"}),
        "tokenize": ("chat_template_kwargs", {"reasoning_effort": "high", "enable_thinking": True}),
    }
    place, value = places[protocol.api]
    client_value = settings.get(place)
    assert with_reasoning(protocol, {**request(protocol), **settings}, EFFORT) == {
        **request(protocol),
        **settings,
        place: {**(client_value or {}), **value} if isinstance(value, dict) else value,
    }


def test_no_effort_is_written_into_coheres_chat() -> None:
    assert_only_model_written(COHERE, request(COHERE), Edit("m", reasoning=EFFORT))
    after, applied = apply_edit(COHERE, request(COHERE), Edit("m", reasoning=BOTH))
    assert after == {**request(COHERE), "model": "m", "chat_template_kwargs": {"think_hard": True}}
    assert applied.reasoning


def test_an_effort_and_template_kwargs_are_written_together() -> None:
    assert with_reasoning(CHAT, {}, BOTH) == {"reasoning_effort": "low", "chat_template_kwargs": {"think_hard": True}}
    assert with_reasoning(TOKENIZE, {"messages": []}, BOTH)["chat_template_kwargs"] == {
        "reasoning_effort": "low",
        "enable_thinking": True,
        "think_hard": True,
    }
