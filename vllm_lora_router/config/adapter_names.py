"""Rules for the names of adapters, from vLLM and from the router."""

from collections.abc import Collection

from vllm_lora_router.config.names import name_problem
from vllm_lora_router.text import quoted

# For every chat request to the base model with content of type T ("image_url" counts as "image"), vLLM applies the
# adapter called T if there is one (_get_message_types and _get_active_default_mm_loras in
# vllm/entrypoints/serve/engine/serving.py).
CONTENT_TYPES = frozenset({"text", "image", "audio", "video", "input"})


def invalid_name_reason(name: str, base_names: Collection[str], reserved: Collection[str]) -> str | None:
    """Return why `name` cannot be the name of an adapter, with the remedy; None if it can.

    Args:
        base_names: names that the base model is served under.
        reserved: the auto names, with which a client requests routing.
    """
    if problem := name_problem(name):
        return f"adapter name {quoted(name)} {problem}"
    if {".", ".."} & set(name.split("/")):
        return f"adapter name {name!r} is a path; use another name"
    if name in CONTENT_TYPES:
        return (
            f"adapter name {name!r}: vLLM applies an adapter of this name to all chat requests for the base model "
            f"that have {name!r} content; use another name, such as '{name}-lora'"
        )
    if name in base_names:
        return f"adapter name {name!r} is the base model's served name; use another name, such as '{name}-lora'"
    if name in reserved:
        return f"adapter name {name!r} is an auto name, which requests routing; use another name, such as '{name}-lora'"
    return None
