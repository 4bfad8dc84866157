"""Construction of a configuration's classifiers, including the models that they need."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from vllm_lora_router.classifiers import Classifier, ClassifierError
from vllm_lora_router.classifiers.cache import Cache, CachedClassifier
from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.deadline import deadline_ms, log_deadline
from vllm_lora_router.classifiers.domain import DomainScorer, load_domain_model
from vllm_lora_router.classifiers.embedding import EmbeddingScorer
from vllm_lora_router.classifiers.head_loader import load_head
from vllm_lora_router.classifiers.keyword import KeywordClassifier
from vllm_lora_router.classifiers.labels import LabelMapping, map_labels, read_labels
from vllm_lora_router.classifiers.model_classifier import ModelClassifier, Scorer
from vllm_lora_router.classifiers.models.encoder import Encoder, load_encoder
from vllm_lora_router.classifiers.models.registry import ModelRegistry
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.methods import configured_methods
from vllm_lora_router.config.schema import EmbeddingRule, KeywordRule
from vllm_lora_router.config.warnings import rule_and_head_warning
from vllm_lora_router.types import Method

if TYPE_CHECKING:
    # At run time this module is imported only if a tool is configured, because the package mcp is optional.
    from vllm_lora_router.classifiers.mcp.classifier import McpTool

logger = logging.getLogger("vllm_lora_router.classifiers")

Rule = TypeVar("Rule", KeywordRule, EmbeddingRule)

WARM_UP_TEXT = "What does this mean, and what should I do about it?"


@dataclass(frozen=True)
class Classifiers:
    """The classifiers of one configuration."""

    cascade: Cascade
    label_mapping: Sequence[LabelMapping]  # the labels of the domain model; empty without a domain model
    models: ModelRegistry = field(default_factory=ModelRegistry)
    model_classifiers: Mapping[Method, ModelClassifier] = field(default_factory=dict)  # those that run a model
    cache: Cache = field(default_factory=Cache)
    mcp_tool: "McpTool | None" = None  # None: no tool is configured


def build(loaded: LoadedConfig, before: Classifiers | None = None, served_name: str | None = None) -> Classifiers:
    """Build the classifiers of a configuration: load the models and run each one once.

    This takes seconds, so it must not run on the event loop.

    Args:
        before: The classifiers in effect. Models that did not change are shared with them.
        served_name: The served name of the base model, which an MCP tool may request.

    Raises:
        ClassifierError: A model is missing, does not match its settings, or does not fit into memory together with
            the models in effect.
    """
    config = loaded.config
    models = ModelRegistry(before.models if before is not None else None)
    classification_cache = before.cache if before is not None else Cache()
    model_classifiers: dict[Method, ModelClassifier] = {}
    encoder = cache(lambda: load_encoder(loaded, models))
    _load_in_parallel(loaded, models)
    mapping: Sequence[LabelMapping] = ()
    tool: McpTool | None = None
    classifiers: list[Classifier] = []
    for method, configured in configured_methods(config).items():
        if method == "keyword":
            if rules := _allowed_rules(loaded, method, config.keyword_rules):
                classifiers.append(KeywordClassifier(rules))
        elif method == "embedding":
            if needs_encoder(loaded):
                model_classifiers[method] = _warmed_up(_embedding_scorer(loaded, encoder()))
                classifiers.append(_with_cache(model_classifiers[method], classification_cache))
        elif method == "domain" and configured:
            labels = read_labels(loaded)
            mapping = map_labels(labels, config, lambda: encoder().encode_blocking)
            if all(label.category is None for label in mapping):
                raise ClassifierError(
                    f"{loaded.file}: classifier.category_model: none of its labels ({', '.join(labels[:20])}) is "
                    "mapped to a category; map them with categories[].mmlu_categories"
                )
            model_classifiers[method] = _warmed_up(DomainScorer(loaded, labels, mapping, models))
            classifiers.append(_with_cache(model_classifiers[method], classification_cache))
        elif method == "mcp" and configured:
            tool = _open_tool(loaded, before)
            from vllm_lora_router.classifiers.mcp.classifier import McpClassifier

            classifiers.append(McpClassifier(config, tool, served_name))
    within_ms = deadline_ms(config, model_classifiers)
    for classifier in model_classifiers.values():
        # A text that arrives while a batch runs waits for that batch and then for its own. Under load, both take longer
        # than the measured cost: twice as long must still be in time.
        classifier.batcher.budget_s = within_ms / 1000 / 4
    log_deadline(config, model_classifiers, within_ms)
    cascade = Cascade(classifiers, within_ms)
    return Classifiers(cascade, tuple(mapping), models, model_classifiers, classification_cache, tool)


def needs_encoder(loaded: LoadedConfig) -> bool:
    """Return whether an embedding rule or a head needs the encoder."""
    rules = _allowed_rules(loaded, "embedding", loaded.config.embedding_rules)
    return bool(rules) or head_source(loaded.config) is not None


def _open_tool(loaded: LoadedConfig, before: Classifiers | None) -> "McpTool":
    """Open the MCP tool. The session in effect is kept if the tool's settings did not change."""
    try:
        from vllm_lora_router.classifiers.mcp.classifier import open_tool
    except ImportError as error:
        raise ClassifierError(
            f"{loaded.file}: classifier.mcp_category_model needs the package mcp, version 2.0 or later ({error}); "
            "install it with: pip install 'vllm-lora-router[mcp]'"
        ) from error
    return open_tool(loaded, before.mcp_tool if before is not None else None)


def _load_in_parallel(loaded: LoadedConfig, models: ModelRegistry) -> None:
    """Load all models at once, because a model that is exported to ONNX on first use takes about a minute."""
    methods = configured_methods(loaded.config)
    loads: list[Callable[[], object]] = []
    if "embedding" in methods and needs_encoder(loaded):
        loads.append(lambda: load_encoder(loaded, models))
    if methods.get("domain"):
        loads.append(lambda: load_domain_model(loaded, models))
    with ThreadPoolExecutor(max(len(loads), 1)) as threads:
        for future in [threads.submit(load) for load in loads]:
            future.result()


def _embedding_scorer(loaded: LoadedConfig, encoder: Encoder) -> EmbeddingScorer:
    rules = _allowed_rules(loaded, "embedding", loaded.config.embedding_rules)
    head = load_head(loaded, encoder)
    allowed = [category.name for category in loaded.config.categories if category.may_be_chosen_by("embedding")]
    if head is not None and head_source(loaded.config) == "folder":
        for name in dict.fromkeys(rule.category for _, rule in rules):
            if name in head.head.categories:
                logger.warning("%s", rule_and_head_warning(name))
    return EmbeddingScorer(rules, encoder, loaded.config.router.text.windows, head, allowed)


def _with_cache(classifier: ModelClassifier, classification_cache: Cache) -> Classifier:
    """Wrap a classifier in the cache, unless its model is as fast as a cache lookup."""
    if classifier.scorer.thread_safe:
        return classifier
    return CachedClassifier(classifier, classification_cache)


def _warmed_up(scorer: Scorer) -> ModelClassifier:
    classifier = ModelClassifier(scorer)
    classifier.warm_up(WARM_UP_TEXT)
    took_ms = classifier.single_text_s * 1000
    logger.info("%s classifier: ready (%s); one short text takes %.1f ms", scorer.method, scorer.runs_on, took_ms)
    return classifier


def _allowed_rules(loaded: LoadedConfig, method: Method, rules: Sequence[Rule]) -> list[tuple[int, Rule]]:
    """Return the rules whose category allows the method, each with its position in the file."""
    by_name = {category.name: category for category in loaded.config.categories}
    return [(position, rule) for position, rule in enumerate(rules) if by_name[rule.category].may_be_chosen_by(method)]
