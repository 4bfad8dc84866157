"""Responses API: the input, the place of instructions, reasoning with a summary, and the response's id."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.chat import CHAT
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.types import Edit, Mode

from .conftest import EFFORT, PROMPT, THINKING, apply_edit, queries, text_and_turns, user, with_prompt, with_reasoning


def item(role: str, text: str, part: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": part, "text": text}]}


def test_a_string_input_is_the_user_text() -> None:
    assert text_and_turns(RESPONSES, {"input": "What is a fever?"}) == ("What is a fever?", ("What is a fever?",))


def test_an_input_with_escapes_is_read() -> None:
    (query,) = RESPONSES.read(json_edit.object_members(b'{"input" : "Gr\\u00f6\\u00dfe \\ud83d"}'))
    assert query.text == "Größe \ud83d"


def test_user_items_are_the_user_text() -> None:
    items = [
        item("developer", "Answer in French."),
        user("One?"),
        item("assistant", "Yes.", "output_text"),
        {"role": "user", "content": [{"type": "input_text", "text": "Two,"}, {"type": "input_text", "text": "three?"}]},
    ]
    assert text_and_turns(RESPONSES, {"input": items, "instructions": "Be kind."}) == (
        "Two,\nthree?",
        ("One?", "Two,\nthree?"),
    )


def test_tool_outputs_are_not_user_text() -> None:
    items = [
        item("user", "User text."),
        {"type": "function_call", "name": "f", "arguments": '{"role":"user"}', "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "Tool result."}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "item_reference", "id": "msg_1"},
    ]
    assert text_and_turns(RESPONSES, {"input": items}) == ("User text.", ("User text.",))


def test_an_item_with_only_an_image_is_a_turn_without_text() -> None:
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
    assert text_and_turns(RESPONSES, {"input": [user("Earlier."), image]}) == ("", ("Earlier.", ""))


@pytest.mark.parametrize("input_", [None, 5, True, {}, [], [None, 5, "x", []], [{"type": "message"}]])
def test_an_input_that_vllm_will_refuse_has_no_text(input_: Any) -> None:
    assert text_and_turns(RESPONSES, {"input": input_}) == ("", ())
    assert queries(RESPONSES, {}) == queries(RESPONSES, {"input": None})


@pytest.mark.parametrize("request_", [{}, {"instructions": None}, {"instructions": ""}])
@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("input_", ["x", [user("x")], []])
def test_a_prompt_becomes_the_instructions_if_the_client_sends_none(
    request_: dict[str, Any], mode: Mode, input_: Any
) -> None:
    assert with_prompt(RESPONSES, {"input": input_, **request_}, mode) == {"input": input_, "instructions": PROMPT}


def test_an_inserted_prompt_precedes_the_clients_instructions() -> None:
    request = {"instructions": "Answer in French.", "input": "x"}
    assert with_prompt(RESPONSES, request) == {"instructions": f"{PROMPT}\n\nAnswer in French.", "input": "x"}


def test_an_inserted_prompt_precedes_the_instructions_even_with_a_system_item() -> None:
    request = {"instructions": "Answer in French.", "input": [item("developer", "Be brief."), user("x")]}
    assert with_prompt(RESPONSES, request) == {**request, "instructions": f"{PROMPT}\n\nAnswer in French."}


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("missing", [{}, {"instructions": None}, {"instructions": ""}])
def test_an_inserted_prompt_goes_into_the_clients_system_item_if_it_sends_no_instructions(
    role: str, missing: dict[str, Any]
) -> None:
    system, question = item(role, "Answer in French."), item("user", "x")
    first = {**system, "content": [{"type": "input_text", "text": PROMPT}, *system["content"]]}
    assert with_prompt(RESPONSES, {"input": [system, question], **missing}) == {"input": [first, question], **missing}
    text = {"role": role, "content": "Answer in French."}
    assert with_prompt(RESPONSES, {"input": [question, text], **missing}) == {
        "input": [question, {"role": role, "content": f"{PROMPT}\n\nAnswer in French."}],
        **missing,
    }


def test_replace_removes_all_other_system_text() -> None:
    request = {
        "instructions": "A",
        "input": [item("developer", "B"), user("x"), {"role": "system", "content": "C"}, user("y")],
    }
    assert with_prompt(RESPONSES, request, "replace") == {"instructions": PROMPT, "input": [user("x"), user("y")]}
    del request["instructions"]
    assert with_prompt(RESPONSES, request, "replace") == {"instructions": PROMPT, "input": [user("x"), user("y")]}


@pytest.mark.parametrize("mode", ["insert", "replace"])
def test_a_request_without_input_gets_only_instructions(mode: Mode) -> None:
    assert with_prompt(RESPONSES, {"previous_response_id": "resp_1"}, mode) == {
        "previous_response_id": "resp_1",
        "instructions": PROMPT,
    }


@pytest.mark.parametrize("reasoning", [{}, {"summary": "auto"}, {"summary": "auto", "effort": None}])
def test_an_effort_keeps_the_clients_summary(reasoning: dict[str, Any]) -> None:
    after = with_reasoning(RESPONSES, {"input": "x", "reasoning": reasoning}, EFFORT)
    assert after == {"input": "x", "reasoning": {**reasoning, "effort": "high"}}


def test_an_effort_is_written_if_the_client_sets_no_reasoning() -> None:
    for unset in ({}, {"reasoning": None}):
        assert with_reasoning(RESPONSES, unset, EFFORT) == {"reasoning": {"effort": "high"}}


def test_template_kwargs_keep_the_clients_summary() -> None:
    request = {"reasoning": {"summary": "auto"}, "chat_template_kwargs": {"x": 1.5}}
    after = with_reasoning(RESPONSES, request, THINKING)
    assert after == {**request, "chat_template_kwargs": {"x": 1.5, "enable_thinking": True}}


def test_items_that_are_not_edited_keep_their_bytes() -> None:
    content = b'{"input":[ {"role":"user","content" :"\\u00e9", "x":0.10} , {"role":"system","y":1e400}],"seed":7E0}'
    members = json_edit.object_members(content)
    RESPONSES.write(members, Edit("m", PROMPT))
    assert b'{"role":"user","content" :"\\u00e9", "x":0.10}' in json_edit.join_members(members)
    assert b'"y":1e400' in json_edit.join_members(members) and b'"seed":7E0' in json_edit.join_members(members)


@pytest.mark.parametrize("request_id", ["mine", "resp_" + "1" * 123])
def test_the_request_id_in_the_body_is_the_responses_id(request_id: str) -> None:
    members = {"request_id": json.dumps(request_id).encode()}
    assert RESPONSES.assign_id(members, None, "new") == ("new", request_id)
    assert RESPONSES.assign_id(members, "header", "new") == (None, request_id)
    assert members == {"request_id": json.dumps(request_id).encode()}


@pytest.mark.parametrize("request_id", ["", "\ud83d", "é", "two words", "line\nbreak", "x" * 129])
def test_an_id_that_cannot_be_kept_is_replaced(request_id: str) -> None:
    members: dict[str, Any] = {"request_id": json.dumps(request_id).encode()}
    assert RESPONSES.assign_id(members, request_id, "new") == ("new", "resp_new")
    assert members == {"request_id": b'"resp_new"'}
    members = {"request_id": json.dumps(request_id).encode()}
    assert CHAT.assign_id(members, None, "new") == ("new", "chatcmpl-new")
    assert CHAT.assign_id(members, request_id or "x" * 129, "new") == ("new", "chatcmpl-new")


def test_a_new_id_is_written_if_the_body_has_none() -> None:
    members: dict[str, Any] = {}
    assert RESPONSES.assign_id(members, None, "new") == ("new", "resp_new")
    assert members == {"request_id": b'"resp_new"'}


@pytest.mark.parametrize("invalid", [b"null", b"5", b"[]"])
def test_an_invalid_id_is_left_for_vllm_to_refuse(invalid: bytes) -> None:
    members: dict[str, Any] = {"request_id": invalid}
    RESPONSES.assign_id(members, None, "new")
    assert members == {"request_id": invalid}


def test_only_the_model_is_written_without_a_prompt_and_reasoning() -> None:
    assert apply_edit(RESPONSES, {"input": [item("system", "A")]}, Edit("m", None, "replace"))[0] == {
        "input": [item("system", "A")],
        "model": "m",
    }
