"""Responses: the input's words, the place of instructions, and reasoning beside a summary."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.types import Edit, Mode

from .conftest import EFFORT, OURS, THINK, edited, prompted, queries, reasoned, said, user


def item(role: str, text: str, part: str = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": part, "text": text}]}


def test_an_input_that_is_a_string_is_what_the_user_said() -> None:
    assert said(RESPONSES, {"input": "What is a fever?"}) == ("What is a fever?", ("What is a fever?",))


def test_an_escaped_input_is_read() -> None:
    (query,) = RESPONSES.read(json_edit.fields(b'{"input" : "Gr\\u00f6\\u00dfe \\ud83d"}'))
    assert query.text == "Größe \ud83d"


def test_the_users_items_are_what_the_user_said() -> None:
    items = [
        item("developer", "Answer in French."),
        user("One?"),
        item("assistant", "Yes.", "output_text"),
        {"role": "user", "content": [{"type": "input_text", "text": "Two,"}, {"type": "input_text", "text": "three?"}]},
    ]
    assert said(RESPONSES, {"input": items, "instructions": "Be kind."}) == ("Two,\nthree?", ("One?", "Two,\nthree?"))


def test_what_tools_gave_back_is_not_the_users_word() -> None:
    items = [
        item("user", "Mine."),
        {"type": "function_call", "name": "f", "arguments": '{"role":"user"}', "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "Theirs."}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "item_reference", "id": "msg_1"},
    ]
    assert said(RESPONSES, {"input": items}) == ("Mine.", ("Mine.",))


def test_an_image_alone_is_a_turn_without_words() -> None:
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
    assert said(RESPONSES, {"input": [user("Earlier."), image]}) == ("", ("Earlier.", ""))


@pytest.mark.parametrize("given", [None, 5, True, {}, [], [None, 5, "x", []], [{"type": "message"}]])
def test_an_input_that_vllm_will_refuse_has_no_words(given: Any) -> None:
    assert said(RESPONSES, {"input": given}) == ("", ())
    assert queries(RESPONSES, {}) == queries(RESPONSES, {"input": None})


@pytest.mark.parametrize("request_", [{}, {"instructions": None}, {"instructions": ""}])
@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("given", ["x", [user("x")], []])
def test_a_prompt_goes_into_instructions_where_the_client_has_none(
    request_: dict[str, Any], mode: Mode, given: Any
) -> None:
    assert prompted(RESPONSES, {"input": given, **request_}, mode) == {"input": given, "instructions": OURS}


def test_an_inserted_prompt_goes_before_the_clients_instructions() -> None:
    request = {"instructions": "Answer in French.", "input": "x"}
    assert prompted(RESPONSES, request) == {"instructions": f"{OURS}\n\nAnswer in French.", "input": "x"}


def test_an_inserted_prompt_goes_before_the_clients_instructions_whatever_items_there_are() -> None:
    request = {"instructions": "Answer in French.", "input": [item("developer", "Be brief."), user("x")]}
    assert prompted(RESPONSES, request) == {**request, "instructions": f"{OURS}\n\nAnswer in French."}


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("nothing", [{}, {"instructions": None}, {"instructions": ""}])
def test_an_inserted_prompt_goes_into_the_clients_own_item_where_that_instructs(
    role: str, nothing: dict[str, Any]
) -> None:
    own, question = item(role, "Answer in French."), item("user", "x")
    first = {**own, "content": [{"type": "input_text", "text": OURS}, *own["content"]]}
    assert prompted(RESPONSES, {"input": [own, question], **nothing}) == {"input": [first, question], **nothing}
    text = {"role": role, "content": "Answer in French."}
    assert prompted(RESPONSES, {"input": [question, text], **nothing}) == {
        "input": [question, {"role": role, "content": f"{OURS}\n\nAnswer in French."}],
        **nothing,
    }


def test_a_replaced_prompt_is_the_only_one_left() -> None:
    request = {
        "instructions": "A",
        "input": [item("developer", "B"), user("x"), {"role": "system", "content": "C"}, user("y")],
    }
    assert prompted(RESPONSES, request, "replace") == {"instructions": OURS, "input": [user("x"), user("y")]}
    del request["instructions"]
    assert prompted(RESPONSES, request, "replace") == {"instructions": OURS, "input": [user("x"), user("y")]}


@pytest.mark.parametrize("mode", ["insert", "replace"])
def test_a_prompt_for_a_request_without_input_adds_nothing_but_instructions(mode: Mode) -> None:
    assert prompted(RESPONSES, {"previous_response_id": "resp_1"}, mode) == {
        "previous_response_id": "resp_1",
        "instructions": OURS,
    }


@pytest.mark.parametrize("reasoning", [{}, {"summary": "auto"}, {"summary": "auto", "effort": None}])
def test_an_effort_goes_beside_what_the_client_says_of_summaries(reasoning: dict[str, Any]) -> None:
    after = reasoned(RESPONSES, {"input": "x", "reasoning": reasoning}, EFFORT)
    assert after == {"input": "x", "reasoning": {**reasoning, "effort": "high"}}


def test_an_effort_is_written_where_the_client_says_nothing() -> None:
    for nothing in ({}, {"reasoning": None}):
        assert reasoned(RESPONSES, nothing, EFFORT) == {"reasoning": {"effort": "high"}}


def test_template_kwargs_are_written_beside_a_summary() -> None:
    request = {"reasoning": {"summary": "auto"}, "chat_template_kwargs": {"x": 1.5}}
    after = reasoned(RESPONSES, request, THINK)
    assert after == {**request, "chat_template_kwargs": {"x": 1.5, "enable_thinking": True}}


def test_items_that_are_not_edited_keep_their_bytes() -> None:
    content = b'{"input":[ {"role":"user","content" :"\\u00e9", "x":0.10} , {"role":"system","y":1e400}],"seed":7E0}'
    members = json_edit.fields(content)
    RESPONSES.write(members, Edit("m", OURS))
    assert b'{"role":"user","content" :"\\u00e9", "x":0.10}' in json_edit.join(members)
    assert b'"y":1e400' in json_edit.join(members) and b'"seed":7E0' in json_edit.join(members)


@pytest.mark.parametrize("given", ["mine", "", "\ud83d"])
def test_the_clients_own_request_id_is_the_answers(given: str) -> None:
    members = {"request_id": json.dumps(given).encode()}
    assert RESPONSES.identify(members, None, "new") == ("new", given)
    assert RESPONSES.identify(members, "header", "new") == (None, given)
    assert members == {"request_id": json.dumps(given).encode()}


def test_an_answers_id_is_written_where_the_client_gave_none() -> None:
    members: dict[str, Any] = {}
    assert RESPONSES.identify(members, None, "new") == ("new", "resp_new")
    assert members == {"request_id": b'"resp_new"'}


@pytest.mark.parametrize("wrong", [b"null", b"5", b"[]"])
def test_an_id_that_vllm_refuses_is_left_for_it_to_refuse(wrong: bytes) -> None:
    members: dict[str, Any] = {"request_id": wrong}
    RESPONSES.identify(members, None, "new")
    assert members == {"request_id": wrong}


def test_the_model_alone_is_written_where_there_is_nothing_else_to_write() -> None:
    assert edited(RESPONSES, {"input": [item("system", "A")]}, Edit("m", None, "replace"))[0] == {
        "input": [item("system", "A")],
        "model": "m",
    }
