"""Names: of categories, labels, base models and adapters, in every place where a configuration contains one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config import ConfigError
from vllm_lora_router.config.names import name_problem
from vllm_lora_router.config.served_base import served_base

if TYPE_CHECKING:
    from .conftest import Configs

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("name", ["medical", "Größe/量", "a.b[0]", "🩺", "x" * 256, "%41", '"', "two words", COMPOSED])
def test_a_plain_name_is_valid(name: str) -> None:
    assert name_problem(name) is None


# Each place of a name, in a configuration in which the name NAME occurs in this place only.
PLACES = {
    "categories[1].name": ("  - name: medical\n", "  - name: NAME\n"),
    "categories[1].mmlu_categories[0]": ("  - name: medical\n", "  - name: medical\n    mmlu_categories: [NAME]\n"),
    "categories[1].model_scores[0].model": ("base\n        lora_name: medical", "NAME\n        lora_name: medical"),
    "categories[1].model_scores[0].lora_name": ("lora_name: medical-lora", "lora_name: NAME"),
    "model_config.base.loras[1].name": ("      - name: medical-lora", "      - name: NAME"),
    "keyword_rules[1].category": ("category: medical", "category: NAME"),
    "default_model": ("default_model: base", "default_model: NAME"),
    "auto_model_name": ("keyword_rules:", "auto_model_name: NAME\nkeyword_rules:"),
    "classifier.category_model.fallback_category": (
        "keyword_rules:",
        "classifier: {category_model: {fallback_category: NAME}}\nkeyword_rules:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (r'"a\tb"', "contains a line break or a control character; remove it"),
        ('"medical "', "begins or ends with white space; use 'medical'"),
        (r'"folded\n"', "begins or ends with white space; use 'folded'"),
        (f'"{DECOMPOSED}"', r"is not in Unicode's composed form (NFC); use 'caf\xe9' instead of 'cafe\u0301'"),
    ],
)
def test_an_invalid_name_is_refused_in_every_place(configs: Configs, place: str, written: str, expected: str) -> None:
    old, new = PLACES[place]
    problems = configs.problems(configs.changed((old, new.replace("NAME", written))))
    assert [problem for problem in problems if f" {place}: {expected}" in problem]


def test_an_invalid_name_of_a_base_or_of_a_threshold_is_refused(configs: Configs) -> None:
    problems = configs.problems(configs.changed(("  base:", '  "base ":')))
    assert problems[0].startswith("2:3: model_config.\"base \": begins or ends with white space; use 'base'")
    text = f'{configs.good}classifier: {{embedding_model: {{thresholds: {{"a\\tb": 0.5}}}}}}\n'
    assert any("contains a line break or a control character" in problem for problem in configs.problems(text))


ADAPTER_PLACES = ["model_config.base.loras[1].name", "categories[1].model_scores[0].lora_name", "default_model"]


@pytest.mark.parametrize("place", ADAPTER_PLACES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("..", "adapter name '..' is a path; use another name"),
        ("a/../b", "adapter name 'a/../b' is a path; use another name"),
        ("MoM", "adapter name 'MoM' is an auto name, which requests routing"),
        ("auto", "adapter name 'auto' is an auto name, which requests routing"),
        ("text", "adapter name 'text': vLLM applies an adapter of this name to all chat requests"),
    ],
)
def test_an_invalid_name_of_an_adapter_is_refused_in_every_place(
    configs: Configs, place: str, name: str, expected: str
) -> None:
    old, new = PLACES[place]
    sources = "router: {adapters: {sources: [/adapters]}}\n"
    (problem,) = configs.problems(configs.changed((old, new.replace("NAME", name))) + sources)
    assert f" {place}: {expected}" in problem


def test_the_default_auto_name_is_free_if_another_one_is_set(configs: Configs) -> None:
    text = configs.changed(
        ("      - name: medical-lora", "      - name: MoM"), ("lora_name: medical-lora", "lora_name: MoM")
    )
    assert len(configs.problems(text)) == 2
    configs.load(f"{text}auto_model_name: route\n")


@pytest.mark.parametrize("name", ["MoM", "auto"])
def test_a_base_must_not_have_an_auto_name(configs: Configs, name: str) -> None:
    text = configs.changed(("default_model", f"  {name}: {{}}\ndefault_model"))
    assert configs.problems(text) == [
        f"6:3: model_config.{name}: '{name}' is an auto name, which requests routing; use another name for the base"
    ]


def test_the_adapters_of_the_command_line_are_checked(configs: Configs) -> None:
    problems = configs.problems(configs.good, adapters=["..", "fine", "MoM"])
    assert problems[0] == "1:1: --lora-modules: adapter name '..' is a path; use another name"
    assert "'MoM' is an auto name" in problems[1] and len(problems) == 2


def test_an_adapter_must_not_have_the_served_name_of_the_base(configs: Configs) -> None:
    loaded = configs.load(configs.good)
    served_base(loaded, ["acme/base"])
    with pytest.raises(ConfigError, match=r":5:15: model_config\.base\.loras\[1\]\.name: .* base model's served name"):
        served_base(loaded, ["acme/base", "medical-lora"])


def test_names_that_look_equal_are_told_apart_by_their_code_points(configs: Configs) -> None:
    text = configs.changed(
        ("  - name: medical\n", f"  - name: {COMPOSED}\n"), ("category: medical", f"category: {DECOMPOSED}")
    )
    assert r"did you mean 'caf\xe9' (not 'cafe\u0301')?" in "\n".join(configs.problems(text))


def test_equal_names_in_two_spellings_are_duplicates(configs: Configs) -> None:
    labels = f"    mmlu_categories: [{COMPOSED}, {DECOMPOSED}]\n"
    text = configs.changed(("  - name: medical\n", f"  - name: medical\n{labels}"))
    assert any("duplicate label" in problem for problem in configs.problems(text))
