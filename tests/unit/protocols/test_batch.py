"""Several conversations in one request: a query each, and one edit for all or none."""

from typing import Any

import pytest

from vllm_lora_router.protocols.batch import BATCH
from vllm_lora_router.types import Edit, Mode, Query

from .conftest import EFFORT, OURS, THINK, edited, prompted, queries, reasoned, user


def test_every_conversation_is_a_query() -> None:
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
def test_no_conversation_at_all_is_one_query_without_words(messages: Any) -> None:
    assert queries(BATCH, {"messages": messages}) == (Query("", (), api="batch"),)
    assert BATCH.read({}) == (Query("", (), api="batch"),)


@pytest.mark.parametrize("wrong", [None, {}, "x", 5])
def test_what_is_no_conversation_is_a_query_without_words(wrong: Any) -> None:
    assert [query.text for query in queries(BATCH, {"messages": [wrong, [user("x")]]})] == ["", "x"]


SYSTEM = {"role": "system", "content": OURS}


def test_a_prompt_is_inserted_into_every_conversation() -> None:
    own = {"role": "developer", "content": "Own."}
    request = {"messages": [[user("x")], [own, user("y")], []]}
    assert prompted(BATCH, request) == {
        "messages": [[SYSTEM, user("x")], [{**own, "content": f"{OURS}\n\nOwn."}, user("y")], [SYSTEM]]
    }


def test_a_prompt_replaces_those_of_every_conversation() -> None:
    own = {"role": "system", "content": "Own."}
    request = {"messages": [[user("x")], [own, user("y"), own]]}
    assert prompted(BATCH, request, "replace") == {"messages": [[SYSTEM, user("x")], [SYSTEM, user("y")]]}


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("messages", [None, [], {}, "x", [[user("x")], None], [{}, [user("x")]], [[user("x")], "y"]])
def test_a_prompt_goes_into_none_where_it_cannot_go_into_all(messages: Any, mode: Mode) -> None:
    after, written = edited(BATCH, {"messages": messages}, Edit("m", OURS, mode))
    assert after == {"messages": messages, "model": "m"}
    assert not written.system_prompt


def test_reasoning_is_one_for_all_conversations() -> None:
    request = {"messages": [[user("x")], [user("y")]]}
    assert reasoned(BATCH, request, EFFORT) == {**request, "reasoning_effort": "high"}
    assert reasoned(BATCH, request, THINK) == {**request, "chat_template_kwargs": {"enable_thinking": True}}
