"""Chat completions: the user text that is read, and the edits that are written."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.chat import CHAT, read_queries
from vllm_lora_router.types import AppliedEdit, Edit, Mode, Reasoning

User = dict[str, Any]


def user(content: Any) -> User:
    return {"role": "user", "content": content}


def text_and_turns(messages: Any) -> tuple[str, tuple[str, ...]]:
    (query,) = read_queries(json_edit.object_members(json.dumps({"messages": messages}).encode()))
    assert query.api == "chat"
    return query.text, query.turns


def apply_edit(request: dict[str, Any], edit: Edit) -> tuple[dict[str, Any], AppliedEdit]:
    members = json_edit.object_members(json.dumps(request).encode())
    applied = CHAT.write(members, edit)
    return json.loads(json_edit.join_members(members)), applied


def test_the_last_user_message_is_the_text_and_all_of_them_are_the_turns() -> None:
    messages = [user("One?"), {"role": "assistant", "content": "Yes."}, user("Two?")]
    assert text_and_turns(messages) == ("Two?", ("One?", "Two?"))


def test_system_tool_and_assistant_messages_are_not_user_text() -> None:
    others = [{"role": role, "content": role} for role in ("system", "developer", "tool", "function", "assistant")]
    assert text_and_turns(others) == ("", ())
    assert text_and_turns([*others, user("User text."), *others]) == ("User text.", ("User text.",))


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "text": "not this"}}


def test_text_parts_are_joined_and_images_and_audio_are_left_out() -> None:
    parts = [
        {"type": "text", "text": "What is"},
        IMAGE,
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}, "text": "nor this"},
        {"type": "input_text", "text": "this?"},
        "Really?",
    ]
    assert text_and_turns([user(parts)])[0] == "What is\nthis?\nReally?"


@pytest.mark.parametrize("content", [[], [IMAGE], "", [{"type": "text", "text": ""}]])
def test_a_last_message_without_text_gives_an_empty_text(content: Any) -> None:
    assert text_and_turns([user("Earlier."), user(content)]) == ("", ("Earlier.", ""))


@pytest.mark.parametrize("content", [None, 5, True, {"text": "x"}])
def test_invalid_content_is_skipped(content: Any) -> None:
    assert text_and_turns([user("Earlier."), user(content)])[0] == "Earlier."


@pytest.mark.parametrize(
    "messages",
    [None, [], {}, "text", 5, [None, 1, "text", [], {}], [{"role": ["user"], "content": "x"}], [{"role": "user"}]],
)
def test_messages_that_vllm_will_refuse_have_no_text(messages: Any) -> None:
    assert text_and_turns(messages) == ("", ())
    assert read_queries({}) == read_queries({"messages": b"[]"})


def test_whitespace_in_the_json_is_accepted() -> None:
    (query,) = read_queries(
        {"messages": b'[ {"role" : "user" , "content" : [ \n {"type" : "text", "text" : "Gr\\u00f6\\u00dfe"} ]}]'}
    )
    assert query.text == "Größe"


PROMPT = "You are a medical expert."
Messages = list[dict[str, Any]]


def with_prompt(messages: Messages, mode: Mode = "insert") -> Messages:
    after, applied = apply_edit({"model": "MoM", "messages": messages}, Edit("medical-lora", PROMPT, mode))
    assert after["model"] == "medical-lora"
    assert applied.system_prompt
    return after["messages"]


@pytest.mark.parametrize("mode", ["insert", "replace"])
def test_a_system_prompt_becomes_the_first_message_if_the_client_sends_none(mode: Mode) -> None:
    assert with_prompt([user("x")], mode) == [{"role": "system", "content": PROMPT}, user("x")]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_inserted_prompt_precedes_the_clients_text_in_one_message(role: str) -> None:
    messages = [{"role": role, "content": "Answer in French.", "name": "n"}, user("x")]
    assert with_prompt(messages) == [
        {"role": role, "content": f"{PROMPT}\n\nAnswer in French.", "name": "n"},
        user("x"),
    ]


def test_an_inserted_prompt_is_a_new_part_before_the_clients_parts() -> None:
    parts = [{"type": "text", "text": "Answer in French.", "cache_control": {"ttl": 0.5}}]
    (first, _) = with_prompt([{"role": "system", "content": parts}, user("x")])
    assert first == {"role": "system", "content": [{"type": "text", "text": PROMPT}, *parts]}


@pytest.mark.parametrize("content", ["", None, 5])
def test_an_inserted_prompt_replaces_empty_content(content: Any) -> None:
    assert with_prompt([{"role": "system", "content": content}])[0]["content"] == PROMPT
    assert with_prompt([{"role": "system"}])[0]["content"] == PROMPT
    assert with_prompt([{"role": "system", "content": []}])[0]["content"] == [{"type": "text", "text": PROMPT}]


def test_an_inserted_prompt_goes_into_the_first_of_several_system_messages() -> None:
    messages = [user("x"), {"role": "developer", "content": "A"}, user("y"), {"role": "system", "content": "B"}]
    assert with_prompt(messages) == [
        user("x"),
        {"role": "developer", "content": f"{PROMPT}\n\nA"},
        user("y"),
        {"role": "system", "content": "B"},
    ]


def test_replace_removes_all_other_system_messages() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "A"}], "name": "n"},
        user("x"),
        {"role": "developer", "content": "B"},
        {"role": "system", "content": "C"},
        user("y"),
    ]
    assert with_prompt(messages, "replace") == [
        {"role": "system", "content": PROMPT, "name": "n"},
        user("x"),
        user("y"),
    ]


@pytest.mark.parametrize("request_", [{}, {"messages": None}, {"messages": "x"}, {"messages": {}}])
def test_a_prompt_that_is_not_written_is_not_reported_as_written(request_: dict[str, Any]) -> None:
    after, applied = apply_edit(request_, Edit("m", PROMPT))
    assert after == {**request_, "model": "m"}
    assert not applied.system_prompt


def test_invalid_roles_are_left_for_vllm_to_refuse() -> None:
    invalid = [{"role": ["system"], "content": "x"}, {"role": None}]
    assert with_prompt(invalid) == [{"role": "system", "content": PROMPT}, *invalid]


def test_messages_are_unchanged_without_a_prompt() -> None:
    after, applied = apply_edit({"messages": [{"role": "system", "content": "A"}]}, Edit("m", None, "replace"))
    assert after == {"messages": [{"role": "system", "content": "A"}], "model": "m"}
    assert applied == AppliedEdit()


THINKING = Reasoning(True, template_kwargs={"enable_thinking": True})
NO_THINKING = Reasoning(False, template_kwargs={"enable_thinking": False})
EFFORT = Reasoning(True, effort="high")


@pytest.mark.parametrize(
    ("reasoning", "fields", "expected"),
    [
        (THINKING, {"chat_template_kwargs": {"enable_thinking": True}}, True),
        (NO_THINKING, {"chat_template_kwargs": {"enable_thinking": False}}, False),
        (EFFORT, {"reasoning_effort": "high"}, True),
        (None, {}, None),
    ],
)
def test_reasoning_is_written_in_the_way_of_the_family(
    reasoning: Reasoning | None, fields: dict[str, Any], expected: bool | None
) -> None:
    after, applied = apply_edit({"model": "MoM"}, Edit("m", reasoning=reasoning))
    assert after == {"model": "m", **fields}
    assert applied.reasoning is expected


def test_template_kwargs_are_merged_with_the_clients_kwargs() -> None:
    after, applied = apply_edit(
        {"chat_template_kwargs": {"documents": [1.50], "x": None}}, Edit("m", reasoning=THINKING)
    )
    assert after["chat_template_kwargs"] == {"documents": [1.50], "x": None, "enable_thinking": True}
    assert applied.reasoning


@pytest.mark.parametrize("unset", [{"chat_template_kwargs": None}, {"reasoning_effort": None, "thinking": None}])
def test_null_does_not_set_reasoning(unset: dict[str, Any]) -> None:
    after, applied = apply_edit(unset, Edit("m", reasoning=THINKING))
    assert after["chat_template_kwargs"] == {"enable_thinking": True}
    assert applied.reasoning
    after, _ = apply_edit(unset, Edit("m", reasoning=EFFORT))
    assert after["reasoning_effort"] == "high"


@pytest.mark.parametrize("reasoning", [THINKING, NO_THINKING, EFFORT], ids=["thinking", "no-thinking", "effort"])
@pytest.mark.parametrize(
    "settings",
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
def test_the_clients_own_reasoning_takes_precedence(settings: dict[str, Any], reasoning: Reasoning) -> None:
    after, applied = apply_edit(settings, Edit("m", reasoning=reasoning))
    assert after == {**settings, "model": "m"}
    assert not applied.reasoning


def test_the_clients_own_template_parameter_takes_precedence() -> None:
    reasoning = Reasoning(True, template_kwargs={"think_hard": True})
    after, applied = apply_edit({"chat_template_kwargs": {"think_hard": False}}, Edit("m", reasoning=reasoning))
    assert after["chat_template_kwargs"] == {"think_hard": False}
    assert not applied.reasoning
