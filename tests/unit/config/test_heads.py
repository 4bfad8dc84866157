"""Examples and heads in a configuration: what is wrong with them, and what they do without saying so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import notices, ways_to

if TYPE_CHECKING:
    from .conftest import Configs


def said(configs: Configs, text: str) -> list[str]:
    loaded = configs.load(text)
    return [notice.text for notice in notices(loaded, served_base(loaded, []))]


def with_examples(configs: Configs, more: str = "", name: str = "medical") -> str:
    return (
        configs.changed((f"  - name: {name}\n", f"  - name: {name}\n    examples: [My knee hurts, I cough]\n")) + more
    )


def test_an_example_may_stand_once(configs: Configs) -> None:
    text = configs.changed(("  - name: medical\n", "  - name: medical\n    examples: [I cough, i COUGH]\n"))
    (problem,) = [one for one in configs.problems(text) if "twice" in one]
    assert problem.endswith("examples[1]: example 'i COUGH' is named twice; it already stands in line 13")


@pytest.mark.parametrize("examples", ["['']", "['  ']", "[3]", "one"])
def test_an_example_is_text(configs: Configs, examples: str) -> None:
    text = configs.changed(("  - name: medical\n", f"  - name: medical\n    examples: {examples}\n"))
    assert any(problem.startswith("13:") and "examples" in problem for problem in configs.problems(text))


def test_thresholds_are_of_categories(configs: Configs) -> None:
    text = f"{configs.good}classifier: {{embedding_model: {{thresholds: {{medcal: 0.5}}}}}}\n"
    (problem,) = configs.problems(text)
    assert "thresholds.medcal: 'medcal' is not a category of this file; did you mean 'medical'?" in problem


def test_examples_that_do_nothing_are_told(configs: Configs) -> None:
    other = ("  - name: technical\n", "  - name: technical\n    examples: [My code crashes]\n")
    both = configs.changed(other, ("  - name: medical\n", "  - name: medical\n    examples: [I cough]\n"))
    found = said(configs, f"{both}router: {{methods: [keyword]}}\n")
    assert "the examples of category 'medical' do nothing: router.methods leaves embedding out" in found
    assert not any("examples" in text for text in said(configs, both))
    assert "embedding" in ways_to(configs.load(both).config.categories[1], configs.load(both).config)
    ruled = f"{both}embedding_rules: [{{category: medical, candidates: [pain]}}]\n"
    assert any("category 'medical' is in embedding_rules and in the head" in text for text in said(configs, ruled))
