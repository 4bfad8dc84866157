"""Every byte that is not edited stays as the client wrote it."""

import json
import math
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.chat import CHAT
from vllm_lora_router.protocols.completions import COMPLETIONS
from vllm_lora_router.protocols.decisions import DECISIONS
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.protocols.routes import ROUTES, shape_of
from vllm_lora_router.types import Edit, Reasoning

from ..conftest import examples, json_list, json_object, json_values, letters, same, strings

messages = json_object(
    st.one_of(
        st.tuples(st.just('"role"'), st.sampled_from(['"user"', '"system"', '"developer"', '"assistant"', '"tool"'])),
        st.tuples(st.just('"content"'), st.one_of(strings, json_values)),
        st.tuples(strings, json_values),
    )
)
known = st.one_of(
    st.tuples(st.just('"model"'), st.just('"MoM"')),
    st.tuples(st.just('"messages"'), json_list(messages)),
    st.tuples(st.just('"prompt"'), strings),
    st.tuples(st.just('"tools"'), json_values),
    st.tuples(st.just('"chat_template_kwargs"'), json_object(st.tuples(strings, json_values)) | st.just("null")),
    st.tuples(st.just('"reasoning_effort"'), st.just("null")),
)
bodies = json_object(st.one_of(known, known, st.tuples(strings, json_values)), most=8)
edits = st.builds(
    Edit,
    model=letters.filter(bool),
    system_prompt=st.none() | letters,
    system_prompt_mode=st.sampled_from(["insert", "replace"]),
    reasoning=st.sampled_from(
        [
            None,
            Reasoning(True, template_kwargs={"enable_thinking": True}),
            Reasoning(False, template_kwargs={"thinking": False}),
            Reasoning(True, effort="high"),
        ]
    ),
)


def model_of(content: bytes) -> str | None:
    try:
        return json_edit.text(json_edit.whole(content).get("model"))
    except json_edit.NotAnObject:
        return None


def routed(shape: Shape, content: bytes, edit: Edit) -> bytes:
    members = json_edit.fields(content)
    shape.write(members, edit)
    return json_edit.join(members)


@examples
@given(bodies, edits)
def test_a_routed_completion_is_the_clients_with_another_model_and_nothing_else(text: str, edit: Edit) -> None:
    before = json.loads(text)
    after = json.loads(routed(COMPLETIONS, text.encode(), edit))
    assert same(after, {**before, "model": edit.model})


def is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def says_something_of_reasoning(members: dict[str, Any]) -> bool:
    wishes = ("reasoning_effort", "reasoning", "thinking", "output_config")
    kwargs = members.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        return True  # nothing that vLLM takes: it stays as it is, to be refused
    known = {"enable_thinking", "thinking", "reasoning_effort"}
    return any(members.get(wish) is not None for wish in wishes) or bool(known & (kwargs or {}).keys())


@examples
@given(bodies, edits)
def test_a_routed_chat_is_the_clients_with_the_edit_and_nothing_else(text: str, edit: Edit) -> None:
    before = json.loads(text)
    content = routed(CHAT, text.encode(), edit)
    after = json.loads(content)
    expected = {**before, "model": edit.model}
    if edit.system_prompt is not None and isinstance(before.get("messages"), list):
        system = [message for message in before["messages"] if is_system(message)]
        kept = [message for message in after["messages"] if not is_system(message)]
        assert same(kept, [message for message in before["messages"] if not is_system(message)])
        first, *others = [message for message in after["messages"] if is_system(message)]
        assert same(others, system[1:] if edit.system_prompt_mode == "insert" else [])
        if system:
            assert same({**first, "content": 0}, {**system[0], "content": 0})
        else:
            assert first == {"role": "system", "content": edit.system_prompt}
            assert after["messages"][0] == first
        said = first["content"]
        said = said[0]["text"] if isinstance(said, list) else said
        assert said.startswith(edit.system_prompt)
        expected["messages"] = after["messages"]
    if edit.reasoning is not None and not says_something_of_reasoning(before):
        if edit.reasoning.effort is not None:
            expected["reasoning_effort"] = edit.reasoning.effort
        if edit.reasoning.template_kwargs:
            kwargs = before.get("chat_template_kwargs") or {}
            expected["chat_template_kwargs"] = {**kwargs, **edit.reasoning.template_kwargs}
    assert same(after, expected)


def raw_members(text: str) -> dict[str, str]:
    """The members of a JSON object as they stand in the text, read with Python's own decoder."""
    decoder, found, at = json.JSONDecoder(), {}, text.index("{") + 1
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(string.whitespace + ","))
        if text[at] == "}":
            return found
        key, at = decoder.raw_decode(text, at)
        at = text.index(":", at) + 1
        at += len(text[at:]) - len(text[at:].lstrip())
        _, end = decoder.raw_decode(text, at)
        found[key], at = text[at:end], end


@examples
@given(bodies, edits)
def test_the_text_of_every_member_that_is_not_edited_stays_to_the_byte(text: str, edit: Edit) -> None:
    before, after = raw_members(text), raw_members(routed(CHAT, text.encode(), edit).decode())
    edited = {"model", "messages", "chat_template_kwargs", "reasoning_effort"}
    assert [key for key in after if key in before] == list(before)
    assert {key: raw for key, raw in after.items() if key not in edited} == {
        key: raw for key, raw in before.items() if key not in edited
    }


TOOLS = '[ {"b":1.0, "a" : 0.10 ,"c":[1e400,12345678901234567890123], "\\u00e9":"\\/" } ]'
FIRST = '{ "content" :"Gr\\u00f6\\u00dfe", "role":"user","x":0.50}'
SECOND = '{"role":"assistant",  "content":null}'


def test_tools_and_untouched_messages_keep_their_bytes() -> None:
    text = f'{{"tools" : {TOOLS} ,"model":"MoM","messages":[{FIRST} , {SECOND}],"temperature":0.70}}'
    edit = Edit("medical-lora", "Be kind.", reasoning=Reasoning(True, template_kwargs={"enable_thinking": True}))
    assert routed(CHAT, text.encode(), edit).decode() == (
        f'{{"tools":{TOOLS},"model":"medical-lora",'
        f'"messages":[{{"role":"system","content":"Be kind."}},{FIRST} , {SECOND}],'
        '"temperature":0.70,"chat_template_kwargs":{"enable_thinking":true}}'
    )


def test_a_system_message_that_is_edited_keeps_its_other_members() -> None:
    text = '{"messages":[{"name":"n" ,"content":"Own.","role":"system","score":0.10}]}'
    assert routed(CHAT, text.encode(), Edit("m", "Ours.")).decode() == (
        '{"messages":[{"name":"n","content":"Ours.\\n\\nOwn.","role":"system","score":0.10}],"model":"m"}'
    )


def test_of_two_equal_keys_the_last_counts_as_it_does_for_vllm() -> None:
    content = b'{"model":"base","x":1,"model":"MoM"}'
    assert model_of(content) == "MoM"
    assert routed(COMPLETIONS, content, Edit("a")) == b'{"model":"a","x":1}'


def test_a_model_named_with_escapes_is_read() -> None:
    assert model_of(b'{"\\u006dodel":"M\\u006fM"}') == "MoM"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_body_in_another_encoding_of_unicode_is_routed(encoding: str) -> None:
    before = {"x": ["Größe", 0.1, 12345678901234567890123], "model": "MoM", "prompt": "🩺"}
    content = json.dumps(before, ensure_ascii=False).encode(encoding)
    assert model_of(content) == "MoM"
    after = json.loads(routed(COMPLETIONS, content, Edit("a")))
    assert same(after, {**before, "model": "a"})


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '"\\ud83d"', '{"\\udc00":[NaN]}'])
def test_a_body_with_nan_or_half_an_emoji_is_routed(value: str) -> None:
    content = f'{{"model":"MoM","messages":[{{"role":"user","content":"fever"}}],"x":{value}}}'.encode()
    assert model_of(content) == "MoM"
    after = json.loads(routed(CHAT, content, Edit("a", "Be kind.")))
    assert repr(after["x"]) == repr(json.loads(value))
    assert (after["model"], len(after["messages"])) == ("a", 2)


def test_a_text_with_half_an_emoji_is_read_and_handed_on() -> None:
    content = b'{"messages":[{"role":"user","content":"my \\ud83d hurts"}]}'
    (query,) = CHAT.read(json_edit.fields(content))
    assert query.text == "my \ud83d hurts"
    assert json.loads(routed(CHAT, content, Edit("a")))["messages"][0]["content"] == "my \ud83d hurts"


OWN = b'"Own \\ud83d."'


@pytest.mark.parametrize(
    ("shape", "content", "place"),
    [
        (CHAT, b'{"messages":[{"role":"system","content":' + OWN + b"}]}", ("messages", 0, "content")),
        (RESPONSES, b'{"input":[{"role":"developer","content":' + OWN + b"}]}", ("input", 0, "content")),
        (RESPONSES, b'{"instructions":' + OWN + b"}", ("instructions",)),
        (MESSAGES, b'{"system":' + OWN + b"}", ("system",)),
        (DECISIONS, b'{"instructions":' + OWN + b"}", ("instructions",)),
    ],
)
def test_a_prompt_goes_before_a_clients_own_with_half_an_emoji(shape: Shape, content: bytes, place: Any) -> None:
    after = json.loads(routed(shape, content, Edit("a", "Ours.")))
    for key in place:
        after = after[key]
    assert after == "Ours.\n\nOwn \ud83d."


DEEP = b'{"model":"MoM","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

NO_OBJECT = [
    b"",
    b"null",
    b"[]",
    b'"MoM"',
    b"5",
    b"{",
    b'{"model":"MoM"',
    b'{"model":"MoM",}',
    b'{"model":"MoM"} x',
    b"{'model':'MoM'}",
    b'{"model":"MoM","x":01}',
    b'{"model":"MoM","x":"\n"}',
    b'{"model":"MoM","x":\\u0031}',
    DEEP,
]


@pytest.mark.parametrize("content", NO_OBJECT, ids=lambda content: repr(content[:24]))
def test_what_is_no_json_object_has_no_model_and_is_said_to_be_none(content: bytes) -> None:
    assert model_of(content) is None
    with pytest.raises(json_edit.NotAnObject):
        json_edit.fields(content)


def test_bytes_that_are_no_text_have_no_model() -> None:
    assert model_of(b'{"model":"MoM","x":"\xff"}') is None


@pytest.mark.parametrize(
    "content", [b"{}", b'{"model":null}', b'{"model":5}', b'{"model":["MoM"]}', b'{"Model":"MoM"}']
)
def test_an_object_without_a_models_name_has_none(content: bytes) -> None:
    assert model_of(content) is None


def test_a_large_body_is_not_copied_to_find_its_model() -> None:
    content = b'{"x":"' + b"a" * 20_000_000 + b'","model":"MoM"}'
    assert model_of(content) == "MoM"
    members = json_edit.fields(content)
    assert memoryview(members["x"]).nbytes == 20_000_002


def test_numbers_that_no_float_holds_are_read_as_python_reads_them() -> None:
    assert json_edit.read(b"1e400") == math.inf
    assert json_edit.read(b"12345678901234567890123") == 12345678901234567890123
    assert json_edit.items(b'[1e400, "a"]') is not None


@pytest.mark.parametrize("content", [b"{}", b'"[]"', b"null", b"5", b"", b"[", DEEP])
def test_what_is_no_list_has_no_items(content: bytes) -> None:
    assert json_edit.items(content) is None


def test_paths_lead_to_their_shapes_and_bodies_tell_theirs() -> None:
    assert ROUTES["/v1/chat/completions"].shape_of({}) is CHAT and ROUTES["/v1/completions"].shape_of({}) is COMPLETIONS
    assert shape_of({"messages": b"[]", "prompt": b'""'}) is CHAT
    assert shape_of({"prompt": b'""'}) is COMPLETIONS
    assert shape_of({"input": b'""'}) is RESPONSES
    assert shape_of({"query": b'""'}) is None
