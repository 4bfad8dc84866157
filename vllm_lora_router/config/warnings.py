"""Warnings about a valid configuration: keys and entries without effect, and categories that cannot be chosen."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_lora_router.config.head_source import head_source, head_texts
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.methods import configured_methods, methods_by_category
from vllm_lora_router.config.schema import Config, EmbeddingRule, KeywordRule, ModelScore
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.types import Method


@dataclass(frozen=True)
class ConfigWarning:
    """A remark about a configuration. `level` is logging.INFO or logging.WARNING."""

    level: int
    text: str


def config_warnings(loaded: LoadedConfig, base: ServedBase) -> Iterator[ConfigWarning]:
    """Yield the warnings that follow from the configuration, without reading any other file."""
    config = loaded.config
    if loaded.ignored:
        yield _info(f"keys without effect in this router: {', '.join(loaded.ignored)}")
    if base.alias != base.served_name:
        yield _info(f"{base.alias!r} in the configuration is the served model {base.served_name!r}")
    yield from _other_bases(config, base)
    if base.family_name and base.family is None:
        yield _warning(
            f"reasoning_family {base.family_name!r} is neither built in nor defined under reasoning_families: "
            "use_reasoning and reasoning_effort are not written, and x-vsr-selected-reasoning is off"
        )
    elif base.family is None and any(entry.use_reasoning for entry in _scores_of_base(config, base.alias)):
        yield _warning(f"model_config.{base.alias} has no reasoning_family: use_reasoning is not written")
    yield from _unused_scores(config, base)
    yield from _limited_routing(config)
    yield from _unreachable(config)
    yield from _head(config)
    if config.classifier.category_model.use_cpu and config.classifier.category_model.model_id:
        yield _info(
            "category_model.use_cpu is true: the domain model runs on the CPU and uses the server's own cores; remove "
            "the key to run it on the GPU that serves the model"
        )


def rule_and_head_warning(category: str) -> str:
    """Return the warning about a category that has embedding rules and is also a category of the head."""
    return (
        f"category {category!r} is in embedding_rules and in the head: a rule that reaches its threshold takes "
        "precedence, and otherwise the head decides; remove one of them unless both are intended"
    )


def _info(text: str) -> ConfigWarning:
    return ConfigWarning(logging.INFO, text)


def _warning(text: str) -> ConfigWarning:
    return ConfigWarning(logging.WARNING, text)


def _scores_of_base(config: Config, alias: str) -> Iterator[ModelScore]:
    for category in config.categories:
        yield from (entry for entry in category.model_scores if entry.model == alias)


def _other_bases(config: Config, base: ServedBase) -> Iterator[ConfigWarning]:
    skipped = sorted(
        {
            f"{category.name!r} ({entry.model})"
            for category in config.categories
            for entry in category.model_scores
            if entry.model != base.alias
        }
    )
    if skipped:
        yield _warning(
            f"this server serves {base.alias!r}; model_scores of other bases are ignored: {', '.join(skipped)}"
        )
    for category in config.categories:
        if all(entry.model != base.alias for entry in category.model_scores):
            yield _warning(f"category {category.name!r} has no entry for {base.alias!r}: default_model serves it")


def _unused_scores(config: Config, base: ServedBase) -> Iterator[ConfigWarning]:
    for category in config.categories:
        entries = [entry for entry in category.model_scores if entry.model == base.alias]
        if len(entries) > 1 and category.selection == "highest":
            highest = max(entries, key=lambda entry: entry.score)
            others = ", ".join(
                f"{entry.lora_name or 'the base'} ({entry.score:g})" for entry in entries if entry is not highest
            )
            yield _warning(
                f"category {category.name!r}: {highest.lora_name or 'the base'} ({highest.score:g}) serves every "
                f"request; {others} is only tried when it cannot be served (selection: weighted "
                "distributes users by score)"
            )


def _limited_routing(config: Config) -> Iterator[ConfigWarning]:
    """Yield the settings of `router` that keep requests from being routed, and an A/B test without a salt."""
    settings, default = config.router, f"default_model ({config.default_model})"
    if settings.mode == "off":
        yield _warning(f"router.mode is off: requests are not classified; every auto request gets {default}")
    elif settings.mode == "observe":
        yield _warning(
            "router.mode is observe: decisions are made, shown in headers and recorded, but not applied; every auto "
            f"request gets {default}"
        )
    elif settings.share < 1:
        yield _info(f"router.share is {settings.share:g}: the requests of all other users get {default}")
    weighted = any(category.selection == "weighted" for category in config.categories)
    if (weighted or settings.share < 1) and not settings.ab.salt:
        yield _info(
            "router.ab.salt is empty: anyone who knows a user's id can compute its arm, and find it in the audit record"
        )


def _head(config: Config) -> Iterator[ConfigWarning]:
    source = head_source(config)
    if source == "descriptions":
        yield _warning(
            "the head is fitted from the categories' descriptions alone; a few `examples` per category give much "
            "better results, which vllm-lora-router validate --files measures"
        )
    if source in ("examples", "descriptions"):
        categories_with_rules = {rule.category for rule in config.embedding_rules}
        for name, texts in head_texts(config).items():
            if name in categories_with_rules and any(text.is_example for text in texts):
                yield _warning(rule_and_head_warning(name))
    elif source is None:
        for category in config.categories:
            if category.examples:
                is_method = "embedding" in config.router.methods
                reason = "head is off" if is_method else "router.methods does not contain embedding"
                yield _warning(f"the examples of category {category.name!r} have no effect: {reason}")


def _unreachable(config: Config) -> Iterator[ConfigWarning]:
    by_name = {category.name: category for category in config.categories}
    rules: list[tuple[Method, str, Sequence[KeywordRule | EmbeddingRule]]] = [
        ("keyword", "keyword_rules", config.keyword_rules),
        ("embedding", "embedding_rules", config.embedding_rules),
    ]
    for method, block, rules_of_method in rules:
        for index, rule in enumerate(rules_of_method):
            if method not in config.router.methods:
                yield _warning(f"{block}[{index}] has no effect: router.methods does not contain {method}")
            elif not by_name[rule.category].may_be_chosen_by(method):
                yield _warning(
                    f"{block}[{index}] has no effect: the methods of category {rule.category!r} do not contain {method}"
                )
    domain = bool(config.classifier.category_model.model_id)
    if domain and "domain" not in config.router.methods:
        yield _warning("classifier.category_model has no effect: router.methods does not contain domain")
    if config.classifier.mcp_category_model.enabled and "mcp" not in config.router.methods:
        yield _warning("classifier.mcp_category_model has no effect: router.methods does not contain mcp")
    if not any(configured_methods(config).values()):
        yield _warning(
            "no method is configured: default_model serves every request; add keyword_rules, embedding_rules, "
            "classifier.category_model or classifier.mcp_category_model"
        )
        return
    for name, methods in methods_by_category(config).items():
        if not methods:
            yield _warning(f"no method can choose category {name!r}")
