"""From a configuration to its classifiers, with their models loaded."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from vllm_lora_router.classifiers import Classifier, ClassifierError
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.classifiers.labels import Mapped, map_labels
from vllm_lora_router.classifiers.models import Models
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.notices import methods_of
from vllm_lora_router.config.schema import EmbeddingRule, KeywordRule
from vllm_lora_router.values import Method

if TYPE_CHECKING:
    from vllm_lora_router.classifiers.encoder import Encoder
    from vllm_lora_router.classifiers.scored import ScoredClassifier, Scorer

logger = logging.getLogger("vllm_lora_router.classifiers")

Rule = TypeVar("Rule", KeywordRule, EmbeddingRule)

WARM_UP = "What does this mean, and what should I do about it?"


@dataclass(frozen=True)
class Classifiers:
    """The classifiers of one configuration."""

    cascade: Cascade
    labels: Sequence[Mapped]  # what each label of the domain model stands for; empty without one
    models: Models = field(default_factory=Models)


def build(loaded: Loaded, before: Classifiers | None = None) -> Classifiers:
    """Loads what the configured methods need and runs each model once. Takes seconds: never on the event loop.

    Args:
        before: those of the configuration in force: models that did not change are shared with them.

    Raises:
        ClassifierError: a model is missing, does not fit its settings, or has no room beside those in force.
    """
    config = loaded.config
    models = Models(before.models if before is not None else None)
    encoder = cache(lambda: _encoder(loaded, models))
    mapped: Sequence[Mapped] = ()
    classifiers: list[Classifier] = []
    for method, configured in methods_of(config).items():
        if method == "keyword":
            if rules := _allowed(loaded, method, config.keyword_rules):
                classifiers.append(KeywordClassifier(rules))
        elif method == "embedding":
            if rules := _allowed(loaded, method, config.embedding_rules):
                from vllm_lora_router.classifiers.embedding import EmbeddingScorer

                classifiers.append(_scored(loaded, EmbeddingScorer(rules, encoder(), config.router.text.windows)))
        elif method == "domain" and configured:
            from vllm_lora_router.classifiers.domain import DomainScorer, read_labels

            labels = read_labels(loaded)
            mapped = map_labels(labels, config, lambda: encoder().encode_elsewhere)
            if all(one.category is None for one in mapped):
                raise ClassifierError(
                    f"{loaded.file}: classifier.category_model: none of its labels ({', '.join(labels[:20])}) stands "
                    "for a category; say which do with categories[].mmlu_categories"
                )
            classifiers.append(_scored(loaded, DomainScorer(loaded, labels, mapped, models)))
    return Classifiers(Cascade(classifiers, config.router.deadline_ms), tuple(mapped), models)


def _encoder(loaded: Loaded, models: Models) -> "Encoder":
    from vllm_lora_router.classifiers.encoder import load_encoder

    return load_encoder(loaded, models)


def _scored(loaded: Loaded, scorer: "Scorer") -> Classifier:
    from vllm_lora_router.classifiers.scored import ScoredClassifier

    classifier = ScoredClassifier(scorer)
    deadline_ms = loaded.config.router.deadline_ms
    took_ms = min(_timed(classifier) for _ in range(3))
    logger.info("%s classifier ready: one short question takes %.1f ms", scorer.method, took_ms)
    if took_ms > deadline_ms:
        logger.warning(
            "the %s classifier takes %.0f ms for one short question here, router.deadline_ms is %g: hardly any request "
            "will be routed by it; raise the deadline, use a GPU or a smaller model",
            scorer.method,
            took_ms,
            deadline_ms,
        )
    return classifier


def _timed(classifier: "ScoredClassifier") -> float:
    began = time.perf_counter()
    classifier.worker.run_blocking(lambda: classifier.decide(WARM_UP))
    return (time.perf_counter() - began) * 1000


def _allowed(loaded: Loaded, method: Method, rules: Sequence[Rule]) -> list[tuple[int, Rule]]:
    """The rules whose category may be chosen by the method, with their places in the file."""
    by_name = {category.name: category for category in loaded.config.categories}
    return [(place, rule) for place, rule in enumerate(rules) if by_name[rule.category].may_be_chosen_by(method)]
