"""Mapping of the domain model's labels to categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.classifiers.labels import Encode, LabelMapping, map_labels, unreachable_categories

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
    raise AssertionError("a model was loaded although no label needs it")


class FakeEncoder:
    """Returns vectors of one coordinate: the cosine with `medical: Health care`."""

    def __init__(self, **cosines: float) -> None:
        self.cosines = {"medical: Health care": 1.0, **cosines}
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.array([[self.cosines.get(text, 0.0)] for text in texts])


def test_a_label_is_mapped_to_the_category_of_the_same_name(loaded: Load) -> None:
    labels = ["computer science", "Computer_Science", "computer-science", "MEDICAL", "general"]
    mapping = map_labels(labels, loaded(CATEGORIES).config, no_model)
    assert [(label.category, label.source) for label in mapping] == [
        ("computer science", "name"),
        ("computer science", "name"),
        ("computer science", "name"),
        ("medical", "name"),
        ("general", "name"),
    ]


def test_a_label_in_mmlu_categories_is_mapped_without_a_model(loaded: Load) -> None:
    mapping = map_labels(["health", "engineering"], loaded(CATEGORIES).config, no_model)
    assert mapping == [
        LabelMapping("health", "computer science", "mmlu_categories"),
        LabelMapping("engineering", "computer science", "mmlu_categories"),
    ]


def test_a_category_name_takes_precedence_over_mmlu_categories(loaded: Load) -> None:
    text = CATEGORIES.replace("[engineering, Health]", "[medical]")
    assert map_labels(["medical"], loaded(text).config, no_model) == [LabelMapping("medical", "medical", "name")]


def test_other_labels_are_mapped_by_similarity_or_to_the_category_without_adapter(
    loaded: Load,
) -> None:
    encoder = FakeEncoder(biology=0.40, psychology=0.399, nursing=0.87)
    mapping = map_labels(["biology", "psychology", "nursing", "medical"], loaded(CATEGORIES).config, lambda: encoder)
    assert mapping == [
        LabelMapping("biology", "medical", "similarity", 0.4),
        LabelMapping("psychology", "general", "fallback"),
        LabelMapping("nursing", "medical", "similarity", 0.87),
        LabelMapping("medical", "medical", "name"),
    ]
    assert encoder.texts == [
        *("biology", "psychology", "nursing"),
        *("computer science: Programming", "medical: Health care", "general"),
    ]


def test_without_a_category_for_the_base_model_the_fallback_is_the_default_model(loaded: Load) -> None:
    text = CATEGORIES.partition("  - name: general")[0]
    assert map_labels(["history"], loaded(text).config, FakeEncoder) == [LabelMapping("history", None, "fallback")]


def test_a_category_that_prefers_an_adapter_is_not_the_fallback(loaded: Load) -> None:
    prefers = "[{model: base, score: 0.2}, {model: base, lora_name: medical-lora, score: 0.8}]"
    text = CATEGORIES.replace("model_scores: [{model: base}]", f"model_scores: {prefers}")
    assert map_labels(["history"], loaded(text).config, FakeEncoder)[0].category is None


def test_a_category_whose_methods_exclude_domain_gets_no_label(loaded: Load) -> None:
    text = CATEGORIES.replace("  - name: medical", "  - methods: [keyword]\n    name: medical")
    config = loaded(text).config
    assert map_labels(["medical", "biology"], config, lambda: FakeEncoder(biology=0.9)) == [
        LabelMapping("medical", "general", "fallback"),
        LabelMapping("biology", "general", "fallback"),
    ]
    assert "medical" not in unreachable_categories([], config)


@pytest.mark.parametrize(
    ("labels", "unreachable"),
    [
        (["health"], ["medical", "general"]),
        (["medical", "general"], ["computer science"]),
        (["medical", "general", "engineering"], []),
    ],
)
def test_unreachable_categories_are_those_without_a_label(
    loaded: Load, labels: list[str], unreachable: list[str]
) -> None:
    config = loaded(CATEGORIES).config
    assert unreachable_categories(map_labels(labels, config, no_model), config) == unreachable
