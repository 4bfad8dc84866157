"""Upgrade of audit lines from schema version 1 to version 2."""

from collections.abc import Mapping
from typing import Any

from vllm_lora_router.observability.audit_schema import SCHEMA_VERSION, AuditLine

# Old key -> new key, by place in the line.
_DECISION = {"asked_for": "requested_model", "refused": "skipped", "ms": "timings_ms"}
_SKIPPED = {"why": "reason"}
_SERVED = {"digest": "content_digest"}
_PLAN = {"draw": "assignment"}
_STEP = {"ms": "duration_ms", "sure": "accepted"}
_EVIDENCE = {"not_asked": "not_called", "not_by": "excluded"}  # of the MCP classifier
_ASSIGNMENT = {"by": "key_source"}
_SHARE = {"by": "key_source", "at": "position"}
_AFFINITY = {"held": "kept", "against": "alternative", "before": "earlier_topic"}
_TURN = {"back": "turns_ago", "held_score": "active_topic_score"}
_OUTCOME = {"finish": "finish_reason"}

_REASONS = {"held": "affinity", "unsure": "below_threshold", "share": "not_in_share"}


def upgrade(line: AuditLine) -> AuditLine:
    """Return a line of schema version 1 as a line of version 2.

    The upgrade renames keys and reasons; it changes no other value. Parts of an unexpected type stay as they are.
    """
    line = {"schema": SCHEMA_VERSION} | line | {"schema": SCHEMA_VERSION}  # the first key, as in a new line
    if line.get("type") == "outcome":
        return _renamed(line, _OUTCOME)
    if line.get("type") != "decision":
        return line
    line = _with_reason(_renamed(line, _DECISION))
    line["plan"] = _plan(line.get("plan"))
    line["served"] = _renamed(line.get("served"), _SERVED)
    if "skipped" in line:
        line["skipped"] = _each(line["skipped"], _SKIPPED)
    return line


def _plan(plan: Any) -> Any:
    if not isinstance(plan, dict):
        return plan
    plan = _with_reason(_renamed(plan, _PLAN))
    for key, names in (("assignment", _ASSIGNMENT), ("share", _SHARE), ("affinity", _AFFINITY)):
        if key in plan:
            plan[key] = _renamed(plan[key], names)
    if "steps" in plan:
        plan["steps"] = _each(plan["steps"], _STEP)
        for step in plan["steps"] if isinstance(plan["steps"], list) else ():
            if isinstance(step, dict) and "evidence" in step:
                step["evidence"] = _renamed(step["evidence"], _EVIDENCE)
    affinity = plan.get("affinity")
    if isinstance(affinity, dict) and "turns" in affinity:
        affinity["turns"] = _each(affinity["turns"], _TURN)
    return plan


def _renamed(part: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): value for key, value in part.items()} if isinstance(part, dict) else part


def _each(parts: Any, names: Mapping[str, str]) -> Any:
    return [_renamed(part, names) for part in parts] if isinstance(parts, list) else parts


def _with_reason(part: AuditLine) -> AuditLine:
    reason = part.get("reason")
    if isinstance(reason, str) and reason in _REASONS:
        part["reason"] = _REASONS[reason]
    return part
