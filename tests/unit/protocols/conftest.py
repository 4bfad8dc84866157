"""Helpers that read a request and apply an edit to it through one API protocol."""

import json
from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import ApiProtocol
from vllm_lora_router.types import AppliedEdit, Edit, Mode, Query, Reasoning

PROMPT = "You are a medical expert."
THINKING = Reasoning(True, template_kwargs={"enable_thinking": True})
NO_THINKING = Reasoning(False, template_kwargs={"enable_thinking": False})
EFFORT = Reasoning(True, effort="high")


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def queries(protocol: ApiProtocol, request: dict[str, Any]) -> tuple[Query, ...]:
    return protocol.read(json_edit.object_members(json.dumps(request).encode()))


def text_and_turns(protocol: ApiProtocol, request: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the classified text and all turns of a request with one query."""
    (query,) = queries(protocol, request)
    assert query.api == protocol.api
    return query.text, query.turns


def apply_edit(protocol: ApiProtocol, request: dict[str, Any], edit: Edit) -> tuple[dict[str, Any], AppliedEdit]:
    members = json_edit.object_members(json.dumps(request).encode())
    applied = protocol.write(members, edit)
    return json.loads(json_edit.join_members(members)), applied


def with_prompt(protocol: ApiProtocol, request: dict[str, Any], mode: Mode = "insert") -> dict[str, Any]:
    """Return the request with the category's system prompt, without its model."""
    after, applied = apply_edit(protocol, request, Edit("m", PROMPT, mode))
    assert after.pop("model") == "m" and applied.system_prompt
    return after


def with_reasoning(protocol: ApiProtocol, request: dict[str, Any], reasoning: Reasoning) -> dict[str, Any]:
    """Return the request with the category's reasoning, without its model."""
    after, applied = apply_edit(protocol, request, Edit("m", reasoning=reasoning))
    assert after.pop("model") == "m" and applied.reasoning is reasoning.on
    return after


def assert_only_model_written(protocol: ApiProtocol, request: dict[str, Any], edit: Edit) -> None:
    """Assert that only the model is written, and that the result reports nothing else."""
    after, applied = apply_edit(protocol, request, edit)
    assert after == {**request, "model": edit.model}
    assert applied == AppliedEdit()
