"""From a configuration to its classifiers, with their models loaded."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from vllm_lora_router.classifiers import Classifier, ClassifierError
from vllm_lora_router.classifiers.cache import Cache, CachedClassifier
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.deadline import deadline_ms, tell
from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.classifiers.labels import Mapped, map_labels
from vllm_lora_router.classifiers.models.registry import Models
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.schema import EmbeddingRule, KeywordRule
from vllm_lora_router.config.warnings import in_both, methods_of
from vllm_lora_router.types import Method

if TYPE_CHECKING:
    from vllm_lora_router.classifiers.embedding import EmbeddingScorer
    from vllm_lora_router.classifiers.mcp.classifier import Tool
    from vllm_lora_router.classifiers.model_classifier import ScoredClassifier, Scorer
    from vllm_lora_router.classifiers.models.encoder import Encoder

logger = logging.getLogger("vllm_lora_router.classifiers")

Rule = TypeVar("Rule", KeywordRule, EmbeddingRule)

WARM_UP = "What does this mean, and what should I do about it?"


@dataclass(frozen=True)
class Classifiers:
    """The classifiers of one configuration."""

    cascade: Cascade
    labels: Sequence[Mapped]  # what each label of the domain model stands for; empty without one
    models: Models = field(default_factory=Models)
    scored: Mapping[Method, "ScoredClassifier"] = field(default_factory=dict)  # those with a model
    cache: Cache = field(default_factory=Cache)
    tool: "Tool | None" = None  # None: none is configured


def build(loaded: Loaded, before: Classifiers | None = None, served_name: str | None = None) -> Classifiers:
    """Loads what the configured methods need and runs each model once. Takes seconds: never on the event loop.

    Args:
        before: those of the configuration in force: models that did not change are shared with them.
        served_name: what the base is called, which a tool may ask for.

    Raises:
        ClassifierError: a model is missing, does not fit its settings, or has no room beside those in force.
    """
    config = loaded.config
    models = Models(before.models if before is not None else None)
    cached = before.cache if before is not None else Cache()
    scored: dict[Method, ScoredClassifier] = {}
    encoder = cache(lambda: _encoder(loaded, models))
    _load_together(loaded, models)
    apart = config.router.tenant_cache == "isolated"
    mapped: Sequence[Mapped] = ()
    tool: Tool | None = None
    classifiers: list[Classifier] = []
    for method, configured in methods_of(config).items():
        if method == "keyword":
            if rules := _allowed(loaded, method, config.keyword_rules):
                classifiers.append(KeywordClassifier(rules))
        elif method == "embedding":
            if has_embedding(loaded):
                scored[method] = _scored(_embedding(loaded, encoder()))
                classifiers.append(_remembered(scored[method], cached, by_tenant=apart))
        elif method == "domain" and configured:
            from vllm_lora_router.classifiers.domain import DomainScorer, read_labels

            labels = read_labels(loaded)
            mapped = map_labels(labels, config, lambda: encoder().encode_elsewhere)
            if all(one.category is None for one in mapped):
                raise ClassifierError(
                    f"{loaded.file}: classifier.category_model: none of its labels ({', '.join(labels[:20])}) stands "
                    "for a category; say which do with categories[].mmlu_categories"
                )
            scored[method] = _scored(DomainScorer(loaded, labels, mapped, models))
            classifiers.append(_remembered(scored[method], cached, by_tenant=apart))
        elif method == "mcp" and configured:
            tool = _tool(loaded, before)
            from vllm_lora_router.classifiers.mcp.classifier import ToolClassifier

            classifiers.append(ToolClassifier(config, tool, served_name))
    within_ms = deadline_ms(config, scored)
    for classifier in scored.values():
        # Who comes while one batch runs waits for it, and then for its own.
        classifier.batcher.budget_s = within_ms / 1000 / 2
    tell(config, scored, within_ms)
    return Classifiers(Cascade(classifiers, within_ms), tuple(mapped), models, scored, cached, tool)


def _tool(loaded: Loaded, before: Classifiers | None) -> "Tool":
    """The tool: with the session in force, where nothing of it changed."""
    try:
        from vllm_lora_router.classifiers.mcp.classifier import open_tool
    except ImportError as error:
        raise ClassifierError(
            f"{loaded.file}: classifier.mcp_category_model needs the package mcp, from 2.0 on ({error}); install it "
            "with: pip install 'vllm-lora-router[mcp]'"
        ) from error
    return open_tool(loaded, before.tool if before is not None else None)


def _load_together(loaded: Loaded, models: Models) -> None:
    """Models that are exported when they are first used take a minute each: none waits for the other."""
    methods = methods_of(loaded.config)
    loads: list[Callable[[], object]] = []
    if "embedding" in methods and has_embedding(loaded):
        loads.append(lambda: _encoder(loaded, models))
    if methods.get("domain"):
        from vllm_lora_router.classifiers.domain import load_model

        loads.append(lambda: load_model(loaded, models))
    with ThreadPoolExecutor(max(len(loads), 1)) as threads:
        for loading in [threads.submit(load) for load in loads]:
            loading.result()


def has_embedding(loaded: Loaded) -> bool:
    """Whether a rule or a head asks for the encoder."""
    return bool(_allowed(loaded, "embedding", loaded.config.embedding_rules)) or head_source(loaded.config) is not None


def _embedding(loaded: Loaded, encoder: "Encoder") -> "EmbeddingScorer":
    from vllm_lora_router.classifiers.embedding import EmbeddingScorer
    from vllm_lora_router.classifiers.head_loader import load_head

    rules = _allowed(loaded, "embedding", loaded.config.embedding_rules)
    head = load_head(loaded, encoder)
    allowed = [category.name for category in loaded.config.categories if category.may_be_chosen_by("embedding")]
    if head is not None and head_source(loaded.config) == "folder":
        for name in dict.fromkeys(rule.category for _, rule in rules):
            if name in head.head.categories:
                logger.warning("%s", in_both(name))
    return EmbeddingScorer(rules, encoder, loaded.config.router.text.windows, head, allowed)


def _encoder(loaded: Loaded, models: Models) -> "Encoder":
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    return load_encoder(loaded, models)


def _remembered(scored: "ScoredClassifier", cached: Cache, *, by_tenant: bool) -> Classifier:
    """With its answers kept, unless they are had as fast as they would be found."""
    return scored if scored.scorer.on_any_thread else CachedClassifier(scored, cached, by_tenant=by_tenant)


def _scored(scorer: "Scorer") -> "ScoredClassifier":
    from vllm_lora_router.classifiers.model_classifier import ScoredClassifier

    classifier = ScoredClassifier(scorer)
    classifier.warm_up(WARM_UP)
    took_ms = classifier.lone_s * 1000
    logger.info("%s classifier ready (%s): one short question takes %.1f ms", scorer.method, scorer.runs_on, took_ms)
    return classifier


def _allowed(loaded: Loaded, method: Method, rules: Sequence[Rule]) -> list[tuple[int, Rule]]:
    """The rules whose category may be chosen by the method, with their places in the file."""
    by_name = {category.name: category for category in loaded.config.categories}
    return [(place, rule) for place, rule in enumerate(rules) if by_name[rule.category].may_be_chosen_by(method)]
