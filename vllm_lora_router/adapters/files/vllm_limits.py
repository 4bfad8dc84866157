"""The names an adapter may not have."""

import unicodedata
from collections.abc import Collection

# vLLM looks for an adapter of this name for every base chat request whose content has a part of this type, "image_url"
# read as "image" (_get_message_types and _get_active_default_mm_loras in vllm/entrypoints/serve/engine/serving.py).
CONTENT_TYPES = frozenset({"text", "image", "audio", "video", "input"})

# Control characters, line and paragraph separators, lone surrogates: they break log lines, headers and JSON.
UNPRINTABLE = frozenset({"Cc", "Zl", "Zp", "Cs"})


def refuse_reason(name: str, base_names: Collection[str], reserved: Collection[str]) -> str | None:
    """Why `name` cannot be an adapter's name, with the way out, or None if it can.

    `base_names` are the names that the base is served under, `reserved` those that mean "choose for me".
    """
    if not name or name.isspace():
        return "an adapter's name is empty; give it one"
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        return f"adapter name {name!r} contains a line break or a control character; take it out"
    if name != name.strip():
        return f"adapter name {name!r} begins or ends with white space; write {name.strip()!r}"
    if name in CONTENT_TYPES:
        return (
            f"adapter name {name!r}: vLLM applies an adapter of this name by itself to chat requests for the base "
            f"model that have {name!r} content; call it otherwise, such as '{name}-lora'"
        )
    if name in base_names:
        return f"adapter name {name!r} is the base model's served name; call it otherwise, such as '{name}-lora'"
    if name in reserved:
        return f"adapter name {name!r} asks the router to choose; call it otherwise, such as '{name}-lora'"
    return None
