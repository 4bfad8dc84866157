"""What a tool must not say, and what it must not be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.classifiers.mcp.answers import (
    MOST_BYTES,
    MOST_MODELS,
    BadAnswer,
    Known,
    read_answer,
    read_categories,
)
from vllm_lora_router.config import load

from .conftest import CONFIG

LISTED = ("medical", "legal", "theirs")


@pytest.fixture
def known(tmp_path: Path) -> Known:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(CONFIG))
    return Known.of(load(file).config, "acme/base")


def refused(said: object, known: Known) -> str:
    content = said if isinstance(said, str) else json.dumps(said)
    with pytest.raises(BadAnswer) as bad:
        read_answer(content, known, LISTED)
    return str(bad.value)


def answer(**more: Any) -> dict[str, Any]:
    return {"class": 0, "confidence": 0.9, **more}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "it is not JSON"),
        ("<html><body>502 Bad Gateway</body></html>", "it is not JSON"),
        ('{"class": 0, "confidence": NaN}', "it is not JSON"),
        ('{"class": 0, "confidence": 1e999}', "out of range"),
        ("[]", "it is no JSON object"),
        ("null", "it is no JSON object"),
        ({"error": "No text provided"}, "the tool reports an error: 'No text provided'"),
        ({}, "class field required"),
        ({"class": 0}, "confidence field required"),
        (answer(confidence=1.01), "confidence input should be less than or equal to 1"),
        (answer(confidence=-0.1), "confidence input should be greater than or equal to 0"),
        (answer(confidence="0.9"), "confidence input should be a valid number"),
        ({"class": 3, "confidence": 1}, "class is 3, and the tool lists 3 categories"),
        ({"class": -1, "confidence": 1}, "class"),
        ({"class": True, "confidence": 1}, "class"),
        ({"class": 0.0, "confidence": 1}, "class"),
        ({"class": "nobody's", "confidence": 1}, "class is no category of the configuration or of the tool's list"),
        ({"class": "a\r\nb", "confidence": 1}, "contains a line break or a control character"),
        (answer(probabilities=[0.5, 0.5]), "2 probabilities are given, and the tool lists 3 categories"),
        (answer(probabilities=[0.5, 0.5, 2]), "less than or equal to 1"),
        (answer(model="../../etc"), "'../../etc' is a path, and an adapter is asked for by its name"),
        (answer(model="/etc/passwd"), "'/etc/passwd' is a path"),
        (answer(model="..\\etc"), "is a path"),
        (answer(model=".."), "'..' is a path"),
        (answer(model=".hidden"), "is a path"),
        (answer(model="a\r\nb"), "contains a line break or a control character"),
        (answer(model="a\0b"), "contains a line break or a control character"),
        (answer(model=""), "model string should have at least 1 character"),
        (answer(model="x" * 257), "model string should have at most 256 characters"),
        (answer(model=" padded"), "begins or ends with white space"),
        (answer(model="MoM"), "asks the router to choose"),
        (answer(model="auto"), "asks the router to choose"),
        (answer(model="image"), "vLLM applies an adapter of this name by itself"),
        (answer(model=7), "model input should be a valid string"),
        (answer(models=[{"model": "../x", "score": 1}]), "is a path"),
        (answer(models=[{"model": "x", "score": -1}]), "models.0.score"),
        (answer(models=[{"model": "x"}]), "models.0.score field required"),
        (answer(models=[{"model": "x", "score": 1}] * 2), "models names one twice"),
        (answer(models=[{"model": f"x{n}", "score": 1} for n in range(MOST_MODELS + 1)]), "models list should have"),
        (answer(use_reasoning="yes"), "use_reasoning input should be a valid boolean"),
        (answer(reasoning_effort="enormous"), "reasoning_effort input should be 'none', 'minimal'"),
        (answer(system_prompt="\x1b[2J"), "system_prompt value error, contains a control character"),
        (answer(system_prompt="x" * 32_769), "system_prompt string should have at most 32768 characters"),
        (answer(system_prompt="x" * MOST_BYTES), "bytes long, and at most 65,536 are read"),
        (answer(keep={"by": "everybody", "seconds": 1}), "keep.by input should be 'tenant', 'text' or 'nothing'"),
        (answer(keep={"by": "text", "seconds": -1}), "keep.seconds"),
        (answer(keep={"by": "text", "seconds": 1e9}), "keep.seconds"),
        (answer(keep=True), "keep"),
    ],
)
def test_what_a_tool_must_not_say_is_refused_with_the_reason(known: Known, said: object, why: str) -> None:
    assert why in refused(said, known)


def test_what_was_wrong_stands_before_the_first_colon_and_the_tools_words_behind_it(known: Known) -> None:
    for said in ({"class": "secret words", "confidence": 1}, {"error": "secret words"}, answer(model="secret/words")):
        assert "secret" not in refused(said, known).partition(":")[0]


def test_a_name_with_a_slash_is_right_where_the_configuration_has_it(known: Known) -> None:
    for name in ("acme/base", "acme/shared", "base"):
        assert read_answer(json.dumps(answer(model=name)), known, LISTED)[0].model == name


def test_a_system_prompt_may_have_lines(known: Known) -> None:
    said = "One.\n\tTwo.\r\n\u2028Three. \U0001f600"
    assert read_answer(json.dumps(answer(system_prompt=said)), known, LISTED)[0].system_prompt == said


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"categories": []}, "categories list should have at least 1 item"),
        ({"categories": ["a", "a"]}, "categories names one twice"),
        ({"categories": ["a", "b\n"]}, "contains a line break"),
        ({"categories": [1]}, "categories.0"),
        ({"categories": "medical"}, "categories"),
        ({"categories": ["a"], "category_system_prompts": {"a": 1}}, "category_system_prompts.a"),
        ({}, "categories field required"),
    ],
)
def test_a_list_of_categories_is_checked_as_well(said: object, why: str) -> None:
    with pytest.raises(BadAnswer) as bad:
        read_categories(json.dumps(said))
    assert why in str(bad.value)
