"""Anthropic's Messages: blocks of the user's, the system field in its forms, and effort as it names it."""

from typing import Any

import pytest

from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.types import Edit, Mode, Reasoning

from .conftest import EFFORT, OURS, THINK, edited, prompted, reasoned, said, user

RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "Theirs."}]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_the_users_text_blocks_are_what_the_user_said() -> None:
    messages = [user("One?"), {"role": "assistant", "content": [text("Yes.")]}, user([text("Two,"), text("three?")])]
    assert said(MESSAGES, {"system": "Be kind.", "messages": messages}) == ("Two,\nthree?", ("One?", "Two,\nthree?"))


def test_tool_results_in_a_users_message_are_not_the_users_words() -> None:
    assert said(MESSAGES, {"messages": [user("Mine."), user([RESULT]), user([RESULT, RESULT])]})[0] == "Mine."
    assert said(MESSAGES, {"messages": [user("Mine."), user([RESULT, text("And now?")])]})[1] == ("Mine.", "And now?")


def test_an_image_is_a_turn_even_beside_a_tool_result() -> None:
    assert said(MESSAGES, {"messages": [user("Mine."), user([RESULT, IMAGE])]}) == ("", ("Mine.", ""))
    assert said(MESSAGES, {"messages": [user([IMAGE, text("What is this?")])]})[0] == "What is this?"


def test_a_system_message_within_the_conversation_is_not_the_users_and_stays() -> None:
    messages = [user("Mine."), {"role": "system", "content": "A tool was added."}]
    assert said(MESSAGES, {"messages": messages}) == ("Mine.", ("Mine.",))
    for mode in ("insert", "replace"):
        assert prompted(MESSAGES, {"messages": messages}, mode) == {"messages": messages, "system": OURS}


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("nothing", [{}, {"system": None}, {"system": ""}])
def test_a_prompt_is_the_system_where_the_client_has_none(mode: Mode, nothing: dict[str, Any]) -> None:
    assert prompted(MESSAGES, {**nothing, "messages": []}, mode) == {"system": OURS, "messages": []}


def test_an_inserted_prompt_goes_before_the_clients_text() -> None:
    assert prompted(MESSAGES, {"system": "Own."}) == {"system": f"{OURS}\n\nOwn."}


def test_an_inserted_prompt_is_a_block_that_ends_with_a_blank_line() -> None:
    """vLLM joins blocks without anything between them."""
    own = [text("Own.", cache_control={"type": "ephemeral"}), text("More.")]
    assert prompted(MESSAGES, {"system": own}) == {"system": [text(f"{OURS}\n\n"), *own]}
    assert prompted(MESSAGES, {"system": []}) == {"system": [text(OURS)]}


@pytest.mark.parametrize("own", ["Own.", [text("Own."), text("More.")], []])
def test_a_replaced_prompt_is_the_only_one_left(own: Any) -> None:
    assert prompted(MESSAGES, {"system": own}, "replace") == {"system": OURS}


@pytest.mark.parametrize(
    ("effort", "written"),
    [
        *((effort, {"output_config": {"effort": effort}}) for effort in ("low", "medium", "high", "xhigh", "max")),
        ("minimal", {"output_config": {"effort": "low"}}),
        ("none", {"thinking": {"type": "disabled"}}),
    ],
)
def test_an_effort_is_said_as_anthropic_says_it(effort: str, written: dict[str, Any]) -> None:
    assert reasoned(MESSAGES, {}, Reasoning(True, effort=effort)) == written


FORMAT = {"format": {"type": "json_schema", "schema": {"maximum": 0.1}}}


def test_an_effort_goes_beside_the_clients_format() -> None:
    assert reasoned(MESSAGES, {"output_config": FORMAT}, EFFORT) == {"output_config": {**FORMAT, "effort": "high"}}
    no_effort = Reasoning(True, effort="none")
    assert reasoned(MESSAGES, {"output_config": FORMAT, "thinking": None}, no_effort) == {
        "output_config": FORMAT,
        "thinking": {"type": "disabled"},
    }


def test_template_kwargs_are_merged_with_the_clients() -> None:
    request = {"output_config": FORMAT, "chat_template_kwargs": {"x": None}}
    after = reasoned(MESSAGES, request, THINK)
    assert after == {**request, "chat_template_kwargs": {"x": None, "enable_thinking": True}}


def test_the_model_alone_is_written_where_there_is_nothing_else_to_write() -> None:
    assert edited(MESSAGES, {"system": "A"}, Edit("m", None, "replace"))[0] == {"system": "A", "model": "m"}
