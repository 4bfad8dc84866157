"""Chat completions: what the user said, and what is written of an edit."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.chat import CHAT, read
from vllm_lora_router.types import AppliedEdit, Edit, Mode, Reasoning

User = dict[str, Any]


def user(content: Any) -> User:
    return {"role": "user", "content": content}


def said(messages: Any) -> tuple[str, tuple[str, ...]]:
    (query,) = read(json_edit.fields(json.dumps({"messages": messages}).encode()))
    assert query.api == "chat"
    return query.text, query.turns


def edited(request: dict[str, Any], edit: Edit) -> tuple[dict[str, Any], AppliedEdit]:
    members = json_edit.fields(json.dumps(request).encode())
    written = CHAT.write(members, edit)
    return json.loads(json_edit.join(members)), written


def test_the_last_user_message_is_the_text_and_all_of_them_are_the_turns() -> None:
    messages = [user("One?"), {"role": "assistant", "content": "Yes."}, user("Two?")]
    assert said(messages) == ("Two?", ("One?", "Two?"))


def test_system_tool_and_assistant_messages_are_not_the_users_words() -> None:
    others = [{"role": role, "content": role} for role in ("system", "developer", "tool", "function", "assistant")]
    assert said(others) == ("", ())
    assert said([*others, user("Mine."), *others]) == ("Mine.", ("Mine.",))


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "text": "not this"}}


def test_text_parts_are_joined_and_images_and_audio_are_left_out() -> None:
    parts = [
        {"type": "text", "text": "What is"},
        IMAGE,
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}, "text": "nor this"},
        {"type": "input_text", "text": "this?"},
        "Really?",
    ]
    assert said([user(parts)])[0] == "What is\nthis?\nReally?"


@pytest.mark.parametrize("content", [[], [IMAGE], "", [{"type": "text", "text": ""}]])
def test_a_last_message_without_words_is_an_empty_text_and_not_the_message_before_it(content: Any) -> None:
    assert said([user("Earlier."), user(content)]) == ("", ("Earlier.", ""))


@pytest.mark.parametrize("content", [None, 5, True, {"text": "x"}])
def test_a_content_that_is_no_text_is_passed_over(content: Any) -> None:
    assert said([user("Earlier."), user(content)])[0] == "Earlier."


@pytest.mark.parametrize(
    "messages",
    [None, [], {}, "text", 5, [None, 1, "text", [], {}], [{"role": ["user"], "content": "x"}], [{"role": "user"}]],
)
def test_messages_that_vllm_will_refuse_have_no_words(messages: Any) -> None:
    assert said(messages) == ("", ())
    assert read({}) == read({"messages": b"[]"})


def test_blanks_before_a_part_do_not_hide_it() -> None:
    (query,) = read(
        {"messages": b'[ {"role" : "user" , "content" : [ \n {"type" : "text", "text" : "Gr\\u00f6\\u00dfe"} ]}]'}
    )
    assert query.text == "Größe"


OURS = "You are a medical expert."
Messages = list[dict[str, Any]]


def prompted(messages: Messages, mode: Mode = "insert") -> Messages:
    after, written = edited({"model": "MoM", "messages": messages}, Edit("medical-lora", OURS, mode))
    assert after["model"] == "medical-lora"
    assert written.system_prompt
    return after["messages"]


@pytest.mark.parametrize("mode", ["insert", "replace"])
def test_a_system_prompt_stands_first_where_the_client_sent_none(mode: Mode) -> None:
    assert prompted([user("x")], mode) == [{"role": "system", "content": OURS}, user("x")]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_inserted_prompt_goes_before_the_clients_own_in_one_message(role: str) -> None:
    messages = [{"role": role, "content": "Answer in French.", "name": "n"}, user("x")]
    assert prompted(messages) == [{"role": role, "content": f"{OURS}\n\nAnswer in French.", "name": "n"}, user("x")]


def test_an_inserted_prompt_is_a_part_of_its_own_before_the_clients_parts() -> None:
    parts = [{"type": "text", "text": "Answer in French.", "cache_control": {"ttl": 0.5}}]
    (first, _) = prompted([{"role": "system", "content": parts}, user("x")])
    assert first == {"role": "system", "content": [{"type": "text", "text": OURS}, *parts]}


@pytest.mark.parametrize("content", ["", None, 5])
def test_an_inserted_prompt_takes_the_place_of_a_content_without_words(content: Any) -> None:
    assert prompted([{"role": "system", "content": content}])[0]["content"] == OURS
    assert prompted([{"role": "system"}])[0]["content"] == OURS
    assert prompted([{"role": "system", "content": []}])[0]["content"] == [{"type": "text", "text": OURS}]


def test_an_inserted_prompt_goes_into_the_first_of_several_system_messages_wherever_it_stands() -> None:
    messages = [user("x"), {"role": "developer", "content": "A"}, user("y"), {"role": "system", "content": "B"}]
    assert prompted(messages) == [
        user("x"),
        {"role": "developer", "content": f"{OURS}\n\nA"},
        user("y"),
        {"role": "system", "content": "B"},
    ]


def test_a_replaced_prompt_is_the_only_one_left() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "A"}], "name": "n"},
        user("x"),
        {"role": "developer", "content": "B"},
        {"role": "system", "content": "C"},
        user("y"),
    ]
    assert prompted(messages, "replace") == [{"role": "system", "content": OURS, "name": "n"}, user("x"), user("y")]


@pytest.mark.parametrize("request_", [{}, {"messages": None}, {"messages": "x"}, {"messages": {}}])
def test_a_prompt_is_not_said_to_be_written_where_it_was_not(request_: dict[str, Any]) -> None:
    after, written = edited(request_, Edit("m", OURS))
    assert after == {**request_, "model": "m"}
    assert not written.system_prompt


def test_a_role_of_a_wrong_form_is_left_for_vllm_to_refuse() -> None:
    wrong = [{"role": ["system"], "content": "x"}, {"role": None}]
    assert prompted(wrong) == [{"role": "system", "content": OURS}, *wrong]


def test_without_a_prompt_the_messages_stay() -> None:
    after, written = edited({"messages": [{"role": "system", "content": "A"}]}, Edit("m", None, "replace"))
    assert after == {"messages": [{"role": "system", "content": "A"}], "model": "m"}
    assert written == AppliedEdit()


THINK = Reasoning(True, template_kwargs={"enable_thinking": True})
DO_NOT = Reasoning(False, template_kwargs={"enable_thinking": False})
EFFORT = Reasoning(True, effort="high")


@pytest.mark.parametrize(
    ("reasoning", "fields", "said_on"),
    [
        (THINK, {"chat_template_kwargs": {"enable_thinking": True}}, True),
        (DO_NOT, {"chat_template_kwargs": {"enable_thinking": False}}, False),
        (EFFORT, {"reasoning_effort": "high"}, True),
        (None, {}, None),
    ],
)
def test_reasoning_is_written_where_the_family_looks_for_it(
    reasoning: Reasoning | None, fields: dict[str, Any], said_on: bool
) -> None:
    after, written = edited({"model": "MoM"}, Edit("m", reasoning=reasoning))
    assert after == {"model": "m", **fields}
    assert written.reasoning is said_on


def test_template_kwargs_are_merged_with_the_clients() -> None:
    after, written = edited({"chat_template_kwargs": {"documents": [1.50], "x": None}}, Edit("m", reasoning=THINK))
    assert after["chat_template_kwargs"] == {"documents": [1.50], "x": None, "enable_thinking": True}
    assert written.reasoning


@pytest.mark.parametrize("nothing", [{"chat_template_kwargs": None}, {"reasoning_effort": None, "thinking": None}])
def test_a_null_is_no_wish(nothing: dict[str, Any]) -> None:
    after, written = edited(nothing, Edit("m", reasoning=THINK))
    assert after["chat_template_kwargs"] == {"enable_thinking": True}
    assert written.reasoning
    after, _ = edited(nothing, Edit("m", reasoning=EFFORT))
    assert after["reasoning_effort"] == "high"


@pytest.mark.parametrize("reasoning", [THINK, DO_NOT, EFFORT], ids=["think", "do-not", "effort"])
@pytest.mark.parametrize(
    "wish",
    [
        {"reasoning_effort": "none"},
        {"reasoning": {"effort": "low"}},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "low"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {"reasoning_effort": "low"}},
        {"chat_template_kwargs": {"enable_thinking": None}},
        {"chat_template_kwargs": "not an object"},
    ],
    ids=json.dumps,
)
def test_a_clients_own_wish_about_reasoning_wins(wish: dict[str, Any], reasoning: Reasoning) -> None:
    after, written = edited(wish, Edit("m", reasoning=reasoning))
    assert after == {**wish, "model": "m"}
    assert not written.reasoning


def test_a_clients_wish_in_the_familys_own_parameter_wins() -> None:
    own = Reasoning(True, template_kwargs={"think_hard": True})
    after, written = edited({"chat_template_kwargs": {"think_hard": False}}, Edit("m", reasoning=own))
    assert after["chat_template_kwargs"] == {"think_hard": False}
    assert not written.reasoning
