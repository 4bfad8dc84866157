"""Invalid files, and the features of YAML that users rely on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config import ConfigError, load

if TYPE_CHECKING:
    from .conftest import Configs


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "nowhere.yaml")
    assert str(error.value) == f"{tmp_path}/nowhere.yaml:1:1: no such file"


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path)
    assert str(error.value) == f"{tmp_path}:1:1: cannot be read: Is a directory"


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "\ufeff"])
def test_an_empty_file_is_an_error(configs: Configs, text: str) -> None:
    assert configs.problems(text) == ["1:1: is empty"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "---\n", "5\n"])
def test_a_file_without_a_mapping_is_an_error(configs: Configs, text: str) -> None:
    (problem,) = configs.problems(text)
    assert problem.endswith(": must be a mapping of keys such as categories and model_config")


def test_invalid_utf_8_is_reported_with_its_line(configs: Configs) -> None:
    assert configs.problems(b"default_model: base\ncategories:\n  - name: Gr\xf6\xdfe\n") == [
        "3:1: is not UTF-8 text (byte 44)"
    ]


def test_a_utf_16_file_is_an_error_and_a_utf_8_byte_order_mark_is_accepted(configs: Configs) -> None:
    assert configs.problems(configs.good.encode("utf-16"))[0].startswith("1:1: is not UTF-8 text")
    assert configs.load(configs.good.encode("utf-8-sig")).config.default_model == "base"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("categories:\n  - name: 'open\n", "3:1: "),
        ("a: b: c\n", "1:5: "),
        ("a: [1, 2\nb: 3\n", "2:2: "),
        ("a: 1\n\tb: 2\n", "2:1: "),
        ("a: *nowhere\n", "1:4: "),
        ("a: 1\n--- \nb: 2\n", "2:1: "),
        ("a: 1\nb: x\x00\n", "2:5: "),
    ],
)
def test_invalid_yaml_is_reported_with_its_place(configs: Configs, text: str, place: str) -> None:
    (problem,) = configs.problems(text)
    assert problem.startswith(f"{place}is not YAML: ")


def test_a_duplicate_key_is_reported_with_the_line_of_the_first_one(configs: Configs) -> None:
    assert configs.problems(configs.good + "default_model: other\n") == [
        "21:1: default_model: duplicate key; the first one is in line 6"
    ]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("no", "a key must be text, not False; put it in quotes"),
        ("1", "a key must be text, not 1; put it in quotes"),
        ("~", "a key must be text, not None; put it in quotes"),
        ("? [a, b]\n", "a key must be text, not None; put it in quotes"),
    ],
)
def test_a_key_that_is_not_text_is_an_error(configs: Configs, key: str, message: str) -> None:
    (problem,) = configs.problems(f"{configs.good}{key}: {{}}\n")
    assert problem.partition(": ")[2] == message


def test_anchors_and_aliases_work(configs: Configs) -> None:
    text = configs.changed(
        ("    model_scores:\n      - model: base\n", "    model_scores: &scores\n      - model: base\n"),
        ("    model_scores:\n      - model: base\n        lora_name: medical-lora\n", "    model_scores: *scores\n"),
    )
    categories = configs.load(text).config.categories
    assert [category.model_scores[0].lora_name for category in categories] == ["technical-lora", "technical-lora"]


MERGED = """
  - &third
    <<: {description: merged, system_prompt: merged}
    name: third
    description: explicit
    model_scores: [{model: base}]
  - {<<: *third, name: fourth}
  - {<<: [{name: fifth, description: first}, *third]}
"""


def test_merge_keys_work_and_explicit_keys_take_precedence(configs: Configs) -> None:
    text = configs.changed(("keyword_rules:", f"{MERGED.strip(chr(10))}\nkeyword_rules:"))
    third, fourth, fifth = configs.load(text).config.categories[2:]
    assert (third.name, third.description, third.system_prompt) == ("third", "explicit", "merged")
    assert (fourth.name, fourth.description, fourth.system_prompt) == ("fourth", "explicit", "merged")
    assert (fifth.name, fifth.description, fifth.system_prompt) == ("fifth", "first", "merged")


def test_a_mapping_with_a_merge_key_may_have_an_alias(configs: Configs) -> None:
    text = configs.changed(
        ("      - model: base\n        lora_name: technical-lora\n",
         "      - &entry\n        <<: {model: other, score: 0.5}\n        model: base\n"),
        ("      - model: base\n        lora_name: medical-lora\n", "      - *entry\n"),
    )  # fmt: skip
    entries = [category.model_scores[0] for category in configs.load(text).config.categories]
    assert [(entry.model, entry.score) for entry in entries] == [("base", 0.5), ("base", 0.5)]


def test_a_problem_of_an_explicit_key_is_reported_at_its_own_place(configs: Configs) -> None:
    text = configs.good + "router:\n  <<: {text: {windows: 2}}\n  text:\n    windows: 0\n"
    assert configs.problems(text) == ["24:14: router.text.windows: input should be greater than or equal to 1 (got 0)"]


def test_a_merge_key_without_a_mapping_is_reported_with_its_place(configs: Configs) -> None:
    (problem,) = configs.problems(configs.good + "router:\n  <<: 5\n")
    assert problem.startswith("22:7: router: cannot be merged: expected a mapping")


def test_an_alias_that_contains_itself_is_an_error(configs: Configs) -> None:
    assert configs.problems(configs.good + "router: &all\n  text: *all\n") == [
        "21:9: router.text: an alias that contains itself"
    ]


def test_a_deeply_nested_file_is_an_error(configs: Configs) -> None:
    assert configs.problems("a: " + "[" * 700) == ["1:1: is nested too deeply"]


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp soon", "!!int many", "!python/object x", "2024-13-45"])
def test_a_value_that_its_tag_does_not_allow_is_an_error(configs: Configs, value: str) -> None:
    (problem,) = configs.problems(f"{configs.good}auto_model_name: {value}\n")
    assert problem.startswith("21:18: auto_model_name: cannot be read: ")
