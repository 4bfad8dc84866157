"""Classification methods that a configuration enables, and the methods that can choose a category."""

from vllm_lora_router.config.head_source import head_source, head_texts
from vllm_lora_router.config.schema import Config
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


def methods_by_category(config: Config) -> dict[str, list[Method]]:
    """Return the methods that can choose each category.

    The labels of a domain model and the categories of a head in a folder are on disk. Both methods are therefore
    returned for every category that allows them.
    """
    source = head_source(config)
    by_embedding = {rule.category for rule in config.embedding_rules}
    if source == "folder":
        by_embedding.update(category.name for category in config.categories)
    elif source is not None:
        by_embedding.update(head_texts(config))
    choosable: dict[Method, set[str]] = {
        "keyword": {rule.category for rule in config.keyword_rules},
        "embedding": by_embedding,
    }
    configured: list[Method] = [method for method, is_configured in configured_methods(config).items() if is_configured]
    return {
        category.name: [
            method
            for method in configured
            if category.may_be_chosen_by(method) and (method not in choosable or category.name in choosable[method])
        ]
        for category in config.categories
    }
