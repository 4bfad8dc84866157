"""Edits of JSON bodies: every byte that is not edited stays as the client sent it."""

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
from vllm_lora_router.protocols.protocol import ApiProtocol
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.protocols.routes import ROUTES, detect_protocol
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
bodies = json_object(st.one_of(known, known, st.tuples(strings, json_values)), max_size=8)
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
        return json_edit.string_value(json_edit.body_members(content).get("model"))
    except json_edit.NotAnObjectError:
        return None


def write_edit(protocol: ApiProtocol, content: bytes, edit: Edit) -> bytes:
    members = json_edit.object_members(content)
    protocol.write(members, edit)
    return json_edit.join_members(members)


@examples
@given(bodies, edits)
def test_a_routed_completion_differs_only_in_its_model(text: str, edit: Edit) -> None:
    before = json.loads(text)
    after = json.loads(write_edit(COMPLETIONS, text.encode(), edit))
    assert same(after, {**before, "model": edit.model})


def is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def sets_reasoning(members: dict[str, Any]) -> bool:
    names = ("reasoning_effort", "reasoning", "thinking", "output_config")
    kwargs = members.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        return True  # vLLM refuses it, so it is not changed
    known = {"enable_thinking", "thinking", "reasoning_effort"}
    return any(members.get(name) is not None for name in names) or bool(known & (kwargs or {}).keys())


@examples
@given(bodies, edits)
def test_a_routed_chat_differs_only_in_the_edit(text: str, edit: Edit) -> None:
    before = json.loads(text)
    content = write_edit(CHAT, text.encode(), edit)
    after = json.loads(content)
    expected = {**before, "model": edit.model}
    if edit.system_prompt is not None and isinstance(before.get("messages"), list):
        system = [message for message in before["messages"] if is_system(message)]
        others_after = [message for message in after["messages"] if not is_system(message)]
        assert same(others_after, [message for message in before["messages"] if not is_system(message)])
        first, *others = [message for message in after["messages"] if is_system(message)]
        assert same(others, system[1:] if edit.system_prompt_mode == "insert" else [])
        if system:
            assert same({**first, "content": 0}, {**system[0], "content": 0})
        else:
            assert first == {"role": "system", "content": edit.system_prompt}
            assert after["messages"][0] == first
        content = first["content"]
        text = content[0]["text"] if isinstance(content, list) else content
        assert text.startswith(edit.system_prompt)
        expected["messages"] = after["messages"]
    if edit.reasoning is not None and not sets_reasoning(before):
        if edit.reasoning.effort is not None:
            expected["reasoning_effort"] = edit.reasoning.effort
        if edit.reasoning.template_kwargs:
            kwargs = before.get("chat_template_kwargs") or {}
            expected["chat_template_kwargs"] = {**kwargs, **edit.reasoning.template_kwargs}
    assert same(after, expected)


def raw_members(text: str) -> dict[str, str]:
    """Return the raw members of a JSON object, found with Python's own decoder."""
    decoder, members, at = json.JSONDecoder(), {}, text.index("{") + 1
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(string.whitespace + ","))
        if text[at] == "}":
            return members
        key, at = decoder.raw_decode(text, at)
        at = text.index(":", at) + 1
        at += len(text[at:]) - len(text[at:].lstrip())
        _, end = decoder.raw_decode(text, at)
        members[key], at = text[at:end], end


@examples
@given(bodies, edits)
def test_members_that_are_not_edited_keep_their_bytes(text: str, edit: Edit) -> None:
    before, after = raw_members(text), raw_members(write_edit(CHAT, text.encode(), edit).decode())
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
    assert write_edit(CHAT, text.encode(), edit).decode() == (
        f'{{"tools":{TOOLS},"model":"medical-lora",'
        f'"messages":[{{"role":"system","content":"Be kind."}},{FIRST} , {SECOND}],'
        '"temperature":0.70,"chat_template_kwargs":{"enable_thinking":true}}'
    )


def test_a_system_message_that_is_edited_keeps_its_other_members() -> None:
    text = '{"messages":[{"name":"n" ,"content":"Client.","role":"system","score":0.10}]}'
    assert write_edit(CHAT, text.encode(), Edit("m", "Category prompt.")).decode() == (
        '{"messages":[{"name":"n","content":"Category prompt.\\n\\nClient.","role":"system","score":0.10}],"model":"m"}'
    )


def test_the_last_of_two_equal_keys_counts_as_in_vllm() -> None:
    content = b'{"model":"base","x":1,"model":"MoM"}'
    assert model_of(content) == "MoM"
    assert write_edit(COMPLETIONS, content, Edit("a")) == b'{"model":"a","x":1}'


def test_a_model_name_with_escapes_is_read() -> None:
    assert model_of(b'{"\\u006dodel":"M\\u006fM"}') == "MoM"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_body_in_another_encoding_of_unicode_is_write_edit(encoding: str) -> None:
    before = {"x": ["Größe", 0.1, 12345678901234567890123], "model": "MoM", "prompt": "🩺"}
    content = json.dumps(before, ensure_ascii=False).encode(encoding)
    assert model_of(content) == "MoM"
    after = json.loads(write_edit(COMPLETIONS, content, Edit("a")))
    assert same(after, {**before, "model": "a"})


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '"\\ud83d"', '{"\\udc00":[NaN]}'])
def test_a_body_with_nan_or_half_an_emoji_is_write_edit(value: str) -> None:
    content = f'{{"model":"MoM","messages":[{{"role":"user","content":"fever"}}],"x":{value}}}'.encode()
    assert model_of(content) == "MoM"
    after = json.loads(write_edit(CHAT, content, Edit("a", "Be kind.")))
    assert repr(after["x"]) == repr(json.loads(value))
    assert (after["model"], len(after["messages"])) == ("a", 2)


def test_a_text_with_half_a_surrogate_pair_is_read_and_kept() -> None:
    content = b'{"messages":[{"role":"user","content":"my \\ud83d hurts"}]}'
    (query,) = CHAT.read(json_edit.object_members(content))
    assert query.text == "my \ud83d hurts"
    assert json.loads(write_edit(CHAT, content, Edit("a")))["messages"][0]["content"] == "my \ud83d hurts"


CLIENT_TEXT = b'"Client \\ud83d."'


@pytest.mark.parametrize(
    ("protocol", "content", "place"),
    [
        (CHAT, b'{"messages":[{"role":"system","content":' + CLIENT_TEXT + b"}]}", ("messages", 0, "content")),
        (RESPONSES, b'{"input":[{"role":"developer","content":' + CLIENT_TEXT + b"}]}", ("input", 0, "content")),
        (RESPONSES, b'{"instructions":' + CLIENT_TEXT + b"}", ("instructions",)),
        (MESSAGES, b'{"system":' + CLIENT_TEXT + b"}", ("system",)),
        (DECISIONS, b'{"instructions":' + CLIENT_TEXT + b"}", ("instructions",)),
    ],
)
def test_a_prompt_precedes_a_system_text_with_half_a_surrogate_pair(
    protocol: ApiProtocol, content: bytes, place: Any
) -> None:
    after = json.loads(write_edit(protocol, content, Edit("a", "Category prompt.")))
    for key in place:
        after = after[key]
    assert after == "Category prompt.\n\nClient \ud83d."


DEEP = b'{"model":"MoM","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

INVALID_BODIES = [
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


@pytest.mark.parametrize("content", INVALID_BODIES, ids=lambda content: repr(content[:24]))
def test_a_body_that_is_not_a_json_object_raises_not_an_object_error(content: bytes) -> None:
    assert model_of(content) is None
    with pytest.raises(json_edit.NotAnObjectError):
        json_edit.object_members(content)


def test_invalid_utf_8_raises_not_an_object_error() -> None:
    assert model_of(b'{"model":"MoM","x":"\xff"}') is None


@pytest.mark.parametrize(
    "content", [b"{}", b'{"model":null}', b'{"model":5}', b'{"model":["MoM"]}', b'{"Model":"MoM"}']
)
def test_an_object_without_a_model_name_has_no_model(content: bytes) -> None:
    assert model_of(content) is None


def test_the_model_of_a_large_body_is_found_without_a_copy() -> None:
    content = b'{"x":"' + b"a" * 20_000_000 + b'","model":"MoM"}'
    assert model_of(content) == "MoM"
    members = json_edit.object_members(content)
    assert memoryview(members["x"]).nbytes == 20_000_002


def test_large_numbers_are_read_like_in_python() -> None:
    assert json_edit.decode(b"1e400") == math.inf
    assert json_edit.decode(b"12345678901234567890123") == 12345678901234567890123
    assert json_edit.list_items(b'[1e400, "a"]') is not None


@pytest.mark.parametrize("content", [b"{}", b'"[]"', b"null", b"5", b"", b"[", DEEP])
def test_list_items_of_another_value_is_none(content: bytes) -> None:
    assert json_edit.list_items(content) is None


def test_protocols_are_found_by_path_and_by_body() -> None:
    assert (
        ROUTES["/v1/chat/completions"].protocol_for({}) is CHAT
        and ROUTES["/v1/completions"].protocol_for({}) is COMPLETIONS
    )
    assert detect_protocol({"messages": b"[]", "prompt": b'""'}) is CHAT
    assert detect_protocol({"prompt": b'""'}) is COMPLETIONS
    assert detect_protocol({"input": b'""'}) is RESPONSES
    assert detect_protocol({"query": b'""'}) is None
