"""Prompts without roles: /v1/completions, /generative_scoring, and what is tokens already.

They have no place for a system prompt or for reasoning: the model alone is written.
"""

from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Members, Shape
from vllm_lora_router.types import Query


def read(members: Members) -> tuple[Query, ...]:
    """One query a prompt; token ids and embeddings cannot be read and give one without text."""
    prompt = members.get("prompt", b"null")
    if (prompts := json_edit.items(prompt)) is None:
        return (_query(json_edit.read(prompt)),)
    texts = [json_edit.read(raw) for raw in prompts]
    if texts and all(isinstance(text, str) for text in texts):
        return tuple(_query(text) for text in texts)
    return (_query(None),)


def read_scored(members: Members) -> tuple[Query, ...]:
    """The query whose continuations are scored."""
    return (_query(json_edit.read(members.get("query", b"null")), "scoring"),)


def read_tokens(members: Members) -> tuple[Query, ...]:
    """Nothing: token ids are not read."""
    return (_query(None, "tokens"),)


def _query(text: Any, api: str = "completions") -> Query:
    return Query(text, (text,), api=api) if isinstance(text, str) else Query("", api=api)


COMPLETIONS = Shape("completions", "prompt", read, id_prefix="cmpl-")
SCORING = Shape("scoring", "query", read_scored)
TOKENS = Shape("tokens", "token_ids", read_tokens)
