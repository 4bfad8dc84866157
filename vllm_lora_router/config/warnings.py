"""What a right configuration still leaves to be said: keys without meaning, entries without effect, dead ends."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_lora_router.config.head_source import head_source, texts_of
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.schema import Category, Config, EmbeddingRule, KeywordRule, ModelScore
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.types import Method


@dataclass(frozen=True)
class Notice:
    """Something a user should know; `level` is logging.INFO or logging.WARNING."""

    level: int
    text: str


def notices(loaded: Loaded, base: ServedBase) -> Iterator[Notice]:
    """Everything that can be said from the text of the configuration alone."""
    config = loaded.config
    if loaded.ignored:
        yield Notice(logging.INFO, f"keys that mean nothing here: {', '.join(loaded.ignored)}")
    if base.alias != base.served_name:
        yield Notice(logging.INFO, f"{base.alias!r} in the configuration is the served model {base.served_name!r}")
    yield from _other_bases(config, base)
    if base.family_name and base.family is None:
        yield Notice(
            logging.WARNING,
            f"reasoning_family {base.family_name!r} has no preset and no entry under reasoning_families: "
            "use_reasoning and reasoning_effort are not written, x-vsr-selected-reasoning says off",
        )
    elif base.family is None and any(entry.use_reasoning for _, entry in entries(config, base.alias)):
        yield Notice(
            logging.WARNING, f"model_config.{base.alias} has no reasoning_family: use_reasoning is not written"
        )
    yield from _unused_scores(config, base)
    yield from _not_in_force(config)
    yield from _unreachable(config)
    yield from _of_head(config)
    if config.classifier.category_model.use_cpu and config.classifier.category_model.model_id:
        yield Notice(
            logging.INFO,
            "category_model.use_cpu is true: the domain model runs on the CPU and takes its time from the server's own "
            "cores; without it, it runs on the GPU that serves the model",
        )


def entries(config: Config, alias: str) -> Iterator[tuple[str, ModelScore]]:
    """Each category's name with each of its entries for the base `alias`."""
    for category in config.categories:
        for entry in category.model_scores:
            if entry.model == alias:
                yield category.name, entry


def methods_of(config: Config) -> dict[Method, bool]:
    """The methods in their order, and whether the configuration gives each anything to go by."""
    configured: dict[Method, bool] = {
        "keyword": bool(config.keyword_rules),
        "embedding": bool(config.embedding_rules) or head_source(config) is not None,
        "domain": bool(config.classifier.category_model.model_id),
        "mcp": config.classifier.mcp_category_model.enabled,
    }
    return {method: configured[method] for method in config.router.methods}


def ways_to(category: Category, config: Config) -> list[Method]:
    """The methods that can choose a category, as far as the text says: the domain model's labels are on disk."""
    ruled = {
        "keyword": any(rule.category == category.name for rule in config.keyword_rules),
        "embedding": any(rule.category == category.name for rule in config.embedding_rules)
        or head_source(config) == "folder"  # which categories it knows stands on disk
        or (head_source(config) is not None and category.name in texts_of(config)),
    }
    return [
        method
        for method, on in methods_of(config).items()
        if on and category.may_be_chosen_by(method) and ruled.get(method, True)
    ]


def _other_bases(config: Config, base: ServedBase) -> Iterator[Notice]:
    skipped = sorted(
        {
            f"{category.name!r} ({entry.model})"
            for category in config.categories
            for entry in category.model_scores
            if entry.model != base.alias
        }
    )
    if skipped:
        yield Notice(
            logging.WARNING,
            f"this server is {base.alias!r}; model_scores for other bases are skipped: {', '.join(skipped)}",
        )
    for category in config.categories:
        if all(entry.model != base.alias for entry in category.model_scores):
            yield Notice(
                logging.WARNING, f"category {category.name!r} has no entry for {base.alias!r}: it takes default_model"
            )


def _unused_scores(config: Config, base: ServedBase) -> Iterator[Notice]:
    for category in config.categories:
        own = [entry for entry in category.model_scores if entry.model == base.alias]
        if len(own) > 1 and category.selection == "highest":
            first = max(own, key=lambda entry: entry.score)
            rest = ", ".join(
                f"{entry.lora_name or 'the base'} ({entry.score:g})" for entry in own if entry is not first
            )
            yield Notice(
                logging.WARNING,
                f"category {category.name!r}: {first.lora_name or 'the base'} ({first.score:g}) takes every request; "
                f"{rest} is only tried when it cannot be served (selection: weighted would draw by score)",
            )


def _not_in_force(config: Config) -> Iterator[Notice]:
    settings, takes = config.router, f"takes default_model ({config.default_model})"
    if settings.mode == "off":
        yield Notice(logging.WARNING, f"router.mode is off: nothing is classified, every auto request {takes}")
    elif settings.mode == "observe":
        said = "decisions are made, shown and recorded, and none is applied"
        yield Notice(logging.WARNING, f"router.mode is observe: {said}: every auto request {takes}")
    elif settings.share < 1:
        yield Notice(logging.INFO, f"router.share is {settings.share:g}: the rest of the users {takes}")
    weighted = any(category.selection == "weighted" for category in config.categories)
    if (weighted or settings.share < 1) and not settings.ab.salt:
        yield Notice(
            logging.INFO,
            "router.ab.salt is empty: whoever knows a user's id can tell its arm, and find it in the audit record",
        )


def _of_head(config: Config) -> Iterator[Notice]:
    source = head_source(config)
    if source == "descriptions":
        yield Notice(
            logging.WARNING,
            "categories are told apart by their descriptions alone; a few `examples` each do much better, and then "
            "vllm-lora-router validate --files says how well",
        )
    if source in ("examples", "descriptions"):
        ruled = {rule.category for rule in config.embedding_rules}
        for name in texts_of(config):
            if name in ruled and source == "examples" and _examples(config, name):
                yield Notice(logging.WARNING, in_both(name))
    elif source is None:
        for category in config.categories:
            if category.examples:
                said = (
                    "router.methods leaves embedding out" if "embedding" not in config.router.methods else "head is off"
                )
                yield Notice(logging.WARNING, f"the examples of category {category.name!r} do nothing: {said}")


def in_both(category: str) -> str:
    """What to say of a category that has embedding rules and is in the head, too."""
    return (
        f"category {category!r} is in embedding_rules and in the head: a rule that reaches its threshold comes first, "
        "and the head is asked after it; leave one of them out, unless that is meant"
    )


def _examples(config: Config, name: str) -> bool:
    return any(category.examples for category in config.categories if category.name == name)


def _unreachable(config: Config) -> Iterator[Notice]:
    by_name = {category.name: category for category in config.categories}
    rules: list[tuple[Method, str, Sequence[KeywordRule | EmbeddingRule]]] = [
        ("keyword", "keyword_rules", config.keyword_rules),
        ("embedding", "embedding_rules", config.embedding_rules),
    ]
    for method, block, of_block in rules:
        for index, rule in enumerate(of_block):
            if method not in config.router.methods:
                yield Notice(logging.WARNING, f"{block}[{index}] does nothing: router.methods leaves {method} out")
            elif not by_name[rule.category].may_be_chosen_by(method):
                yield Notice(
                    logging.WARNING,
                    f"{block}[{index}] does nothing: the methods of {rule.category!r} leave {method} out",
                )
    domain = bool(config.classifier.category_model.model_id)
    if domain and "domain" not in config.router.methods:
        yield Notice(logging.WARNING, "classifier.category_model does nothing: router.methods leaves domain out")
    if config.classifier.mcp_category_model.enabled and "mcp" not in config.router.methods:
        yield Notice(logging.WARNING, "classifier.mcp_category_model does nothing: router.methods leaves mcp out")
    if not any(methods_of(config).values()):
        yield Notice(
            logging.WARNING,
            "no method is configured: every request takes default_model; add keyword_rules, embedding_rules, "
            "classifier.category_model or classifier.mcp_category_model",
        )
        return
    for category in config.categories:
        if not ways_to(category, config):
            yield Notice(logging.WARNING, f"no method can choose category {category.name!r}")
