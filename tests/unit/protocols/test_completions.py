"""Completions: what the prompt says, and the one thing that is written."""

import json
from typing import Any

import pytest

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.completions import COMPLETIONS, SCORING, TOKENS, read
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.types import AppliedEdit, Edit, Query, Reasoning


def queries(prompt: Any) -> tuple[Query, ...]:
    return read(json_edit.fields(json.dumps({"prompt": prompt}).encode()))


def test_a_prompt_is_one_query() -> None:
    assert queries("What causes fever?") == (Query("What causes fever?", ("What causes fever?",), api="completions"),)


def test_several_prompts_are_a_query_each() -> None:
    assert [query.text for query in queries(["One?", "Größe?", ""])] == ["One?", "Größe?", ""]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], [], ["text", 5], None, 5, {"x": 1}, [None]])
def test_what_is_no_text_is_one_query_without_words(prompt: Any) -> None:
    assert queries(prompt) == (Query("", api="completions"),)


def test_no_prompt_at_all_is_one_query_without_words() -> None:
    assert read({}) == (Query("", api="completions"),)


def test_the_model_alone_is_written() -> None:
    members = json_edit.fields(b'{"prompt":"x","model":"MoM"}')
    edit = Edit("medical-lora", "You are a medical expert.", reasoning=Reasoning(True, effort="high"))
    assert COMPLETIONS.write(members, edit) == AppliedEdit(system_prompt=False, reasoning=None)
    assert json_edit.join(members) == b'{"prompt":"x","model":"medical-lora"}'


def test_of_scoring_the_query_is_read_and_not_what_is_scored() -> None:
    assert SCORING.read({"query": b'"One?"', "items": b'["Two."]'}) == (Query("One?", ("One?",), api="scoring"),)
    for query in (b"[1,2]", b"null", b"5"):
        assert SCORING.read({"query": query}) == (Query("", api="scoring"),)


def test_tokens_are_not_read() -> None:
    assert TOKENS.read({"token_ids": b"[1]", "prompt": b'"One?"'}) == (Query("", api="tokens"),)


@pytest.mark.parametrize("shape", [SCORING, TOKENS], ids=lambda shape: shape.api)
def test_to_scoring_and_tokens_the_model_alone_is_written(shape: Shape) -> None:
    members = json_edit.fields(b'{"query":"x","token_ids":[1],"model":"MoM"}')
    edit = Edit("medical-lora", "Ours.", "replace", Reasoning(True, {"enable_thinking": True}, "high"))
    assert shape.write(members, edit) == AppliedEdit()
    assert json_edit.join(members) == b'{"query":"x","token_ids":[1],"model":"medical-lora"}'
