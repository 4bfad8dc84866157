"""Which requests can be kept apart in vLLM's prefix cache, and the member that does it.

Requests of different `cache_salt` share nothing there. A request class without such a field ignores the member, and its
requests would share the cache without a word: so what is not known here is taken for one of those.
"""

import re
from collections.abc import Callable

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members
from vllm_lora_router.protocols.routes import ROUTES

# The body has a `cache_salt`, and whatever of it runs on the engine carries that.
SALTED = frozenset(
    {
        *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/systemone", "/generative_scoring", "/inference/v1/generate", "/invocations"),
        *("/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    }
)

# No prompt runs on the engine: what only renders one, or reads one back, and what operates the server.
_RUNS_NOTHING = frozenset(
    {
        *(route.path for route in ROUTES.values() if route.dry),
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/ping", "/start_profile", "/stop_profile"),
        *("/abort_requests", "/inference/v1/abort_requests", "/pause", "/resume", "/fault_tolerance/apply"),
        *("/sleep", "/wake_up", "/release_kv_cache_memory", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
        *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc"),
        *("/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/update_weights", "/weight_checker"),
        *("/start_weight_update", "/start_draft_weight_update", "/finish_weight_update", "/update_weight_version"),
    }
)
_CANCEL = re.compile("/v1/responses/[^/]+/cancel")

# What vLLM takes for a salt (validate_cache_salt in vllm/entrypoints/generate/base/protocol.py).
_LONGEST = 128
_FORBIDDEN = frozenset("@/\\\0")


def runs_nothing(path: str) -> bool:
    """Whether a POST there leaves the prefix cache alone."""
    return path in _RUNS_NOTHING or _CANCEL.fullmatch(path) is not None


def write(members: Members, salt_for: Callable[[str | None], str]) -> bool:
    """Writes the salt that is made for the client's own (None: it has none), and says whether it did.

    One that vLLM refuses stays as it is, so that vLLM does.
    """
    raw = members.get("cache_salt")
    own = json_edit.text(raw)
    if json_edit.says_something(raw) and (own is None or not _is_salt(own)):
        return False
    members["cache_salt"] = json_edit.dump(salt_for(own))
    return True


def _is_salt(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which pydantic does not take for text
    return 0 < len(text) <= _LONGEST and not _FORBIDDEN & set(text)
