"""A client that says how to reason is obeyed in every shape; one that says nothing gets what its category says."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols.batch import BATCH
from vllm_lora_router.protocols.chat import CHAT, COHERE
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.protocols.tokenize import TOKENIZE
from vllm_lora_router.types import Edit, Reasoning

from .conftest import DO_NOT, EFFORT, THINK, edited, reasoned, untouched, user

SHAPES = (CHAT, BATCH, RESPONSES, MESSAGES, COHERE, TOKENIZE)
BOTH = Reasoning(True, template_kwargs={"think_hard": True}, effort="low")
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.api)
every_reasoning = pytest.mark.parametrize("reasoning", [THINK, DO_NOT, EFFORT, BOTH], ids=str)

WISHES: list[dict[str, Any]] = [
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

NO_WISHES: list[dict[str, Any]] = [
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


def request(shape: Shape) -> dict[str, Any]:
    if shape is RESPONSES:
        return {"input": "x"}
    return {"messages": [[user("x")]] if shape is BATCH else [user("x")]}


@every_shape
@every_reasoning
@pytest.mark.parametrize("wish", WISHES, ids=json.dumps)
def test_a_clients_own_wish_leaves_everything_but_the_model(
    shape: Shape, reasoning: Reasoning, wish: dict[str, Any]
) -> None:
    untouched(shape, {**request(shape), **wish}, Edit("m", reasoning=reasoning))


@every_shape
def test_a_clients_wish_in_the_familys_own_parameter_wins(shape: Shape) -> None:
    for value in (False, None):
        untouched(shape, {**request(shape), "chat_template_kwargs": {"think_hard": value}}, Edit("m", reasoning=BOTH))


@every_shape
@pytest.mark.parametrize("nothing", NO_WISHES, ids=json.dumps)
def test_what_is_no_wish_keeps_nothing_from_being_written(shape: Shape, nothing: dict[str, Any]) -> None:
    own = nothing.get("chat_template_kwargs") or {}
    for reasoning in (THINK, DO_NOT):
        assert reasoned(shape, {**request(shape), **nothing}, reasoning) == {
            **request(shape),
            **nothing,
            "chat_template_kwargs": {**own, **reasoning.template_kwargs},
        }


@pytest.mark.parametrize("shape", [one for one in SHAPES if one is not COHERE], ids=lambda shape: shape.api)
@pytest.mark.parametrize("nothing", NO_WISHES, ids=json.dumps)
def test_an_effort_goes_to_the_shapes_own_place_for_it(shape: Shape, nothing: dict[str, Any]) -> None:
    places: dict[str, tuple[str, dict[str, Any] | str]] = {
        "chat": ("reasoning_effort", "high"),
        "batch": ("reasoning_effort", "high"),
        "responses": ("reasoning", {"effort": "high"}),
        "messages": ("output_config", {"effort": "high"}),
        "tokenize": ("chat_template_kwargs", {"reasoning_effort": "high", "enable_thinking": True}),
    }
    place, value = places[shape.api]
    own = nothing.get(place)
    assert reasoned(shape, {**request(shape), **nothing}, EFFORT) == {
        **request(shape),
        **nothing,
        place: {**(own or {}), **value} if isinstance(value, dict) else value,
    }


def test_an_effort_has_no_place_in_coheres_chat() -> None:
    untouched(COHERE, request(COHERE), Edit("m", reasoning=EFFORT))
    after, written = edited(COHERE, request(COHERE), Edit("m", reasoning=BOTH))
    assert after == {**request(COHERE), "model": "m", "chat_template_kwargs": {"think_hard": True}}
    assert written.reasoning


def test_an_effort_and_template_kwargs_are_written_together() -> None:
    assert reasoned(CHAT, {}, BOTH) == {"reasoning_effort": "low", "chat_template_kwargs": {"think_hard": True}}
    assert reasoned(TOKENIZE, {"messages": []}, BOTH)["chat_template_kwargs"] == {
        "reasoning_effort": "low",
        "enable_thinking": True,
        "think_hard": True,
    }
