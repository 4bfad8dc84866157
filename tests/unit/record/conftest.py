"""Decisions to look at."""

from collections.abc import Callable, Mapping

import pytest

from vllm_lora_router.values import Candidate, Classification, Decision, Method, Plan, Reason, Step, Written

Decide = Callable[..., Decision]

EVIDENCE: Mapping[Method, Mapping[str, object]] = {
    "keyword": {"rule": 0, "operator": "OR", "keywords": ["blood pressure", "fever"]},
    "embedding": {"nearest": "Is this medicine safe?", "similarity": 0.91},
    "domain": {"labels": {"health": 0.91, "biology": 0.05}},
    "mcp": {},
}


@pytest.fixture
def decide() -> Decide:
    def decision(
        category: str | None = "medical",
        model: str = "medical-lora",
        method: Method = "domain",
        *,
        reason: Reason = "routed",
        confidence: float | None = 0.91,
        failure: Reason | None = None,
        evidence: Mapping[str, object] | None = None,
        written: Written | None = None,
        id: str = "chatcmpl-7",
    ) -> Decision:
        candidate = Candidate(model, None if model == "base" else model)
        found = Classification(
            category,
            0.91,
            {},
            "probability",
            0.6,
            reason == "routed",
            EVIDENCE[method] if evidence is None else evidence,
        )
        step = (
            Step(method, 2.0, failure=failure, error="ValueError: the user's words")
            if failure
            else Step(method, 2.0, found)
        )
        sure = method if confidence is not None else None
        plan = Plan((step,), reason, category, confidence, sure, (candidate,), "01234567")
        return Decision(id, plan, candidate, reason, written or Written(), 3.14159)

    return decision
