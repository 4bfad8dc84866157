"""Examples and heads in a configuration: problems and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config.methods import methods_by_category
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import config_warnings

if TYPE_CHECKING:
    from .conftest import Configs


def warning_texts(configs: Configs, text: str) -> list[str]:
    loaded = configs.load(text)
    return [warning.text for warning in config_warnings(loaded, served_base(loaded, []))]


def test_a_duplicate_example_is_an_error(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", "  - name: medical\n    examples: [I cough, i COUGH]\n"))
    (problem,) = [problem for problem in configs.problems(text) if "duplicate" in problem]
    assert problem.endswith("examples[1]: duplicate example 'i COUGH'; the first one is in line 13")


@pytest.mark.parametrize("examples", ["['']", "['  ']", "[3]", "one"])
def test_an_example_must_be_text(configs: Configs, examples: str) -> None:
    text = configs.changed(("  - name: medical\n", f"  - name: medical\n    examples: {examples}\n"))
    assert any(problem.startswith("13:") and "examples" in problem for problem in configs.problems(text))


def test_a_threshold_of_an_unknown_category_is_an_error(configs: Configs) -> None:
    text = f"{configs.good}classifier: {{embedding_model: {{thresholds: {{medcal: 0.5}}}}}}\n"
    (problem,) = configs.problems(text)
    assert "thresholds.medcal: 'medcal' is not a category of this file; did you mean 'medical'?" in problem


def test_examples_without_effect_get_a_warning(configs: Configs) -> None:
    other = ("  - name: technical\n", "  - name: technical\n    examples: [My code crashes]\n")
    both = configs.changed(other, ("  - name: medical\n", "  - name: medical\n    examples: [I cough]\n"))
    texts = warning_texts(configs, f"{both}router: {{methods: [keyword]}}\n")
    assert "the examples of category 'medical' have no effect: router.methods does not contain embedding" in texts
    assert not any("examples" in text for text in warning_texts(configs, both))
    assert "embedding" in list(methods_by_category(configs.load(both).config).values())[1]
    with_rule = f"{both}embedding_rules: [{{category: medical, candidates: [pain]}}]\n"
    assert any(
        "category 'medical' is in embedding_rules and in the head" in text for text in warning_texts(configs, with_rule)
    )
