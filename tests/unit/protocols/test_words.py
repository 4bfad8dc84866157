"""The user's own words, without what agents put between them."""

import itertools
import json
import time
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.chat import CHAT
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.protocols.user_text import NOTES, own_words

from ..conftest import claude_code, cline, codex
from .conftest import queries, said, user

every_note = pytest.mark.parametrize("name", NOTES)


def test_the_notes_of_the_agents_that_are_known() -> None:
    assert set(NOTES) == {"system-reminder", "environment_context", "environment_details", "user_instructions"}


@every_note
def test_a_note_is_taken_out_of_the_users_text(name: str) -> None:
    note = f"<{name}>\nNot\nmine.\n</{name}>"
    assert own_words(f"{note}What is {note}a fever?{note}") == "What is a fever?"


@every_note
def test_a_note_that_is_not_closed_stays(name: str) -> None:
    for text in (f"What does <{name}> mean?", f"</{name}> first, <{name}> then?", f"What is a <{name}/>?"):
        assert own_words(text) == text
    note = f"<{name}>x</{name}>"
    assert own_words(f"{note}What does <{name}> mean?") == f"What does <{name}> mean?"


def test_a_tag_that_is_no_agents_note_stays() -> None:
    text = "<task>Fix <b>it</b></task> <system>now</system> <system-reminder2>x</system-reminder2>"
    assert own_words(text) == text


def test_notes_of_several_agents_are_taken_out_together() -> None:
    text = "".join(f"{number}<{name}>x</{name}>" for number, name in enumerate(NOTES))
    assert own_words(text) == "0123"


@every_note
@pytest.mark.parametrize("as_parts", [False, True])
def test_a_message_of_notes_alone_is_no_turn(name: str, as_parts: bool) -> None:
    note: Any = f" <{name}>x</{name}>\n"
    content = [{"type": "text", "text": note}, {"type": "text", "text": note * 2}] if as_parts else note
    for shape, member in ((CHAT, "messages"), (MESSAGES, "messages"), (RESPONSES, "input")):
        assert said(shape, {member: [user(content), user("Mine."), user(content)]}) == ("Mine.", ("Mine.",))


def test_a_message_without_notes_and_without_words_is_a_turn_without_words() -> None:
    for content in ("", " \n", [], [{"type": "text", "text": " "}], [""]):
        assert said(CHAT, {"messages": [user("Mine."), user(content)]})[0].strip() == ""


NOTE = {"type": "text", "text": "<system-reminder>x</system-reminder>"}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "Theirs."}
REFERENCE = {"type": "tool_reference", "tool_name": "f"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize("content", [[RESULT], [RESULT, NOTE], [NOTE, RESULT, REFERENCE], [REFERENCE], [NOTE, NOTE]])
def test_a_message_of_tool_results_and_notes_is_no_turn(content: Any) -> None:
    assert said(MESSAGES, {"messages": [user("Mine."), user(content)]}) == ("Mine.", ("Mine.",))


@pytest.mark.parametrize("content", [[IMAGE], [IMAGE, NOTE], [RESULT, IMAGE], [NOTE, RESULT, IMAGE]])
def test_one_with_an_image_is_a_turn_without_words(content: Any) -> None:
    assert said(MESSAGES, {"messages": [user("Mine."), user(content)]}) == ("", ("Mine.", ""))


def test_words_beside_notes_and_tool_results_are_the_users() -> None:
    content = [RESULT, NOTE, {"type": "text", "text": "And now?"}, NOTE]
    assert said(MESSAGES, {"messages": [user("Mine."), user(content)]}) == ("And now?", ("Mine.", "And now?"))


MUCH = 500_000
OPEN, CLOSE = "<system-reminder>", "</system-reminder>"


@pytest.mark.parametrize(
    "text",
    [
        OPEN * (MUCH // len(OPEN)),
        OPEN * (MUCH // len(OPEN)) + CLOSE,
        CLOSE + OPEN * (MUCH // len(OPEN)),
        CLOSE * (MUCH // len(CLOSE)) + OPEN,
        f"{OPEN}{CLOSE}" * (MUCH // len(OPEN + CLOSE)),
        f"{OPEN}{CLOSE}" * (MUCH // len(OPEN + CLOSE)) + OPEN,
        "".join(f"<{name}>" for name in NOTES) * (MUCH // 80),
        "".join(f"<{name}></{other}>" for name, other in itertools.product(NOTES, NOTES)) * (MUCH // 700),
        "<" * MUCH,
        "<system-reminder" * (MUCH // len(OPEN)),
    ],
    ids=lambda text: text[:40],
)
def test_half_a_million_characters_of_notes_take_no_time(text: str) -> None:
    began = time.process_time()
    own_words(text)
    said(CHAT, {"messages": [user(text), user([{"type": "text", "text": text}])]})
    assert time.process_time() - began < 0.5


def test_a_hundred_thousand_parts_take_no_time() -> None:
    content = json.dumps({"messages": [user([NOTE, RESULT] * 50_000)]}).encode()
    began = time.process_time()
    MESSAGES.read(json_edit.fields(content))
    assert time.process_time() - began < 0.5


WORDS = "My blood\npressure is “high”: why?"


def test_claude_codes_work_is_classified_by_what_the_user_asked() -> None:
    text, turns = said(MESSAGES, claude_code(WORDS))
    assert text.strip() == WORDS and turns == (text,)


def test_codexs_work_is_classified_by_what_the_user_asked() -> None:
    assert said(RESPONSES, codex(WORDS)) == (WORDS, (WORDS,))


def test_clines_work_is_classified_by_what_the_user_asked() -> None:
    text, turns = said(CHAT, cline(WORDS))
    assert text.strip() == WORDS and [turn.strip() for turn in turns] == ["<task>\nHello\n</task>", WORDS]


@pytest.mark.parametrize("shape", [CHAT, MESSAGES], ids=lambda shape: shape.api)
@pytest.mark.parametrize(
    "parts",
    [
        [None, 5, True, [], ["x"], {}],
        [{"type": None, "text": "x"}],
        [{"type": ["text"], "text": "x"}],
        [{"type": "text"}, {"type": "text", "text": None}],
        [{"type": "text", "text": 5}, {"type": "text", "text": ["x"]}],
        [{"type": "tool_result", "content": 5}],
    ],
    ids=json.dumps,
)
def test_parts_of_wrong_forms_hide_nothing_of_what_is_right(shape: Shape, parts: list[Any]) -> None:
    right = {"type": "text", "text": "Mine."}
    (query,) = queries(shape, {"messages": [5, user([*parts, right]), None]})
    assert query.text.split() == ["Mine."]


def test_half_an_emoji_is_read() -> None:
    for content in ('"my \\ud83d hurts"', '[{"type":"text","text":"my \\ud83d hurts"}]', '["my \\ud83d hurts"]'):
        (query,) = CHAT.read({"messages": f'[{{"role":"user","content":{content}}}]'.encode()})
        assert query.text == "my \ud83d hurts"
