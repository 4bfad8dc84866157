"""The lines of the audit record: decisions, outcomes and feedback as JSON objects, and how much user text they keep."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from vllm_lora_router.types import Affinity, Classification, Client, Decision, Outcome, Step

# Every line carries it as `schema`. Lines without it are of version 1, which had other keys; see
# `vllm_lora_router.tools.audit.upgrade`.
SCHEMA_VERSION = 2

AuditLine = dict[str, Any]
# Returns the fields that a decision's line keeps of the classified texts: the texts, a keyed hash of each, or none.
TextRetention = Callable[[Sequence[str]], AuditLine]


def keep_full_text(texts: Sequence[str]) -> AuditLine:
    """Return the texts unchanged, as `text`."""
    return {"text": texts[0] if len(texts) == 1 else list(texts)}


def keep_hmac(key: bytes) -> TextRetention:
    """Return a function that keeps the HMAC-SHA-256 of each text, in hexadecimal, as `text_hmac`."""
    keyed = hmac.new(key, digestmod=hashlib.sha256)  # setting up the key takes longer than hashing a text

    def hexdigest(text: str) -> str:
        mac = keyed.copy()
        mac.update(text.encode("utf-8", "surrogatepass"))
        return mac.hexdigest()

    def keep(texts: Sequence[str]) -> AuditLine:
        return {"text_hmac": hexdigest(texts[0]) if len(texts) == 1 else [hexdigest(text) for text in texts]}

    return keep


def keep_no_text(texts: Sequence[str]) -> AuditLine:
    """Return no fields."""
    return {}


def text_hmac(text: str, key: bytes) -> str:
    """Return the HMAC-SHA-256 of one text, in hexadecimal, as `keep_hmac` writes it."""
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()


def decision_line(decision: Decision, at_s: float, texts: Sequence[str], retention: TextRetention) -> AuditLine:
    """Return a decision's line. It contains everything that is needed to replay the decision.

    Args:
        at_s: when the decision was made, in seconds since 1970.
        texts: the classified user texts, one for each prompt.
        retention: selects the form in which the line keeps `texts`.
    """
    plan, request, candidate = decision.plan, decision.request, decision.candidate
    timings_ms = {phase: round(duration_ms, 3) for phase, duration_ms in decision.timings_ms.items()}
    timings_ms["overhead"] = round(decision.overhead_ms, 3)
    line: AuditLine = {
        "type": "decision",
        "at": rfc3339(at_s),
        "id": decision.id,
        "key": decision.key,
        "config": plan.config_version,
        "path": request.path,
        "api": request.api,
        "requested_model": request.model,
        "tenant": request.tenant,
        "client": request.api_key_fingerprint,
        "prompts": request.prompts,
        **(retention(texts) if texts else {}),
        "reason": decision.reason,
        **({"rejected": True} if decision.is_rejected else {}),
        "plan": {
            "reason": plan.reason,
            "category": plan.category,
            "confidence": plan.confidence,
            "method": plan.method,
            "steps": [_step(step) for step in plan.steps],
            "candidates": [{"model": c.model, "adapter": c.adapter, "arm": c.arm} for c in plan.candidates],
        },
        "served": {
            "model": candidate.model,
            "adapter": candidate.adapter,
            "arm": candidate.arm,
            "version": decision.version,
            "content_digest": decision.content_digest,
            "system_prompt": decision.applied.system_prompt,
            "reasoning": decision.applied.reasoning,
        },
        "skipped": [{"adapter": adapter, "reason": reason} for adapter, reason in decision.skipped],
        "timings_ms": timings_ms,
    }
    if plan.affinity is not None:
        line["plan"]["affinity"] = _affinity(plan.affinity)
    if (assignment := plan.assignment) is not None:
        line["plan"]["assignment"] = {
            "category": assignment.category,
            "key": assignment.key,
            "key_source": assignment.key_source,
            "arm": assignment.arm,
            "weights": dict(assignment.weights),
        }
    if (share := plan.share) is not None:
        line["plan"]["share"] = {
            "key": share.key,
            "key_source": share.key_source,
            "share": share.share,
            "position": share.position,
        }
    return line


def outcome_line(outcome: Outcome, at_s: float) -> AuditLine:
    """Return the line that describes how the response to a decision ended."""
    return {
        "type": "outcome",
        "at": rfc3339(at_s),
        "id": outcome.decision.id,
        "key": outcome.decision.key,
        "status": outcome.status,
        "first_byte_ms": outcome.first_byte_ms and round(outcome.first_byte_ms, 3),
        "total_ms": round(outcome.total_ms, 3),
        "finish_reason": outcome.finish_reason,
        "aborted": outcome.aborted,
        # These differ from the decision's line if vLLM refused the edit and the request was sent again without it.
        "system_prompt": outcome.decision.applied.system_prompt,
        "reasoning": outcome.decision.applied.reasoning,
    }


def feedback_line(
    id: str,
    score: float,
    comment: str | None,
    at_s: float,
    *,
    key: str | None = None,
    client: Client | None = None,
) -> AuditLine:
    """Return the line of a user's feedback on the response with this id.

    Args:
        key: the key of the decision; None if this process does not know the decision.
        client: the sender, whose feedback is joined only to decisions of the same API key and tenant; None: an
            administrator.
    """
    line: AuditLine = {"type": "feedback", "at": rfc3339(at_s), "id": id, "score": score, "comment": comment}
    if key is not None:
        line["key"] = key
    if client is not None:
        line |= {"tenant": client.tenant, "client": client.api_key_fingerprint}
    return line


def lost_line(lines: int, at_s: float) -> AuditLine:
    """Return the line that replaces `lines` lines which could not be written."""
    return {"type": "lost", "at": rfc3339(at_s), "lines": lines}


def rfc3339(at_s: float) -> str:
    """Format seconds since 1970 as a UTC time with microseconds."""
    second, fraction = divmod(at_s, 1.0)
    micros = round(fraction * 1e6)  # rounds as `datetime` does
    if micros == 1_000_000:
        second, micros = second + 1.0, 0
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(4)  # under load, about a thousand lines share a second
def _second(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()[:-6]


def _step(step: Step) -> AuditLine:
    line: AuditLine = {"method": step.method, "duration_ms": round(step.duration_ms, 3)}
    if step.classification is None:
        # The message after the exception's name may contain user text.
        return {**line, "failure": step.failure, "error": (step.error or "").partition(":")[0]}
    line.update(_classification(step.classification))
    return line


def _classification(classification: Classification) -> AuditLine:
    return {
        "category": classification.category,
        "score": classification.score,
        "threshold": classification.threshold,
        "accepted": classification.accepted,
        "scale": classification.scale,
        "scores": classification.scores,
        "thresholds": classification.thresholds,
        "evidence": classification.evidence,
        "cached": classification.cached,
    }


def _affinity(affinity: Affinity) -> AuditLine:
    earlier = affinity.earlier_topic
    return {
        "category": affinity.category,
        "kept": affinity.kept,
        "alternative": affinity.alternative,
        "margin": affinity.margin,
        "earlier_topic": earlier and {"category": earlier.category, "score": earlier.score, "method": earlier.method},
        "turns": [
            {
                "turns_ago": turn.turns_ago,
                "category": turn.category,
                "score": turn.score,
                "method": turn.method,
                "active_topic_score": turn.active_topic_score,
            }
            for turn in affinity.turns
        ],
    }
