"""A decision, its outcome, and what a user thought of it, as lines of the audit record."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from vllm_lora_router.types import Affinity, Classification, Decision, Outcome, Step

Line = dict[str, Any]
# What is kept of the words that were classified: they themselves, a keyed hash that shows whether a text was this one,
# or nothing.
Words = Callable[[Sequence[str]], Line]


def in_full(texts: Sequence[str]) -> Line:
    return {"text": texts[0] if len(texts) == 1 else list(texts)}


def by_hmac(key: bytes) -> Words:
    """The HMAC-SHA-256 of each text, in hexadecimal."""

    keyed = hmac.new(key, digestmod=hashlib.sha256)  # to set it up takes longer than to hash a text

    def hashed(text: str) -> str:
        mac = keyed.copy()
        mac.update(text.encode("utf-8", "surrogatepass"))
        return mac.hexdigest()

    def words(texts: Sequence[str]) -> Line:
        return {"text_hmac": hashed(texts[0]) if len(texts) == 1 else [hashed(text) for text in texts]}

    return words


def none_at_all(texts: Sequence[str]) -> Line:
    return {}


def hmac_of(text: str, key: bytes) -> str:
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()


def decision_line(decision: Decision, at_s: float, texts: Sequence[str], words: Words) -> Line:
    """Everything that was decided, and on what: enough to decide it again.

    Args:
        at_s: when, in seconds since 1970.
        texts: the words that were classified, one text a prompt.
    """
    plan, asked, candidate = decision.plan, decision.request, decision.candidate
    ms = {name: round(ms, 3) for name, ms in decision.timings_ms.items()}
    ms["overhead"] = round(decision.overhead_ms, 3)
    line: Line = {
        "type": "decision",
        "at": rfc3339(at_s),
        "id": decision.id,
        "config": plan.config_version,
        "path": asked.path,
        "api": asked.api,
        "asked_for": asked.model,
        "tenant": asked.client.tenant,
        "client": asked.client.api_key_fingerprint,
        "prompts": asked.prompts,
        **(words(texts) if texts else {}),
        "reason": decision.reason,
        "plan": {
            "reason": plan.reason,
            "category": plan.category,
            "confidence": plan.confidence,
            "method": plan.method,
            "steps": [_step(step) for step in plan.steps],
            "candidates": [{"model": one.model, "adapter": one.adapter, "arm": one.arm} for one in plan.candidates],
        },
        "served": {
            "model": candidate.model,
            "adapter": candidate.adapter,
            "arm": candidate.arm,
            "version": decision.version,
            "digest": decision.content_digest,
            "system_prompt": decision.applied.system_prompt,
            "reasoning": decision.applied.reasoning,
        },
        "refused": [{"adapter": adapter, "why": why} for adapter, why in decision.skipped],
        "ms": ms,
    }
    if plan.affinity is not None:
        line["plan"]["affinity"] = _affinity(plan.affinity)
    if (draw := plan.assignment) is not None:
        line["plan"]["draw"] = {
            "category": draw.category,
            "key": draw.key,
            "by": draw.key_source,
            "arm": draw.arm,
            "weights": dict(draw.weights),
        }
    if (share := plan.share) is not None:
        line["plan"]["share"] = {"key": share.key, "by": share.key_source, "share": share.share, "at": share.position}
    return line


def outcome_line(outcome: Outcome, at_s: float) -> Line:
    """How the response went."""
    return {
        "type": "outcome",
        "at": rfc3339(at_s),
        "id": outcome.decision.id,
        "status": outcome.status,
        "first_byte_ms": outcome.first_byte_ms and round(outcome.first_byte_ms, 3),
        "total_ms": round(outcome.total_ms, 3),
        "finish": outcome.finish_reason,
        "aborted": outcome.aborted,
        # What it was asked with in the end, where vLLM refused what was written at first.
        "system_prompt": outcome.decision.applied.system_prompt,
        "reasoning": outcome.decision.applied.reasoning,
    }


def feedback_line(id: str, score: float, comment: str | None, at_s: float) -> Line:
    """What a user thought of the answer with this id."""
    return {"type": "feedback", "at": rfc3339(at_s), "id": id, "score": score, "comment": comment}


def rfc3339(at_s: float) -> str:
    """UTC, with microseconds."""
    second, rest = divmod(at_s, 1.0)
    micros = round(rest * 1e6)  # as `datetime` rounds
    if micros == 1_000_000:
        second, micros = second + 1.0, 0
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(4)  # a thousand lines share one
def _second(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()[:-6]


def _step(step: Step) -> Line:
    line: Line = {"method": step.method, "ms": round(step.duration_ms, 3)}
    if step.classification is None:
        # What comes after an exception's name may hold the user's words.
        return {**line, "failure": step.failure, "error": (step.error or "").partition(":")[0]}
    line.update(_classification(step.classification))
    return line


def _classification(found: Classification) -> Line:
    return {
        "category": found.category,
        "score": found.score,
        "threshold": found.threshold,
        "sure": found.accepted,
        "scale": found.scale,
        "scores": found.scores,
        "thresholds": found.thresholds,
        "evidence": found.evidence,
        "cached": found.cached,
    }


def _affinity(affinity: Affinity) -> Line:
    before = affinity.earlier_topic
    return {
        "category": affinity.category,
        "held": affinity.kept,
        "against": affinity.alternative,
        "margin": affinity.margin,
        "before": before and {"category": before.category, "score": before.score, "method": before.method},
        "turns": [
            {
                "back": turn.turns_ago,
                "category": turn.category,
                "score": turn.score,
                "method": turn.method,
                "held_score": turn.active_topic_score,
            }
            for turn in affinity.turns
        ],
    }
