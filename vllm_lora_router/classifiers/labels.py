"""Which category each label of a domain model stands for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vllm_lora_router.config.schema import Category, Config

# With all-MiniLM-L6-v2 and the guide's categories, the right pairs of label and category lie at 0.46 to 0.59, every
# other at 0.32 or less.
MEANING_THRESHOLD = 0.40

Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Mapped:
    """Where one label leads."""

    label: str
    category: str | None  # None: to the default
    how: Literal["name", "mmlu_categories", "meaning", "rest"]
    similarity: float | None = None  # cosine, where the meaning decided


def map_labels(labels: Sequence[str], config: Config, encode: Callable[[], Encode]) -> list[Mapped]:
    """Maps labels by name, then by `mmlu_categories`, then by meaning; the rest goes to the category without adapter.

    `encode` is called only when a label is left for its meaning, since it loads a model.
    """
    categories = [category for category in config.categories if category.may_be_chosen_by("domain")]
    by_name = {_plain(category.name): category.name for category in categories}
    by_list = {_plain(label): category.name for category in categories for label in category.mmlu_categories}
    certain: dict[str, Mapped] = {}
    for label in labels:
        if found := by_name.get(_plain(label)):
            certain[label] = Mapped(label, found, "name")
        elif found := by_list.get(_plain(label)):
            certain[label] = Mapped(label, found, "mmlu_categories")
    left = [label for label in labels if label not in certain]
    meant = _by_meaning(left, categories, encode()) if left and categories else {}
    rest = next((category.name for category in categories if _is_base(category)), None)
    return [certain.get(label) or meant.get(label) or Mapped(label, rest, "rest") for label in labels]


def unreached(mapped: Sequence[Mapped], config: Config) -> list[str]:
    """Categories that the domain model may choose and that no label leads to."""
    reached = {one.category for one in mapped}
    return [
        category.name
        for category in config.categories
        if category.may_be_chosen_by("domain") and category.name not in reached
    ]


def _by_meaning(labels: Sequence[str], categories: Sequence[Category], encode: Encode) -> Mapping[str, Mapped]:
    vectors = encode(labels)
    means = encode([f"{category.name}: {category.description}".rstrip(": ") for category in categories])
    similarity = vectors @ means.T
    found: dict[str, Mapped] = {}
    for label, row in zip(labels, similarity, strict=True):
        best = int(row.argmax())
        if row[best] >= MEANING_THRESHOLD:
            found[label] = Mapped(label, categories[best].name, "meaning", round(float(row[best]), 2))
    return found


def _is_base(category: Category) -> bool:
    return max(category.model_scores, key=lambda entry: entry.score).lora_name is None


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
