"""Paths on which requests can be separated in vLLM's prefix cache, and the member `cache_salt` that separates them.

Requests with different values of `cache_salt` share nothing in the prefix cache. A request class without this field
ignores the member, and its requests would share the cache silently. Unknown paths are therefore treated as paths
without a salt.
"""

import re
from collections.abc import Callable

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.protocols.routes import ROUTES

# The request class has a `cache_salt`, and all of its prompts use it.
SALTED_PATHS = frozenset(
    {
        *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/systemone", "/generative_scoring", "/inference/v1/generate", "/invocations"),
        *("/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    }
)

# No prompt runs on the engine: requests that only render or parse a prompt, and requests that operate the server.
_PATHS_WITHOUT_PROMPT = frozenset(
    {
        *(route.path for route in ROUTES.values() if route.dry_run),
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/ping", "/start_profile", "/stop_profile"),
        *("/abort_requests", "/inference/v1/abort_requests", "/pause", "/resume", "/fault_tolerance/apply"),
        *("/sleep", "/wake_up", "/release_kv_cache_memory", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
        *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc"),
        *("/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/update_weights", "/weight_checker"),
        *("/start_weight_update", "/start_draft_weight_update", "/finish_weight_update", "/update_weight_version"),
    }
)
_CANCEL = re.compile("/v1/responses/[^/]+/cancel")

# vLLM's limits of a salt (validate_cache_salt in vllm/entrypoints/generate/base/protocol.py).
_MAX_LENGTH = 128
_FORBIDDEN = frozenset("@/\\\0")


def runs_no_prompt(path: str) -> bool:
    """Return whether a POST to this path does not use the prefix cache."""
    return path in _PATHS_WITHOUT_PROMPT or _CANCEL.fullmatch(path) is not None


def write_salt(members: Members, salt_for: Callable[[str | None], str]) -> bool:
    """Write a salt. Return False, and write nothing, if vLLM refuses the client's own salt.

    Args:
        salt_for: makes the salt from the client's own, which is None if the client sends none.
    """
    raw = members.get("cache_salt")
    client_salt = json_edit.string_value(raw)
    if json_edit.has_value(raw) and (client_salt is None or not _is_valid(client_salt)):
        return False
    members["cache_salt"] = json_edit.encode(salt_for(client_salt))
    return True


def _is_valid(salt: str) -> bool:
    try:
        salt.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which Pydantic does not accept as text
    return 0 < len(salt) <= _MAX_LENGTH and not _FORBIDDEN & set(salt)
