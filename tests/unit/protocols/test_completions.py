"""Completions: the prompts that are read. Only the model is written."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.completions import COMPLETIONS, SCORING, TOKENS, read_queries
from vllm_lora_router.protocols.protocol import ApiProtocol
from vllm_lora_router.types import AppliedEdit, Edit, Query, Reasoning


def queries(prompt: Any) -> tuple[Query, ...]:
    return read_queries(json_edit.object_members(json.dumps({"prompt": prompt}).encode()))


def test_a_prompt_is_one_query() -> None:
    assert queries("What causes fever?") == (Query("What causes fever?", ("What causes fever?",), api="completions"),)


def test_each_of_several_prompts_is_a_query() -> None:
    assert [query.text for query in queries(["One?", "Größe?", ""])] == ["One?", "Größe?", ""]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], [], ["text", 5], None, 5, {"x": 1}, [None]])
def test_prompts_without_text_are_one_query_without_text(prompt: Any) -> None:
    assert queries(prompt) == (Query("", api="completions"),)


def test_a_missing_prompt_is_one_query_without_text() -> None:
    assert read_queries({}) == (Query("", api="completions"),)


def test_only_the_model_is_written() -> None:
    members = json_edit.object_members(b'{"prompt":"x","model":"MoM"}')
    edit = Edit("medical-lora", "You are a medical expert.", reasoning=Reasoning(True, effort="high"))
    assert COMPLETIONS.write(members, edit) == AppliedEdit(system_prompt=False, reasoning=None)
    assert json_edit.join_members(members) == b'{"prompt":"x","model":"medical-lora"}'


def test_scoring_reads_the_query_and_not_the_items() -> None:
    assert SCORING.read({"query": b'"One?"', "items": b'["Two."]'}) == (Query("One?", ("One?",), api="scoring"),)
    for query in (b"[1,2]", b"null", b"5"):
        assert SCORING.read({"query": query}) == (Query("", api="scoring"),)


def test_token_ids_are_not_decoded() -> None:
    assert TOKENS.read({"token_ids": b"[1]", "prompt": b'"One?"'}) == (Query("", api="tokens"),)


@pytest.mark.parametrize("protocol", [SCORING, TOKENS], ids=lambda protocol: protocol.api)
def test_only_the_model_is_written_into_scoring_and_token_requests(protocol: ApiProtocol) -> None:
    members = json_edit.object_members(b'{"query":"x","token_ids":[1],"model":"MoM"}')
    edit = Edit("medical-lora", "Category prompt.", "replace", Reasoning(True, {"enable_thinking": True}, "high"))
    assert protocol.write(members, edit) == AppliedEdit()
    assert json_edit.join_members(members) == b'{"query":"x","token_ids":[1],"model":"medical-lora"}'
