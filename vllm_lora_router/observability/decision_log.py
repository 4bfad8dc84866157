"""One log line a decision."""

import logging
from collections.abc import Mapping

from vllm_lora_router.types import Decision, Step

logger = logging.getLogger("vllm_lora_router.decisions")


def log(decision: Decision) -> None:
    """`medical -> medical-lora domain 0.91 (health) 3.1 ms chatcmpl-...`, at INFO."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line(decision))


def log_asked_again(decision: Decision) -> None:
    """That vLLM refused what a decision wrote, at INFO."""
    logger.info(
        "%s: vLLM answered 400 with the system prompt or reasoning of category %s; asked again without them",
        printable(decision.id),
        printable(decision.plan.category or "-"),
    )


def line(decision: Decision) -> str:
    """The decision in one line, whatever the names in it hold; the user's words are not in it."""
    plan = decision.plan
    why = plan.method if decision.reason == "routed" else decision.reason
    parts = [f"{plan.category or '-'} -> {decision.candidate.model} {why}"]
    if plan.confidence is not None:
        parts.append(f"{plan.confidence:.2f}")
    if plan.affinity is not None and plan.affinity.kept:
        parts.append(f"(against {plan.affinity.alternative or 'nothing sure'})")
    elif plan.steps and (evidence := _evidence(plan.steps[-1])):
        parts.append(f"({evidence})")
    if plan.assignment is not None:
        parts.append(f"[arm {plan.assignment.arm}]")
    parts += [f"[not {adapter}: {reason}]" for adapter, reason in decision.skipped]
    parts.append(f"{decision.overhead_ms:.1f} ms {decision.id}")
    return printable(" ".join(parts))


def printable(text: str) -> str:
    """Text with everything that could break a line, or hide one, escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _evidence(step: Step) -> str:
    if step.classification is None:
        return step.method if step.failure else ""
    evidence = step.classification.evidence
    if keywords := evidence.get("keywords"):
        return ", ".join(map(str, keywords)) if isinstance(keywords, list) else ""
    if nearest := evidence.get("nearest"):
        return str(nearest)
    labels = evidence.get("labels")
    return str(next(iter(labels))) if isinstance(labels, Mapping) and labels else ""
