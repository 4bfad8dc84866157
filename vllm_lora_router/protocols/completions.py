"""Prompts without roles: /v1/completions, /generative_scoring, and requests of token ids.

These APIs have no place for a system prompt or for reasoning. Only the model is written.
"""

from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import ApiProtocol, Members
from vllm_lora_router.types import Query


def read_queries(members: Members) -> tuple[Query, ...]:
    """Return one query per prompt. Token ids and embeddings give one query without text."""
    prompt = members.get("prompt", b"null")
    if (prompts := json_edit.list_items(prompt)) is None:
        return (_query(json_edit.decode(prompt)),)
    texts = [json_edit.decode(raw) for raw in prompts]
    if texts and all(isinstance(text, str) for text in texts):
        return tuple(_query(text) for text in texts)
    return (_query(None),)


def read_scoring_query(members: Members) -> tuple[Query, ...]:
    """Return the text of `query`, to which the items are scored as continuations."""
    return (_query(json_edit.decode(members.get("query", b"null")), "scoring"),)


def read_no_text(members: Members) -> tuple[Query, ...]:
    """Return a query without text, because token ids are not decoded."""
    return (_query(None, "tokens"),)


def _query(text: Any, api: str = "completions") -> Query:
    return Query(text, (text,), api=api) if isinstance(text, str) else Query("", api=api)


COMPLETIONS = ApiProtocol("completions", "prompt", read_queries, id_prefix="cmpl-")
SCORING = ApiProtocol("scoring", "query", read_scoring_query)
TOKENS = ApiProtocol("tokens", "token_ids", read_no_text)
