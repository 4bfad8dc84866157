"""Log lines about decisions."""

import logging
from collections.abc import Mapping

from vllm_lora_router.text import printable
from vllm_lora_router.types import Decision, Step

logger = logging.getLogger("vllm_lora_router.decisions")


def log_decision(decision: Decision) -> None:
    """Log a decision at INFO, such as `medical -> medical-lora domain 0.91 (health) 3.1 ms chatcmpl-...`."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", format_decision(decision))


def log_retry_without_edit(decision: Decision) -> None:
    """Log at INFO that vLLM refused an edited request, and that it got the request again with only the model set."""
    logger.info(
        "%s: vLLM answered 400 to the system prompt or reasoning setting of category %s; retrying without them",
        printable(decision.id),
        printable(decision.plan.category or "-"),
    )


def format_decision(decision: Decision) -> str:
    """Return a decision as one line. It contains no user text, and names in it cannot break the line."""
    plan = decision.plan
    origin = plan.method if decision.reason == "routed" else decision.reason
    served = "rejected" if decision.is_rejected else decision.candidate.model
    parts = [f"{plan.category or '-'} -> {served} {origin}"]
    if plan.confidence is not None:
        parts.append(f"{plan.confidence:.2f}")
    if plan.affinity is not None and plan.affinity.kept:
        parts.append(f"(instead of {plan.affinity.alternative or '-'})")
    elif plan.steps and (evidence := _evidence(plan.steps[-1])):
        parts.append(f"({evidence})")
    if plan.assignment is not None:
        parts.append(f"[arm {plan.assignment.arm}]")
    parts += [f"[skipped {adapter}: {reason}]" for adapter, reason in decision.skipped]
    parts.append(f"{decision.overhead_ms:.1f} ms {decision.id}")
    return printable(" ".join(parts))


def _evidence(step: Step) -> str:
    if step.classification is None:
        return step.method if step.failure else ""
    evidence = step.classification.evidence
    if keywords := evidence.get("keywords"):
        return _keywords(keywords, evidence.get("more_keywords")) if isinstance(keywords, list) else ""
    if nearest := evidence.get("nearest"):
        return str(nearest)
    labels = evidence.get("labels")
    return str(next(iter(labels))) if isinstance(labels, Mapping) and labels else ""


def _keywords(keywords: list[object], more: object) -> str:
    return ", ".join(map(str, keywords)) + (f" and {more} more" if more else "")
