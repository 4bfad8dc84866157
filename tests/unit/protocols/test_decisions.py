"""Decisions: the state is read, and the prompt is written into the instructions."""

from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.decisions import DECISIONS
from vllm_lora_router.types import Edit, Mode, Reasoning

from .conftest import EFFORT, NO_THINKING, PROMPT, THINKING, apply_edit, text_and_turns, with_prompt

QUESTIONS = {"questions": {"urgent": {"type": "boolean", "instructions": "Is it?"}}}


def test_a_text_state_is_read() -> None:
    assert text_and_turns(DECISIONS, {"state": "My fever is high."}) == ("My fever is high.", ("My fever is high.",))


def test_another_state_is_read_as_json() -> None:
    (query,) = DECISIONS.read(json_edit.object_members('{"state": {"patient" : ["Größe", 0.10]} }'.encode()))
    assert query.text == '{"patient" : ["Größe", 0.10]}'


@pytest.mark.parametrize("missing", [{}, {"state": None}, {"state": ""}])
def test_a_missing_state_has_no_text(missing: dict[str, Any]) -> None:
    assert text_and_turns(DECISIONS, {**missing, **QUESTIONS}) == ("", ())


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("missing", [{}, {"instructions": None}, {"instructions": ""}])
def test_a_prompt_becomes_the_instructions_if_the_client_sends_none(mode: Mode, missing: dict[str, Any]) -> None:
    assert with_prompt(DECISIONS, {**missing, **QUESTIONS}, mode) == {**QUESTIONS, "instructions": PROMPT}


def test_a_prompt_precedes_or_replaces_the_clients_instructions() -> None:
    request = {"state": "x", "instructions": "Client."}
    assert with_prompt(DECISIONS, request) == {"state": "x", "instructions": f"{PROMPT}\n\nClient."}
    assert with_prompt(DECISIONS, request, "replace") == {"state": "x", "instructions": PROMPT}


@pytest.mark.parametrize("reasoning", [THINKING, NO_THINKING, EFFORT])
def test_no_reasoning_is_written(reasoning: Reasoning) -> None:
    """The first token of the answer must be a label."""
    after, applied = apply_edit(DECISIONS, {"state": "x", "chat_template_kwargs": {}}, Edit("m", reasoning=reasoning))
    assert after == {"state": "x", "chat_template_kwargs": {}, "model": "m"}
    assert applied.reasoning is None
