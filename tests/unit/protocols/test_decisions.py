"""Questions about a state: the state is read, and a prompt goes before the client's instructions."""

from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.decisions import DECISIONS
from vllm_lora_router.types import Edit, Mode, Reasoning

from .conftest import DO_NOT, EFFORT, OURS, THINK, edited, prompted, said

QUESTIONS = {"questions": {"urgent": {"type": "boolean", "instructions": "Is it?"}}}


def test_a_state_that_is_a_text_is_read() -> None:
    assert said(DECISIONS, {"state": "My fever is high."}) == ("My fever is high.", ("My fever is high.",))


def test_any_other_state_is_read_as_its_json() -> None:
    (query,) = DECISIONS.read(json_edit.fields('{"state": {"patient" : ["Größe", 0.10]} }'.encode()))
    assert query.text == '{"patient" : ["Größe", 0.10]}'


@pytest.mark.parametrize("nothing", [{}, {"state": None}, {"state": ""}])
def test_no_state_has_no_words(nothing: dict[str, Any]) -> None:
    assert said(DECISIONS, {**nothing, **QUESTIONS}) == ("", ())


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("nothing", [{}, {"instructions": None}, {"instructions": ""}])
def test_a_prompt_is_the_instructions_where_the_client_has_none(mode: Mode, nothing: dict[str, Any]) -> None:
    assert prompted(DECISIONS, {**nothing, **QUESTIONS}, mode) == {**QUESTIONS, "instructions": OURS}


def test_a_prompt_goes_before_the_clients_instructions_or_in_their_place() -> None:
    request = {"state": "x", "instructions": "Own."}
    assert prompted(DECISIONS, request) == {"state": "x", "instructions": f"{OURS}\n\nOwn."}
    assert prompted(DECISIONS, request, "replace") == {"state": "x", "instructions": OURS}


@pytest.mark.parametrize("reasoning", [THINK, DO_NOT, EFFORT])
def test_no_reasoning_is_written(reasoning: Reasoning) -> None:
    """A label must be the answer's first token."""
    after, written = edited(DECISIONS, {"state": "x", "chat_template_kwargs": {}}, Edit("m", reasoning=reasoning))
    assert after == {"state": "x", "chat_template_kwargs": {}, "model": "m"}
    assert written.reasoning is None
