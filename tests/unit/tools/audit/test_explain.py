"""Explanations of decisions in plain English."""

from __future__ import annotations

import json

import pytest

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.tools.audit.explain import explain
from vllm_lora_router.tools.audit.join import JoinedDecision

from .conftest import decision, feedback, outcome

SAME_DECISION = "Replaying this line gives the same decision."


def explanation(line: AuditLine, ended: AuditLine | None = None) -> str:
    return "\n".join(explain(JoinedDecision(line, ended)))


def test_routed_request_is_explained_from_the_request_to_the_feedback() -> None:
    assert explain(JoinedDecision(decision(), outcome(), [feedback(1.0, comment="just right")])) == [
        "At 2026-11-25T12:00:00.000000Z, client 0a1b2c3d4e5f of tenant acme requested model 'MoM' at "
        "/v1/chat/completions: chatcmpl-7.",
        "User text: 'a fever'.",
        "Configuration in effect: 0a1b2c3d.",
        "The domain model gave medical a score of 0.8300, which reaches the threshold 0.6 (labels: health 0.83); next: "
        "legal 0.0400.",
        "The category is medical (0.8300 by the domain model).",
        "Served by the adapter medical-lora@1a2b3c4d with content 1a2b3c4d5e6f, 3.0 ms after the request was read.",
        "Written into the request: a system prompt and reasoning off.",
        "The response had status 200, began after 20.0 ms, and the request ended after 900.0 ms, finish reason stop.",
        "Feedback at 2026-11-25T12:01:00.000000Z: 1: 'just right'.",
        "If the score of `medical` in the domain model were 0.2301 lower (0.8300 -> 0.5999), none of these methods "
        "would accept a category.",
        SAME_DECISION,
    ]


def with_keyword_rule(line: AuditLine, keywords: list[str], operator: str = "OR") -> AuditLine:
    step = {
        "method": "keyword",
        "duration_ms": 0.1,
        "category": "medical",
        "score": 1.0,
        "threshold": 1.0,
        "accepted": True,
        "scale": "rule",
        "scores": {"medical": 1.0},
        "thresholds": {},
        "evidence": {"rule": 2, "operator": operator, "keywords": keywords},
        "cached": False,
    }
    line["plan"] |= {"steps": [step], "method": "keyword", "confidence": 1.0}
    return line


@pytest.mark.parametrize(
    ("keywords", "operator", "evidence", "counterfactual"),
    [
        (["fever"], "OR", "by rule 2 (OR): 'fever' matched.", "Without 'fever', rule 2 would not match."),
        (
            ["fever", "cough"],
            "AND",
            "by rule 2 (AND): 'fever' and 'cough' matched.",
            "If one of 'fever' and 'cough' were missing, rule 2 would not match.",
        ),
        ([], "NOR", "by rule 2 (NOR): none of its keywords occurs.", SAME_DECISION),
    ],
)
def test_keyword_rule_is_explained_by_its_matches(
    keywords: list[str], operator: str, evidence: str, counterfactual: str
) -> None:
    text = explanation(with_keyword_rule(decision(), keywords, operator))
    assert f"The keyword rules selected medical {evidence}" in text and counterfactual in text


def test_keyword_rule_with_more_matches_than_the_record_lists_is_explained() -> None:
    line = with_keyword_rule(decision(), ["fever", "cough"])
    line["plan"]["steps"][0]["evidence"]["more_keywords"] = 970
    text = explanation(line)
    assert "by rule 2 (OR): 'fever' and 'cough' and 970 more keywords matched." in text
    assert "Without 'fever' and 'cough' and 970 more keywords, rule 2 would not match." in text


def test_head_is_distinguished_from_embedding_rules() -> None:
    line = decision()
    line["plan"]["steps"][0] |= {"method": "embedding", "scale": "probability", "evidence": {"none": 0.1}}
    line["plan"] |= {"method": "embedding"}
    text = explanation(line)
    assert "The head gave medical" in text and "by the head)" in text and "rules" not in text


def test_overrides_of_an_mcp_tool_are_explained() -> None:
    line = decision()
    evidence = {"tool": "classify_text", "class": "medical", "confidence": 0.83, "model": "acme-lora", "keep": None}
    line["plan"]["steps"][0] |= {"method": "mcp", "evidence": evidence}
    line["plan"] |= {"method": "mcp"}
    text = explanation(line)
    assert "The MCP classifier gave medical a score of 0.8300" in text and "(classify_text set model acme-lora)" in text
    line["plan"]["steps"][0] |= {"evidence": {"tool": "classify_text", "class": "medical", "models": []}}
    assert "(classify_text set nothing else)" in explanation(line)


def test_mcp_tool_that_was_not_called_is_explained() -> None:
    line = decision()
    no_category = {"category": None, "score": 0.0, "accepted": False, "scores": {}, "thresholds": {}}
    line["plan"]["steps"].insert(
        0, {**line["plan"]["steps"][0], **no_category, "method": "mcp", "evidence": {"not_called": "no user text"}}
    )
    assert "The MCP classifier returned no category: no user text." in explanation(line)


def test_failure_and_fallback_are_explained() -> None:
    line = decision()
    line["plan"]["steps"][0] |= {"scores": {"medical": 0.4}, "score": 0.4, "accepted": False, "cached": True}
    failed = {"method": "embedding", "duration_ms": 50.0, "failure": "timeout", "error": "no answer"}
    line["plan"]["steps"].insert(0, failed)
    line["plan"] |= {"reason": "timeout", "category": None, "confidence": None, "method": None}
    line |= {"reason": "timeout"}
    line["plan"]["candidates"].pop(0)
    line["served"] |= {"model": "base", "adapter": None, "version": None, "content_digest": None}
    line["served"] |= {"system_prompt": False, "reasoning": None}
    text = explanation(line)
    assert "The embedding rules failed: timeout (no answer)." in text
    assert (
        "gave medical a score of 0.4000, which is below the threshold 0.6 (labels: health 0.83); answered from the "
        "cache." in text
    )
    assert (
        "A method timed out, and no other method accepted a category: the request falls back to default_model." in text
    )
    assert "Served by the model base, 3.0 ms" in text
    assert "Only the model was changed in the request." in text
    assert (
        "If the score of `medical` in the domain model were 0.2000 higher (0.4000 -> 0.6000), the request would" in text
    )
    assert "The record has no outcome for this request." in text and text.endswith(SAME_DECISION)
    line["plan"]["category"] = "legal"
    assert "the request falls back to the category legal." in explanation(line)


TURN = {"turns_ago": 1, "category": "legal", "score": 0.9, "method": "domain", "active_topic_score": 0.0}


@pytest.mark.parametrize(
    ("scores", "reason", "sentence"),
    [
        (
            {"medical": 0.7, "legal": 0.6},
            "affinity",
            "The last turn alone would be routed to medical, but its lead is below the margin of 0.15: the "
            "conversation stays with legal.",
        ),
        (
            {"medical": 0.9, "legal": 0.6},
            "routed",
            "The last turn is about medical, with a lead of at least the margin of 0.15: the conversation leaves "
            "legal.",
        ),
        ({"medical": 0.3, "legal": 0.7}, "routed", "The last turn is also about legal."),
        (
            {"medical": 0.3, "legal": 0.2},
            "affinity",
            "No method accepted a category for the last turn, so the conversation stays with legal.",
        ),
    ],
)
def test_affinity_is_explained_with_the_alternative(scores: dict[str, float], reason: str, sentence: str) -> None:
    line = decision()
    line["plan"]["steps"][0]["scores"] = scores
    best = max(scores, key=lambda name: scores[name])
    line["plan"]["affinity"] = {
        "category": "legal",
        "kept": reason == "affinity",
        "alternative": best if scores[best] >= 0.6 else None,
        "margin": 0.15,
        "turns": [TURN],
        "earlier_topic": {"category": "coding", "score": 0.7, "method": "embedding"},
    }
    text = explanation(line)
    assert sentence in text
    assert (
        "The topic of the conversation was legal: its earlier topic was coding; 1 earlier turn has a category: 1 ago "
        "legal 0.9000 (domain)." in text
    )


def test_arm_share_and_skipped_adapters_are_explained() -> None:
    line = decision()
    line["plan"]["assignment"] = {
        "category": "medical",
        "key": "0" * 32,
        "key_source": "user",
        "arm": "medical-lora",
        "weights": {"medical-lora": 3, "other-lora": 1},
    }
    line["plan"]["share"] = {"key": "0" * 32, "key_source": "user", "share": 0.5, "position": 0.25}
    line["skipped"] = [{"adapter": "medical-lora", "reason": "its files are gone"}]
    line["served"] |= {"model": "other-lora", "adapter": "other-lora", "version": None, "arm": "other-lora"}
    text = explanation(line)
    assert (
        f"A share of 0.5 of the users is routed: key {'0' * 32} (from user) has position 0.2500 and is routed." in text
    )
    assert f"(medical-lora 3, other-lora 1): key {'0' * 32} (from user) is assigned to medical-lora." in text
    assert "If that arm cannot serve, the key's next arm is other-lora." in text
    assert "medical-lora could not serve: its files are gone." in text
    assert "Served by the adapter other-lora with content 1a2b3c4d5e6f, arm other-lora" in text


def test_plan_that_was_not_applied_is_explained() -> None:
    observed = decision(reason="observe")
    observed["served"] |= {"model": "base", "adapter": None}
    assert (
        "Observe mode: medical-lora would be the first candidate, but the request got the model that the client named."
    ) in explanation(observed)
    named = decision(reason="named")
    named["plan"] |= {"reason": "named", "category": None, "method": None, "confidence": None, "steps": []}
    assert "The client named the model: no category was selected." in explanation(named)
    off = decision(reason="off")
    off["plan"] |= {"reason": "off", "category": None, "method": None, "confidence": None, "steps": []}
    assert "Routing is off: the request falls back to default_model." in explanation(off)


def test_several_prompts_are_explained_separately() -> None:
    line = decision(reason="mixed")
    line["plan"] |= {"reason": "mixed", "category": None, "method": None, "confidence": None}
    line["plan"]["steps"] *= 2
    line["prompts"] = 2
    text = explanation(line)
    assert "requested model 'MoM' at /v1/chat/completions with 2 prompts" in text
    assert "Prompt 1: The domain model gave" in text and "Prompt 2: The domain model gave" in text
    assert "The prompts have different categories: the request falls back to default_model." in text


def test_refused_edit_and_disconnected_client_are_explained() -> None:
    unedited = outcome(system_prompt=False, reasoning=None)
    assert (
        "vLLM refused the edited request with status 400 and got it again with only the model changed."
    ) in explanation(decision(), unedited)
    aborted = outcome(status=None, first_byte_ms=None, finish_reason=None, aborted=True)
    assert "No response had begun, and the request was aborted after 900.0 ms." in explanation(decision(), aborted)


def test_changed_line_is_explained() -> None:
    line = decision()
    line["plan"]["steps"][0]["scores"]["legal"] = 0.9
    assert (
        "Replaying this line gives another decision: plan.category: recorded 'medical', replayed 'legal'"
    ) in explanation(line)


def test_recorded_text_cannot_break_or_color_a_line() -> None:
    line = decision(text="two\nlines \x1b[31m")
    line["tenant"] = "a\x1b[2Jcme"
    sentences = explain(JoinedDecision(line, None, [feedback(1, comment="\x1b[0m")]))
    assert all(sentence.isprintable() for sentence in sentences)
    assert r"tenant a\x1b[2Jcme" in sentences[0] and r"two\nlines" in sentences[1]


def test_every_decision_can_be_explained(traffic: list[str]) -> None:
    for text in traffic[::10]:
        assert explain(JoinedDecision(json.loads(text)))[-1] == SAME_DECISION
