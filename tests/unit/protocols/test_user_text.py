"""The user text, without the notes of agents."""

import itertools
import json
import time
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.chat import CHAT
from vllm_lora_router.protocols.messages import MESSAGES
from vllm_lora_router.protocols.protocol import ApiProtocol
from vllm_lora_router.protocols.responses import RESPONSES
from vllm_lora_router.protocols.user_text import AGENT_NOTE_TAGS, strip_agent_notes

from ..conftest import claude_code, cline, codex
from .conftest import queries, text_and_turns, user

every_note = pytest.mark.parametrize("name", AGENT_NOTE_TAGS)


def test_the_known_note_tags() -> None:
    assert set(AGENT_NOTE_TAGS) == {
        "system-reminder",
        "environment_context",
        "environment_details",
        "user_instructions",
    }


@every_note
def test_a_note_is_removed_from_the_user_text(name: str) -> None:
    note = f"<{name}>\nA\nnote.\n</{name}>"
    assert strip_agent_notes(f"{note}What is {note}a fever?{note}") == "What is a fever?"


@every_note
def test_an_unclosed_note_is_kept(name: str) -> None:
    for text in (f"What does <{name}> mean?", f"</{name}> first, <{name}> then?", f"What is a <{name}/>?"):
        assert strip_agent_notes(text) == text
    note = f"<{name}>x</{name}>"
    assert strip_agent_notes(f"{note}What does <{name}> mean?") == f"What does <{name}> mean?"


def test_other_tags_are_kept() -> None:
    text = "<task>Fix <b>it</b></task> <system>now</system> <system-reminder2>x</system-reminder2>"
    assert strip_agent_notes(text) == text


def test_notes_of_several_agents_are_removed() -> None:
    text = "".join(f"{number}<{name}>x</{name}>" for number, name in enumerate(AGENT_NOTE_TAGS))
    assert strip_agent_notes(text) == "0123"


@every_note
@pytest.mark.parametrize("as_parts", [False, True])
def test_a_message_with_only_notes_is_not_a_turn(name: str, as_parts: bool) -> None:
    note: Any = f" <{name}>x</{name}>\n"
    content = [{"type": "text", "text": note}, {"type": "text", "text": note * 2}] if as_parts else note
    for protocol, member in ((CHAT, "messages"), (MESSAGES, "messages"), (RESPONSES, "input")):
        assert text_and_turns(protocol, {member: [user(content), user("User text."), user(content)]}) == (
            "User text.",
            ("User text.",),
        )


def test_an_empty_message_is_a_turn_without_text() -> None:
    for content in ("", " \n", [], [{"type": "text", "text": " "}], [""]):
        assert text_and_turns(CHAT, {"messages": [user("User text."), user(content)]})[0].strip() == ""


NOTE = {"type": "text", "text": "<system-reminder>x</system-reminder>"}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "Tool result."}
REFERENCE = {"type": "tool_reference", "tool_name": "f"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize("content", [[RESULT], [RESULT, NOTE], [NOTE, RESULT, REFERENCE], [REFERENCE], [NOTE, NOTE]])
def test_a_message_with_only_tool_results_and_notes_is_not_a_turn(content: Any) -> None:
    assert text_and_turns(MESSAGES, {"messages": [user("User text."), user(content)]}) == (
        "User text.",
        ("User text.",),
    )


@pytest.mark.parametrize("content", [[IMAGE], [IMAGE, NOTE], [RESULT, IMAGE], [NOTE, RESULT, IMAGE]])
def test_a_message_with_an_image_is_a_turn_without_text(content: Any) -> None:
    assert text_and_turns(MESSAGES, {"messages": [user("User text."), user(content)]}) == ("", ("User text.", ""))


def test_text_with_notes_and_tool_results_is_user_text() -> None:
    content = [RESULT, NOTE, {"type": "text", "text": "And now?"}, NOTE]
    assert text_and_turns(MESSAGES, {"messages": [user("User text."), user(content)]}) == (
        "And now?",
        ("User text.", "And now?"),
    )


LENGTH = 500_000
OPEN, CLOSE = "<system-reminder>", "</system-reminder>"


@pytest.mark.parametrize(
    "text",
    [
        OPEN * (LENGTH // len(OPEN)),
        OPEN * (LENGTH // len(OPEN)) + CLOSE,
        CLOSE + OPEN * (LENGTH // len(OPEN)),
        CLOSE * (LENGTH // len(CLOSE)) + OPEN,
        f"{OPEN}{CLOSE}" * (LENGTH // len(OPEN + CLOSE)),
        f"{OPEN}{CLOSE}" * (LENGTH // len(OPEN + CLOSE)) + OPEN,
        "".join(f"<{name}>" for name in AGENT_NOTE_TAGS) * (LENGTH // 80),
        "".join(f"<{name}></{other}>" for name, other in itertools.product(AGENT_NOTE_TAGS, repeat=2))
        * (LENGTH // 700),
        "<" * LENGTH,
        "<system-reminder" * (LENGTH // len(OPEN)),
    ],
    ids=lambda text: text[:40],
)
def test_half_a_million_characters_of_notes_are_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    strip_agent_notes(text)
    text_and_turns(CHAT, {"messages": [user(text), user([{"type": "text", "text": text}])]})
    assert time.process_time() - started < 60  # no bound on speed: quadratic time takes many minutes


def test_a_hundred_thousand_parts_are_read_in_linear_time() -> None:
    content = json.dumps({"messages": [user([NOTE, RESULT] * 50_000)]}).encode()
    started = time.process_time()
    MESSAGES.read(json_edit.object_members(content))
    assert time.process_time() - started < 60  # no bound on speed: quadratic time takes many minutes


USER_TEXT = "My blood\npressure is “high”: why?"


def test_the_user_text_of_claude_codes_requests() -> None:
    text, turns = text_and_turns(MESSAGES, claude_code(USER_TEXT))
    assert text.strip() == USER_TEXT and turns == (text,)


def test_the_user_text_of_codexs_requests() -> None:
    assert text_and_turns(RESPONSES, codex(USER_TEXT)) == (USER_TEXT, (USER_TEXT,))


def test_the_user_text_of_clines_requests() -> None:
    text, turns = text_and_turns(CHAT, cline(USER_TEXT))
    assert text.strip() == USER_TEXT and [turn.strip() for turn in turns] == ["<task>\nHello\n</task>", USER_TEXT]


@pytest.mark.parametrize("protocol", [CHAT, MESSAGES], ids=lambda protocol: protocol.api)
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
def test_invalid_parts_are_skipped(protocol: ApiProtocol, parts: list[Any]) -> None:
    valid = {"type": "text", "text": "User text."}
    (query,) = queries(protocol, {"messages": [5, user([*parts, valid]), None]})
    assert query.text.split() == ["User", "text."]


def test_half_a_surrogate_pair_is_read() -> None:
    for content in ('"my \\ud83d hurts"', '[{"type":"text","text":"my \\ud83d hurts"}]', '["my \\ud83d hurts"]'):
        (query,) = CHAT.read({"messages": f'[{{"role":"user","content":{content}}}]'.encode()})
        assert query.text == "my \ud83d hurts"
