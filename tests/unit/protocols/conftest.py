"""A request through one shape: what is read of it, and what an edit makes of it."""

import json
from typing import Any

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.protocol import Shape
from vllm_lora_router.types import AppliedEdit, Edit, Mode, Query, Reasoning

OURS = "You are a medical expert."
THINK = Reasoning(True, template_kwargs={"enable_thinking": True})
DO_NOT = Reasoning(False, template_kwargs={"enable_thinking": False})
EFFORT = Reasoning(True, effort="high")


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def queries(shape: Shape, request: dict[str, Any]) -> tuple[Query, ...]:
    return shape.read(json_edit.fields(json.dumps(request).encode()))


def said(shape: Shape, request: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The text that is classified and all the turns, of a request that is one query."""
    (query,) = queries(shape, request)
    assert query.api == shape.api
    return query.text, query.turns


def edited(shape: Shape, request: dict[str, Any], edit: Edit) -> tuple[dict[str, Any], AppliedEdit]:
    members = json_edit.fields(json.dumps(request).encode())
    written = shape.write(members, edit)
    return json.loads(json_edit.join(members)), written


def prompted(shape: Shape, request: dict[str, Any], mode: Mode = "insert") -> dict[str, Any]:
    """The request with our system prompt in it, but for its model."""
    after, written = edited(shape, request, Edit("m", OURS, mode))
    assert after.pop("model") == "m" and written.system_prompt
    return after


def reasoned(shape: Shape, request: dict[str, Any], reasoning: Reasoning) -> dict[str, Any]:
    """The request with our reasoning in it, but for its model."""
    after, written = edited(shape, request, Edit("m", reasoning=reasoning))
    assert after.pop("model") == "m" and written.reasoning is reasoning.on
    return after


def untouched(shape: Shape, request: dict[str, Any], edit: Edit) -> None:
    """Asserts that the model alone was written, and that this is what is said."""
    after, written = edited(shape, request, edit)
    assert after == {**request, "model": edit.model}
    assert written == AppliedEdit()
