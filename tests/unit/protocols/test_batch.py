"""Batches of conversations: one query each, and one edit for all of them or none."""

from typing import Any

import pytest

from vllm_lora_router.protocols.batch import BATCH
from vllm_lora_router.types import Edit, Mode, Query

from .conftest import EFFORT, PROMPT, THINKING, apply_edit, queries, user, with_prompt, with_reasoning


def test_each_conversation_is_a_query() -> None:
    answer = {"role": "assistant", "content": "Yes."}
    request = {
        "messages": [[user("One?"), answer, user("Two?")], [{"role": "system", "content": "A"}], [user("Three?")]]
    }
    assert queries(BATCH, request) == (
        Query("Two?", ("One?", "Two?"), api="batch"),
        Query("", (), api="batch"),
        Query("Three?", ("Three?",), api="batch"),
    )


@pytest.mark.parametrize("messages", [None, [], {}, "x", 5])
def test_a_request_without_conversations_is_one_query_without_text(messages: Any) -> None:
    assert queries(BATCH, {"messages": messages}) == (Query("", (), api="batch"),)
    assert BATCH.read({}) == (Query("", (), api="batch"),)


@pytest.mark.parametrize("wrong", [None, {}, "x", 5])
def test_an_invalid_conversation_is_a_query_without_text(wrong: Any) -> None:
    assert [query.text for query in queries(BATCH, {"messages": [wrong, [user("x")]]})] == ["", "x"]


SYSTEM = {"role": "system", "content": PROMPT}


def test_a_prompt_is_inserted_into_every_conversation() -> None:
    client = {"role": "developer", "content": "Client."}
    request = {"messages": [[user("x")], [client, user("y")], []]}
    assert with_prompt(BATCH, request) == {
        "messages": [[SYSTEM, user("x")], [{**client, "content": f"{PROMPT}\n\nClient."}, user("y")], [SYSTEM]]
    }


def test_a_prompt_replaces_the_system_messages_of_every_conversation() -> None:
    client = {"role": "system", "content": "Client."}
    request = {"messages": [[user("x")], [client, user("y"), client]]}
    assert with_prompt(BATCH, request, "replace") == {"messages": [[SYSTEM, user("x")], [SYSTEM, user("y")]]}


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("messages", [None, [], {}, "x", [[user("x")], None], [{}, [user("x")]], [[user("x")], "y"]])
def test_no_prompt_is_written_if_a_conversation_is_invalid(messages: Any, mode: Mode) -> None:
    after, applied = apply_edit(BATCH, {"messages": messages}, Edit("m", PROMPT, mode))
    assert after == {"messages": messages, "model": "m"}
    assert not applied.system_prompt


def test_reasoning_is_written_once_for_all_conversations() -> None:
    request = {"messages": [[user("x")], [user("y")]]}
    assert with_reasoning(BATCH, request, EFFORT) == {**request, "reasoning_effort": "high"}
    assert with_reasoning(BATCH, request, THINKING) == {**request, "chat_template_kwargs": {"enable_thinking": True}}
