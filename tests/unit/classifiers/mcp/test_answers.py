"""Validation of the answers of a tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.classifiers.mcp.answers import (
    MAX_ANSWER_BYTES,
    MAX_MODELS,
    InvalidAnswerError,
    KnownNames,
    read_answer,
    read_categories,
)
from vllm_lora_router.config import load

from .conftest import CONFIG

LISTED = ("medical", "legal", "tool_category")


@pytest.fixture
def known(tmp_path: Path) -> KnownNames:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(CONFIG))
    return KnownNames.from_config(load(file).config, "acme/base")


def validation_error(content: object, known: KnownNames) -> str:
    """Return the message of the error for an invalid answer."""
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(InvalidAnswerError) as error:
        read_answer(text, known, LISTED)
    return str(error.value)


def answer(**fields: Any) -> dict[str, Any]:
    return {"class": 0, "confidence": 0.9, **fields}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is not JSON"),
        ("<html><body>502 Bad Gateway</body></html>", "it is not JSON"),
        ('{"class": 0, "confidence": NaN}', "it is not JSON"),
        ('{"class": 0, "confidence": 1e999}', "out of range"),
        ("[]", "it is not a JSON object"),
        ("null", "it is not a JSON object"),
        ({"error": "No text provided"}, "the tool reports an error: 'No text provided'"),
        ({}, "class field required"),
        ({"class": 0}, "confidence field required"),
        (answer(confidence=1.01), "confidence input should be less than or equal to 1"),
        (answer(confidence=-0.1), "confidence input should be greater than or equal to 0"),
        (answer(confidence="0.9"), "confidence input should be a valid number"),
        ({"class": 3, "confidence": 1}, "class is 3, but the tool lists 3 categories"),
        ({"class": -1, "confidence": 1}, "class"),
        ({"class": True, "confidence": 1}, "class"),
        ({"class": 0.0, "confidence": 1}, "class"),
        ({"class": "unknown", "confidence": 1}, "class is not a category of the configuration or of the tool's list"),
        ({"class": "a\r\nb", "confidence": 1}, "contains a line break or a control character"),
        (answer(probabilities=[0.5, 0.5]), "probabilities has 2 entries, but the tool lists 3 categories"),
        (answer(probabilities=[0.5, 0.5, 2]), "less than or equal to 1"),
        (answer(model="../../etc"), "'../../etc' is a path"),
        (answer(model="/etc/passwd"), "'/etc/passwd' is a path"),
        (answer(model="..\\etc"), "is a path"),
        (answer(model=".."), "'..' is a path"),
        (answer(model=".hidden"), "is a path"),
        (answer(model="a\r\nb"), "contains a line break or a control character"),
        (answer(model="a\0b"), "contains a line break or a control character"),
        (answer(model=""), "model string should have at least 1 character"),
        (answer(model="x" * 257), "model string should have at most 256 characters"),
        (answer(model=" padded"), "begins or ends with white space"),
        (answer(model="MoM"), "is an auto name"),
        (answer(model="auto"), "is an auto name"),
        (answer(model="image"), "vLLM applies an adapter of this name to all chat requests"),
        (answer(model=7), "model input should be a valid string"),
        (answer(models=[{"model": "../x", "score": 1}]), "is a path"),
        (answer(models=[{"model": "x", "score": -1}]), "models.0.score"),
        (answer(models=[{"model": "x"}]), "models.0.score field required"),
        (answer(models=[{"model": "x", "score": 1}] * 2), "models names a model twice"),
        (answer(models=[{"model": f"x{n}", "score": 1} for n in range(MAX_MODELS + 1)]), "models list should have"),
        (answer(use_reasoning="yes"), "use_reasoning input should be a valid boolean"),
        (answer(reasoning_effort="enormous"), "reasoning_effort input should be 'none', 'minimal'"),
        (answer(system_prompt="\x1b[2J"), "system_prompt value error, contains a control character"),
        (answer(system_prompt="x" * 32_769), "system_prompt string should have at most 32768 characters"),
        (answer(system_prompt="x" * MAX_ANSWER_BYTES), "bytes, but at most 65,536 are allowed"),
        (answer(keep={"by": "anyone", "seconds": 1}), "keep.by input should be 'tenant', 'text' or 'nothing'"),
        (answer(keep={"by": "text", "seconds": -1}), "keep.seconds"),
        (answer(keep={"by": "text", "seconds": 1e9}), "keep.seconds"),
        (answer(keep=True), "keep"),
    ],
)
def test_an_invalid_answer_is_refused_with_the_reason(known: KnownNames, content: object, message: str) -> None:
    assert message in validation_error(content, known)


def test_errors_quote_the_tool_only_after_the_first_colon(known: KnownNames) -> None:
    for content in ({"class": "secret text", "confidence": 1}, {"error": "secret text"}, answer(model="secret/text")):
        assert "secret" not in validation_error(content, known).partition(":")[0]


def test_a_name_with_a_slash_is_valid_if_the_configuration_declares_it(known: KnownNames) -> None:
    for name in ("acme/base", "acme/shared", "base"):
        assert read_answer(json.dumps(answer(model=name)), known, LISTED)[0].model == name


def test_a_system_prompt_can_have_several_lines(known: KnownNames) -> None:
    prompt = "One.\n\tTwo.\r\n\u2028Three. \U0001f600"
    assert read_answer(json.dumps(answer(system_prompt=prompt)), known, LISTED)[0].system_prompt == prompt


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"categories": []}, "categories list should have at least 1 item"),
        ({"categories": ["a", "a"]}, "categories names a category twice"),
        ({"categories": ["a", "b\n"]}, "contains a line break"),
        ({"categories": [1]}, "categories.0"),
        ({"categories": "medical"}, "categories"),
        ({"categories": ["a"], "category_system_prompts": {"a": 1}}, "category_system_prompts.a"),
        ({}, "categories field required"),
    ],
)
def test_an_invalid_list_of_categories_is_refused_with_the_reason(content: object, message: str) -> None:
    with pytest.raises(InvalidAnswerError) as error:
        read_categories(json.dumps(content))
    assert message in str(error.value)


def test_category_descriptions_are_read_and_validated() -> None:
    content = {"categories": ["a"], "category_descriptions": {"a": "First."}}
    assert read_categories(json.dumps(content)).category_descriptions == {"a": "First."}
    with pytest.raises(InvalidAnswerError, match=r"category_descriptions\.a"):
        read_categories(json.dumps({"categories": ["a"], "category_descriptions": {"a": "\x1b[2J"}}))
