"""Classification methods that a configuration enables, and the methods that can choose a category."""

from vllm_lora_router.config.head_source import head_source, head_texts
from vllm_lora_router.config.schema import Category, Config
from vllm_lora_router.types import Method


def configured_methods(config: Config) -> dict[Method, bool]:
    """Return the methods of `router.methods` in their order, and for each whether the configuration enables it."""
    configured: dict[Method, bool] = {
        "keyword": bool(config.keyword_rules),
        "embedding": bool(config.embedding_rules) or head_source(config) is not None,
        "domain": bool(config.classifier.category_model.model_id),
        "mcp": config.classifier.mcp_category_model.enabled,
    }
    return {method: configured[method] for method in config.router.methods}


def methods_for_category(category: Category, config: Config) -> list[Method]:
    """Return the methods that can choose a category.

    The labels of a domain model and the categories of a head in a folder are on disk. Both methods are therefore
    returned for every category that allows them.
    """
    has_rule = {
        "keyword": any(rule.category == category.name for rule in config.keyword_rules),
        "embedding": any(rule.category == category.name for rule in config.embedding_rules)
        or head_source(config) == "folder"
        or (head_source(config) is not None and category.name in head_texts(config)),
    }
    return [
        method
        for method, is_configured in configured_methods(config).items()
        if is_configured and category.may_be_chosen_by(method) and has_rule.get(method, True)
    ]
