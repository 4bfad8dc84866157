"""Which category each label of a domain model stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.classifiers.labels import Encode, Mapped, map_labels, unreached

if TYPE_CHECKING:
    from .conftest import Load

CATEGORIES = """
categories:
  - name: computer science
    description: Programming
    mmlu_categories: [engineering, Health]
    model_scores: [{model: base, lora_name: technical-lora}]
  - name: medical
    description: Health care
    model_scores: [{model: base, lora_name: medical-lora}]
  - name: general
    model_scores: [{model: base}]
"""


def no_model() -> Encode:
    raise AssertionError("a model was loaded though every label was certain")


class Meaning:
    """Vectors of one coordinate: the cosine with `medical: Health care`."""

    def __init__(self, **cosines: float) -> None:
        self.cosines = {"medical: Health care": 1.0, **cosines}
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        return np.array([[self.cosines.get(text, 0.0)] for text in texts])


def test_a_label_of_a_categorys_name_is_that_category_however_it_is_spelt(loaded: Load) -> None:
    labels = ["computer science", "Computer_Science", "computer-science", "MEDICAL", "general"]
    mapped = map_labels(labels, loaded(CATEGORIES).config, no_model)
    assert [(one.category, one.how) for one in mapped] == [
        ("computer science", "name"),
        ("computer science", "name"),
        ("computer science", "name"),
        ("medical", "name"),
        ("general", "name"),
    ]


def test_a_label_that_a_category_lists_is_that_category_and_no_model_is_asked(loaded: Load) -> None:
    mapped = map_labels(["health", "engineering"], loaded(CATEGORIES).config, no_model)
    assert mapped == [
        Mapped("health", "computer science", "mmlu_categories"),
        Mapped("engineering", "computer science", "mmlu_categories"),
    ]


def test_a_name_counts_before_a_list(loaded: Load) -> None:
    text = CATEGORIES.replace("[engineering, Health]", "[medical]")
    assert map_labels(["medical"], loaded(text).config, no_model) == [Mapped("medical", "medical", "name")]


def test_what_is_left_goes_by_meaning_from_0_40_on_and_the_rest_to_the_category_without_adapter(loaded: Load) -> None:
    meaning = Meaning(biology=0.40, psychology=0.399, nursing=0.87)
    mapped = map_labels(["biology", "psychology", "nursing", "medical"], loaded(CATEGORIES).config, lambda: meaning)
    assert mapped == [
        Mapped("biology", "medical", "meaning", 0.4),
        Mapped("psychology", "general", "rest"),
        Mapped("nursing", "medical", "meaning", 0.87),
        Mapped("medical", "medical", "name"),
    ]
    assert meaning.seen == [
        *("biology", "psychology", "nursing"),
        *("computer science: Programming", "medical: Health care", "general"),
    ]


def test_without_a_category_for_the_base_the_rest_goes_to_the_default(loaded: Load) -> None:
    text = CATEGORIES.partition("  - name: general")[0]
    assert map_labels(["history"], loaded(text).config, Meaning) == [Mapped("history", None, "rest")]


def test_a_category_that_prefers_an_adapter_does_not_take_the_rest(loaded: Load) -> None:
    prefers = "[{model: base, score: 0.2}, {model: base, lora_name: medical-lora, score: 0.8}]"
    text = CATEGORIES.replace("model_scores: [{model: base}]", f"model_scores: {prefers}")
    assert map_labels(["history"], loaded(text).config, Meaning)[0].category is None


def test_a_category_that_the_domain_model_may_not_choose_takes_no_label(loaded: Load) -> None:
    text = CATEGORIES.replace("  - name: medical", "  - methods: [keyword]\n    name: medical")
    config = loaded(text).config
    assert map_labels(["medical", "biology"], config, lambda: Meaning(biology=0.9)) == [
        Mapped("medical", "general", "rest"),
        Mapped("biology", "general", "rest"),
    ]
    assert "medical" not in unreached([], config)


@pytest.mark.parametrize(
    ("labels", "left"),
    [
        (["health"], ["medical", "general"]),
        (["medical", "general"], ["computer science"]),
        (["medical", "general", "engineering"], []),
    ],
)
def test_categories_that_no_label_leads_to_are_known(loaded: Load, labels: list[str], left: list[str]) -> None:
    config = loaded(CATEGORIES).config
    assert unreached(map_labels(labels, config, no_model), config) == left
