"""Keys that the schema leaves out: the reference's that mean nothing here, and ours that are not built yet."""

from collections.abc import Iterator
from typing import Any

from vllm_lora_router.config.yaml_document import Path_, find

# Part of an Envoy deployment or of another feature of the reference. A configuration that has them works here without.
IGNORED: tuple[tuple[str | None, ...], ...] = (
    *(
        (key,)
        for key in (
            *("api", "authz", "batch_classification", "bert_model", "clear_route_cache", "embedding_models"),
            *("external_models", "feedback_detector", "hallucination_mitigation", "looper", "memory"),
            *("model_selection", "observability", "prompt_guard", "ratelimit", "response_api"),
            *("semantic_cache", "strategy", "tools", "vector_store", "vllm_endpoints"),
        )
    ),
    *(("classifier", key) for key in ("pii_model", "preference_model")),
    *(("classifier", "category_model", key) for key in ("use_mmbert_32k",)),
    *(
        ("model_config", None, key)
        for key in ("access_key", "external_model_ids", "param_size", "pii_policy", "preferred_endpoints", "pricing")
    ),
    *(
        ("categories", None, key)
        for key in (
            *("jailbreak_enabled", "jailbreak_threshold", "pii_enabled", "pii_threshold"),
            *("semantic_cache_enabled", "semantic_cache_similarity_threshold"),
        )
    ),
)

# Path, the feature, and the values that ask for nothing but what happens anyway.
NOT_BUILT: tuple[tuple[tuple[str | None, ...], str, tuple[object, ...]], ...] = (
    (("router", "text", "take"), "text other than the last user message", ("last",)),
)


def ignored(data: Any) -> Iterator[Path_]:
    """The paths of keys that mean nothing here."""
    for pattern in IGNORED:
        for path, _ in find(data, *pattern):
            yield path


def not_built(data: Any) -> Iterator[tuple[Path_, str | None]]:
    """The paths of keys whose feature is not built; with the feature when the value asks for it, else None."""
    for pattern, feature, harmless in NOT_BUILT:
        for path, value in find(data, *pattern):
            asks_nothing = any(type(value) is type(other) and value == other for other in harmless)
            yield path, None if asks_nothing else feature
