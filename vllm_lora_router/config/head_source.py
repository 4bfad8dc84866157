"""The source of the classification head, and the texts of a configuration that a head is fitted from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_lora_router.config.schema import Config

HeadSource = Literal["folder", "examples", "descriptions"]


def head_source(config: Config) -> HeadSource | None:
    """Return the source of the head, or None if the configuration has no head."""
    setting = config.classifier.embedding_model.head
    if setting == "off" or "embedding" not in config.router.methods:
        return None
    if setting not in (None, "auto"):
        return "folder"
    if any(category.examples for category in config.categories):
        return "examples"
    if setting == "auto" or (not _has_other_classifier(config) and len(head_texts(config)) > 1):
        return "descriptions"
    return None


@dataclass(frozen=True, slots=True)
class HeadText:
    """A text of a category that a head is fitted from."""

    text: str
    is_example: bool  # False: the category's description


def head_texts(config: Config) -> Mapping[str, list[HeadText]]:
    """Return the texts that a head can be fitted from, by category: the description first, then the examples."""
    texts_by_category = {
        category.name: [
            *([HeadText(category.description.strip(), False)] if category.description.strip() else []),
            *(HeadText(example, True) for example in category.examples),
        ]
        for category in config.categories
        if category.may_be_chosen_by("embedding")
    }
    return {name: texts for name, texts in texts_by_category.items() if texts}


def _has_other_classifier(config: Config) -> bool:
    classifier = config.classifier
    return bool(
        config.keyword_rules
        or config.embedding_rules
        or classifier.category_model.model_id
        or classifier.mcp_category_model.enabled
    )
