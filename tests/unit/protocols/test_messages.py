"""Anthropic's Messages API: text blocks, the forms of the system field, and effort."""

from typing import Any

import pytest

from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.types import Edit, Mode, Reasoning

from .conftest import EFFORT, PROMPT, THINKING, apply_edit, text_and_turns, user, with_prompt, with_reasoning

RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "Tool result."}]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


def test_the_text_blocks_of_user_messages_are_the_user_text() -> None:
    messages = [user("One?"), {"role": "assistant", "content": [text("Yes.")]}, user([text("Two,"), text("three?")])]
    assert text_and_turns(MESSAGES, {"system": "Be kind.", "messages": messages}) == (
        "Two,\nthree?",
        ("One?", "Two,\nthree?"),
    )


def test_tool_results_in_a_user_message_are_not_user_text() -> None:
    assert (
        text_and_turns(MESSAGES, {"messages": [user("User text."), user([RESULT]), user([RESULT, RESULT])]})[0]
        == "User text."
    )
    assert text_and_turns(MESSAGES, {"messages": [user("User text."), user([RESULT, text("And now?")])]})[1] == (
        "User text.",
        "And now?",
    )


def test_an_image_is_a_turn_even_with_a_tool_result() -> None:
    assert text_and_turns(MESSAGES, {"messages": [user("User text."), user([RESULT, IMAGE])]}) == (
        "",
        ("User text.", ""),
    )
    assert text_and_turns(MESSAGES, {"messages": [user([IMAGE, text("What is this?")])]})[0] == "What is this?"


def test_a_system_message_in_the_conversation_is_not_changed() -> None:
    messages = [user("User text."), {"role": "system", "content": "A tool was added."}]
    assert text_and_turns(MESSAGES, {"messages": messages}) == ("User text.", ("User text.",))
    for mode in ("insert", "replace"):
        assert with_prompt(MESSAGES, {"messages": messages}, mode) == {"messages": messages, "system": PROMPT}


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("missing", [{}, {"system": None}, {"system": ""}])
def test_a_prompt_becomes_the_system_field_if_the_client_sends_none(mode: Mode, missing: dict[str, Any]) -> None:
    assert with_prompt(MESSAGES, {**missing, "messages": []}, mode) == {"system": PROMPT, "messages": []}


def test_an_inserted_prompt_precedes_the_clients_text() -> None:
    assert with_prompt(MESSAGES, {"system": "Client."}) == {"system": f"{PROMPT}\n\nClient."}


def test_an_inserted_prompt_is_a_block_that_ends_with_a_blank_line() -> None:
    """vLLM joins blocks without a separator."""
    blocks = [text("Client.", cache_control={"type": "ephemeral"}), text("More.")]
    assert with_prompt(MESSAGES, {"system": blocks}) == {"system": [text(f"{PROMPT}\n\n"), *blocks]}
    assert with_prompt(MESSAGES, {"system": []}) == {"system": [text(PROMPT)]}


@pytest.mark.parametrize("system", ["Client.", [text("Client."), text("More.")], []])
def test_replace_removes_the_clients_system_field(system: Any) -> None:
    assert with_prompt(MESSAGES, {"system": system}, "replace") == {"system": PROMPT}


@pytest.mark.parametrize(
    ("effort", "expected"),
    [
        *((effort, {"output_config": {"effort": effort}}) for effort in ("low", "medium", "high", "xhigh", "max")),
        ("minimal", {"output_config": {"effort": "low"}}),
        ("none", {"thinking": {"type": "disabled"}}),
    ],
)
def test_an_effort_is_written_in_the_form_of_the_api(effort: str, expected: dict[str, Any]) -> None:
    assert with_reasoning(MESSAGES, {}, Reasoning(True, effort=effort)) == expected


FORMAT = {"format": {"type": "json_schema", "schema": {"maximum": 0.1}}}


def test_an_effort_keeps_the_clients_output_format() -> None:
    assert with_reasoning(MESSAGES, {"output_config": FORMAT}, EFFORT) == {
        "output_config": {**FORMAT, "effort": "high"}
    }
    no_effort = Reasoning(True, effort="none")
    assert with_reasoning(MESSAGES, {"output_config": FORMAT, "thinking": None}, no_effort) == {
        "output_config": FORMAT,
        "thinking": {"type": "disabled"},
    }


def test_template_kwargs_are_merged_with_the_clients_kwargs() -> None:
    request = {"output_config": FORMAT, "chat_template_kwargs": {"x": None}}
    after = with_reasoning(MESSAGES, request, THINKING)
    assert after == {**request, "chat_template_kwargs": {"x": None, "enable_thinking": True}}


def test_only_the_model_is_written_without_a_prompt_and_reasoning() -> None:
    assert apply_edit(MESSAGES, {"system": "A"}, Edit("m", None, "replace"))[0] == {"system": "A", "model": "m"}
