"""The configuration that is measured: three adapters, found by keyword or by one classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from vllm_lora_router.tools.demo.questions import QUESTIONS

BASE = "base"  # the served name
Classifier = Literal["static", "MiniLM", "domain"]

# Adapter -> the subjects of the demo's questions that it is for.
SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "technical-lora": ("computer science", "engineering"),
    "medical-lora": ("health",),
    "legal-lora": ("law",),
}
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "technical-lora": ("data structure", "JavaScript", "Docker", "C++", "regular expression", "bash", "circuit"),
    "medical-lora": ("blood pressure", "dose", "heart attack", "doctor", "skin cancer", "allergic"),
    "legal-lora": ("copyright", "lease", "court", "defendant", "landlord", "patent"),
}
# Of each subject so many are examples to learn from, and the others are asked.
_LEARNT = 18
THRESHOLD = 0.4  # a number before a question takes something of how sure a static encoder's head is
DEADLINE_MS = 1000  # what is measured is how long routing takes, not what a deadline cuts off


def configuration(classifier: Classifier, model: Path | None) -> str:
    """The YAML of it. No system prompts: with the router and without, the engine gets the same request.

    Args:
        model: the folder of the classifier; None for all-MiniLM-L6-v2 from the hub or its package.
    """
    content = {
        "classifier": _classifier(classifier, model),
        "model_config": {BASE: {"loras": [{"name": adapter} for adapter in SUBJECTS]}},
        "default_model": BASE,
        "keyword_rules": [{"category": _category(name), "keywords": [*words]} for name, words in _KEYWORDS.items()],
        "categories": [
            {
                "name": _category(name),
                **({"mmlu_categories": [*subjects]} if classifier == "domain" else {"examples": examples()[name]}),
                "model_scores": [{"model": BASE, "lora_name": name}],
            }
            for name, subjects in SUBJECTS.items()
        ],
        "router": {"deadline_ms": DEADLINE_MS},
    }
    return yaml.safe_dump(content, sort_keys=False)


def examples() -> dict[str, list[str]]:
    """Adapter -> the questions that stand for it."""
    return {
        name: [text for one in subjects for text in QUESTIONS[one][:_LEARNT]] for name, subjects in SUBJECTS.items()
    }


def asked() -> list[str]:
    """The other questions."""
    return [text for subjects in SUBJECTS.values() for one in subjects for text in QUESTIONS[one][_LEARNT:]]


def method_of(classifier: Classifier) -> str:
    """What the router calls the method of a classifier."""
    return "domain" if classifier == "domain" else "embedding"


def _classifier(classifier: Classifier, model: Path | None) -> dict[str, object]:
    if classifier == "domain":
        return {"category_model": {"model_id": str(model)}}
    named = {} if model is None else {"model_id": str(model)}
    return {"embedding_model": {**named, "threshold": THRESHOLD}}


def _category(adapter: str) -> str:
    return adapter.removesuffix("-lora")
