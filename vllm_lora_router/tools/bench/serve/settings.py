"""The measured configuration: three adapters, selected by keyword or by one classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from vllm_lora_router.tools.demo.questions import QUESTIONS

BASE = "base"  # the served name
Classifier = Literal["static", "MiniLM", "domain"]

# Adapter -> its subjects among the demo's questions.
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
# The first questions of each subject are examples; the others are sent.
_EXAMPLES_PER_SUBJECT = 18
THRESHOLD = 0.4  # low, because a number before a question lowers the probability with a static encoder
DEADLINE_MS = 1000  # the benchmark measures time, not the effect of a deadline


def configuration(classifier: Classifier, model: Path | None) -> str:
    """Return the YAML. It has no system prompts, so that the engine gets the same request with and without the router.

    Args:
        classifier: the classifier besides keywords.
        model: the classifier's folder; None for all-MiniLM-L6-v2 from the hub or its package.
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
    """Return the example questions by adapter."""
    return {
        name: [text for subject in subjects for text in QUESTIONS[subject][:_EXAMPLES_PER_SUBJECT]]
        for name, subjects in SUBJECTS.items()
    }


def held_out_questions() -> list[str]:
    """Return the questions to send."""
    subjects = [subject for subjects in SUBJECTS.values() for subject in subjects]
    return [text for subject in subjects for text in QUESTIONS[subject][_EXAMPLES_PER_SUBJECT:]]


def method_of(classifier: Classifier) -> str:
    """Return the router's method name of a classifier."""
    return "domain" if classifier == "domain" else "embedding"


def _classifier(classifier: Classifier, model: Path | None) -> dict[str, object]:
    if classifier == "domain":
        return {"category_model": {"model_id": str(model)}}
    model_id = {} if model is None else {"model_id": str(model)}
    return {"embedding_model": {**model_id, "threshold": THRESHOLD}}


def _category(adapter: str) -> str:
    return adapter.removesuffix("-lora")
