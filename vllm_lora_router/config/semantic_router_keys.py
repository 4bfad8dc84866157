"""Keys that are accepted without effect, and values of vllm-project/semantic-router that are not supported."""

from collections.abc import Iterator
from typing import Any

from vllm_lora_router.config.yaml_document import KeyPath, find_values

# Keys of an Envoy deployment or of another feature of vllm-project/semantic-router. A configuration with these keys
# works here without the feature.
IGNORED_KEYS: tuple[tuple[str | None, ...], ...] = (
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

EXTENSION_PREFIX = "x-"

# Path of a key, the feature that it requests, and the values that request only the default behaviour.
UNSUPPORTED_KEYS: tuple[tuple[tuple[str | None, ...], str, tuple[object, ...]], ...] = (
    (("router", "text", "take"), "text other than the last user message", ("last",)),
)


def ignored_keys(data: Any) -> Iterator[KeyPath]:
    """Yield the paths of the keys in `data` that have no effect."""
    for pattern in IGNORED_KEYS:
        for path, _ in find_values(data, *pattern):
            yield path


def extension_keys(data: dict[str, Any]) -> Iterator[KeyPath]:
    """Yield the top-level keys that begin with `x-`. They have no effect: they are a place for YAML anchors."""
    return ((key,) for key in data if key.startswith(EXTENSION_PREFIX))


def unsupported_keys(data: Any) -> Iterator[tuple[KeyPath, str | None]]:
    """Yield the paths of keys of unsupported features; with the feature if the value requests it, else with None."""
    for pattern, feature, default_values in UNSUPPORTED_KEYS:
        for path, value in find_values(data, *pattern):
            is_default = any(type(value) is type(default) and value == default for default in default_values)
            yield path, None if is_default else feature
