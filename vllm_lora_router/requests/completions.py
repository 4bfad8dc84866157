"""Completions: /v1/completions."""

from typing import Any

from vllm_lora_router.requests import body
from vllm_lora_router.values import Edit, Query, Written


def read(members: dict[str, Any]) -> tuple[Query, ...]:
    """One query a prompt; token ids and embeddings cannot be read and give one without text."""
    prompt = members.get("prompt", b"null")
    if (prompts := body.items(prompt)) is None:
        return (_query(body.read(prompt)),)
    texts = [body.read(raw) for raw in prompts]
    if texts and all(isinstance(text, str) for text in texts):
        return tuple(_query(text) for text in texts)
    return (_query(None),)


def write(members: dict[str, Any], edit: Edit) -> Written:
    """A completion has no place for a system prompt or for reasoning: the model alone is written."""
    members["model"] = body.dump(edit.model)
    return Written()


def _query(text: Any) -> Query:
    return Query(text, (text,), api="completions") if isinstance(text, str) else Query("", api="completions")
