"""Invalid files, and the features of YAML that users rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from vllm_lora_router.config import ConfigError, load, yaml_document
from vllm_lora_router.config.yaml_document import read_yaml

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
        ("no", "a key must be text, but `no` is a truth value in YAML; put it in quotes"),
        ("42", "a key must be text, but `42` is a number in YAML; put it in quotes"),
        ("2024-01-31", "a key must be text, but `2024-01-31` is a date in YAML; put it in quotes"),
        ("~", "a key must be text, but `~` is null in YAML; put it in quotes"),
        ("? [a, b]\n", "a key must be text, not a list or a mapping"),
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
        "22:9: the alias *all is inside the value that it stands for"
    ]


def test_a_deeply_nested_file_is_an_error(configs: Configs) -> None:
    assert configs.problems("a: " + "[" * 64) == ["1:67: is nested too deeply: more than 64 levels"]
    assert configs.problems("- " * 100_000) == ["1:129: is nested too deeply: more than 64 levels"]
    (problem,) = configs.problems("[" * 100_000)
    assert "maximum nesting depth" in problem


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp soon", "!!int many", "2024-13-45"])
def test_a_value_that_its_tag_does_not_allow_is_an_error(configs: Configs, value: str) -> None:
    (problem,) = configs.problems(f"{configs.good}auto_model_name: {value}\n")
    assert problem.startswith("21:18: auto_model_name: cannot be read: ")


def test_a_surrogate_pair_of_json_is_one_character(configs: Configs) -> None:
    text = json.dumps({**yaml.safe_load(configs.good), "auto_model_name": "a 😀 b", "x-note": "\\ud83d\\ude00"})
    assert r"\ud83d\ude00" in text
    loaded = configs.load(text)
    assert loaded.config.auto_model_name == "a 😀 b"


def test_an_escaped_backslash_before_a_surrogate_is_kept(configs: Configs) -> None:
    (configs.file).write_text(r'{"a": "\ud83d\ude00", "b": "\\ud83d\\ude00", "c": "\\\ud83d\ude00"}')
    assert read_yaml(configs.file).data == {"a": "😀", "b": r"\ud83d\ude00", "c": "\\😀"}


def test_columns_after_a_surrogate_pair_are_those_of_the_file(configs: Configs) -> None:
    text = r'{"a": "\ud83d\ude00", "b": "\ud83d\ude00 \ud83d\ude00", "b": 1}'
    (problem,) = configs.problems(text)
    assert problem.startswith(f"1:{text.rindex(chr(34) + 'b') + 1}: b: duplicate key")


def test_half_a_surrogate_pair_is_an_error(configs: Configs) -> None:
    (problem,) = configs.problems(r'{"a": "\ud83d"}')
    assert problem.startswith("1:10: is not YAML: ") and "one alone for none" in problem


def test_an_alias_bomb_is_refused_before_it_is_expanded(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    built = 0
    build = yaml_document._Reader.value

    def count(self: Any, *args: Any) -> Any:
        nonlocal built
        built += 1
        return build(self, *args)

    monkeypatch.setattr(yaml_document._Reader, "value", count)
    levels = [f"x-{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]" for level in range(1, 8)]
    (problem,) = configs.problems("\n".join(["x-0: &x0 [lol]", *levels]))
    assert "has more than 500,000 values and keys, the content of aliases included" in problem
    assert built == 0


@pytest.mark.parametrize("item", ["[*x{}]", "{{<<: *x{}}}"])
def test_a_long_chain_of_aliases_is_nested_too_deeply(configs: Configs, item: str) -> None:
    levels = [f"x-{level}: &x{level} {item.format(level - 1)}" for level in range(1, 2000)]
    (problem,) = configs.problems("\n".join(["x-0: &x0 {a: 1}", *levels]))
    assert problem.endswith("is nested too deeply: more than 64 levels")


@pytest.mark.parametrize(
    "value",
    ["!python/object x", "!!python/object/apply:os.system [ls]", "!!set {a}", "!!binary aGk=", "!!map []", "!!seq {}"],
)
def test_a_tag_that_is_not_supported_is_an_error(configs: Configs, value: str) -> None:
    (problem,) = configs.problems(f"{configs.good}x-a: {value}\n")
    assert problem.startswith("21:6: ") and f"the tag {value.split()[0]} is not supported" in problem


@pytest.mark.parametrize(
    ("value", "kind"),
    [("12:30:00", "number"), ("0123", "number"), ("0x1F", "number"), (".inf", "number"), (".NaN", "number"),
     ("1e3", None), ("1_000", "number"), ("2024-01-31", "date"), ("2024-01-31 12:30:00", "date"), ("On", "truth value"),
     ("y", None), ("=", None), ("<<", None)],
)  # fmt: skip
def test_a_value_is_quoted_in_the_error_as_the_file_writes_it(configs: Configs, value: str, kind: str | None) -> None:
    text = f"{configs.good}auto_model_name: {value}\n"
    if kind is None:
        assert configs.load(text).config.auto_model_name == value
    else:
        assert configs.problems(text) == [
            f"21:18: auto_model_name: must be text, but `{value}` is a {kind} in YAML; put it in quotes"
        ]


@pytest.mark.parametrize("value", ["1" + ":30" * 200_000, "0x" + "f" * 5000, "9" * 5000])
def test_a_very_long_number_is_an_error(configs: Configs, value: str) -> None:
    assert configs.problems(f"{configs.good}router: {{share: {value}}}\n")[0].startswith(
        "21:17: router.share: is a number of more than 100 characters"
    )


def test_a_nul_character_in_a_text_is_an_error(configs: Configs) -> None:
    assert configs.problems(f'{configs.good}auto_model_name: "a\\0b"\n') == [
        "21:18: auto_model_name: contains a NUL character; remove it"
    ]


def test_a_second_document_is_an_error(configs: Configs) -> None:
    assert configs.problems(f"{configs.good}---\na: 1\n") == [
        "21:1: a second document begins here; a configuration is one document, so remove the line `---`"
    ]
    configs.load(f"%YAML 1.1\n---\n{configs.good}...\n")


def test_an_alias_without_an_anchor_is_an_error(configs: Configs) -> None:
    assert configs.problems("a: *nowhere\n") == ["1:4: the alias *nowhere has no anchor before it"]


def test_a_tab_as_indentation_is_an_error_with_the_remedy(configs: Configs) -> None:
    (problem,) = configs.problems("a:\n\tb: 2\n")
    assert problem.startswith("2:1: is not YAML: ") and problem.endswith("use spaces")


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_other_line_ends_work_and_count_as_lines(configs: Configs, line_end: str) -> None:
    text = f"{configs.good}zzz: 1\n".replace("\n", line_end)
    assert configs.problems(text) == ["21:1: zzz: unknown key"]


def test_a_key_is_printable_and_short_in_an_error(configs: Configs) -> None:
    (problem,) = configs.problems(f'{configs.good}"two\\nlines\\u2028{"x" * 500}": 1\n')
    assert problem.startswith(r'21:1: "two\nlines\u2028xxx') and len(problem) < 200


def test_only_the_first_100_problems_are_reported(configs: Configs) -> None:
    problems = configs.problems(configs.good + "".join(f"zzz{number}: 1\n" for number in range(5000)))
    assert problems[99] == "120:1: zzz99: unknown key"
    assert problems[100:] == ["121:1: there are more problems from here on"]
