"""Whether embeddings go through a head, and what the text of a configuration gives one to be fitted from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_lora_router.config.schema import Config

Source = Literal["folder", "examples", "descriptions"]


def head_source(config: Config) -> Source | None:
    """Where the head comes from; None: there is none."""
    said = config.classifier.embedding_model.head
    if said == "off" or "embedding" not in config.router.methods:
        return None
    if said not in (None, "auto"):
        return "folder"
    if any(category.examples for category in config.categories):
        return "examples"
    if said == "auto" or (not _told_otherwise(config) and len(texts_of(config)) > 1):
        return "descriptions"
    return None


@dataclass(frozen=True, slots=True)
class Text:
    """What a configuration gives of a category."""

    text: str
    asked: bool  # an example of what people ask; False: the category's description


def texts_of(config: Config) -> Mapping[str, list[Text]]:
    """What a head can be fitted from, by category: its description first, then its examples."""
    found = {
        category.name: [
            *([Text(category.description.strip(), False)] if category.description.strip() else []),
            *(Text(example, True) for example in category.examples),
        ]
        for category in config.categories
        if category.may_be_chosen_by("embedding")
    }
    return {name: texts for name, texts in found.items() if texts}


def _told_otherwise(config: Config) -> bool:
    classifier = config.classifier
    return bool(
        config.keyword_rules
        or config.embedding_rules
        or classifier.category_model.model_id
        or classifier.mcp_category_model.enabled
    )
