"""What a person reads of a decision."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_lora_router.tools.audit.explain import explain
from vllm_lora_router.tools.audit.join import Recorded

from .conftest import decision, feedback, outcome

Line = dict[str, Any]


def said(line: Line, went: Line | None = None, *thought: Line) -> str:
    return "\n".join(explain(Recorded(line, went, list(thought))))


def test_a_routed_request_is_told_from_the_question_to_what_its_user_thought_of_the_answer() -> None:
    told = explain(Recorded(decision(), outcome(), [feedback(1.0, comment="just right")]))
    assert told == [
        "At 2026-11-25T12:00:00.000000Z, client 0a1b2c3d4e5f of tenant acme asked /v1/chat/completions for 'MoM': "
        "chatcmpl-7.",
        "What was said: 'a fever'.",
        "The configuration in force was 0a1b2c3d.",
        "The domain model gave medical 0.8300, which reaches its threshold 0.6 (labels: health 0.83); then legal "
        "0.0400.",
        "So the category is medical (0.8300 by the domain model).",
        "Served by the adapter medical-lora@1a2b3c4d with content 1a2b3c4d5e6f, 3.0 ms after the request was read.",
        "Written into the request: a system prompt and reasoning off.",
        "In the end the response had status 200, began after 20.0 ms, and it ended after 900.0 ms, finish reason stop.",
        "Feedback at 2026-11-25T12:01:00.000000Z: 1: 'just right'.",
        "Had `medical`'s score in the domain model been 0.2301 lower (0.8300 -> 0.5999), no method that was asked "
        "would have been sure.",
        "Decided again from this line alone, it is the same.",
    ]


def keyword(line: Line, keywords: list[str], operator: str = "OR") -> Line:
    evidence = {"rule": 2, "operator": operator, "keywords": keywords}
    step = {"method": "keyword", "ms": 0.1, "category": "medical", "score": 1.0, "threshold": 1.0, "sure": True}
    step |= {"scale": "rule", "scores": {"medical": 1.0}, "thresholds": {}, "evidence": evidence, "cached": False}
    line["plan"] |= {"steps": [step], "method": "keyword", "confidence": 1.0}
    return line


@pytest.mark.parametrize(
    ("keywords", "operator", "why", "without"),
    [
        (["fever"], "OR", "by rule 2 (OR): 'fever' matched.", "Without 'fever', rule 2 would not have matched."),
        (
            ["fever", "cough"],
            "AND",
            "by rule 2 (AND): 'fever' and 'cough' matched.",
            "Without one of 'fever' and 'cough', rule 2",
        ),
        ([], "NOR", "by rule 2 (NOR): none of its keywords stands there.", "it is the same."),
    ],
)
def test_a_rule_is_told_with_its_words_and_what_it_would_be_without_them(
    keywords: list[str], operator: str, why: str, without: str
) -> None:
    told = said(keyword(decision(), keywords, operator))
    assert f"The keyword rules chose medical {why}" in told and without in told


def test_a_head_is_told_apart_from_the_embedding_rules() -> None:
    line = decision()
    line["plan"]["steps"][0] |= {"method": "embedding", "scale": "probability", "evidence": {"none": 0.1}}
    line["plan"] |= {"method": "embedding"}
    told = said(line)
    assert "The head gave medical" in told and "by the head)" in told and "rules" not in told


def test_what_a_tool_asked_for_is_told() -> None:
    line = decision()
    evidence = {"tool": "classify_text", "class": "medical", "confidence": 0.83, "model": "acme-lora", "keep": None}
    line["plan"]["steps"][0] |= {"method": "mcp", "evidence": evidence}
    line["plan"] |= {"method": "mcp"}
    told = said(line)
    assert "The MCP classifier gave medical 0.8300" in told and "(classify_text asked for model acme-lora)" in told
    line["plan"]["steps"][0] |= {"evidence": {"tool": "classify_text", "class": "medical", "models": []}}
    assert "(classify_text asked for nothing else)" in said(line)


def test_a_tool_that_was_not_called_is_told_with_the_reason() -> None:
    line = decision()
    nothing = {"category": None, "score": 0.0, "sure": False, "scores": {}, "thresholds": {}}
    line["plan"]["steps"].insert(
        0, {**line["plan"]["steps"][0], **nothing, "method": "mcp", "evidence": {"not_asked": "no words"}}
    )
    assert "The MCP classifier found nothing: no words." in said(line)


def test_a_method_that_failed_and_one_that_was_not_sure_are_told_with_the_default() -> None:
    line = decision()
    line["plan"]["steps"][0] |= {"scores": {"medical": 0.4}, "score": 0.4, "sure": False, "cached": True}
    line["plan"]["steps"].insert(0, {"method": "embedding", "ms": 50.0, "failure": "timeout", "error": "no answer"})
    line["plan"] |= {"reason": "timeout", "category": None, "confidence": None, "method": None}
    line |= {"reason": "timeout"}
    line["plan"]["candidates"].pop(0)
    line["served"] |= {"model": "base", "adapter": None, "version": None, "digest": None, "system_prompt": False}
    line["served"]["reasoning"] = None
    told = said(line)
    assert "The embedding rules gave no answer: timeout (no answer)." in told
    assert "medical 0.4000, which stays below its threshold 0.6 (labels: health 0.83), as found before." in told
    assert "A method was late, and no other was sure: default_model takes it." in told
    assert "Served by the model base, 3.0 ms" in told
    assert "Nothing but the model was written into the request." in told
    assert "Had `medical`'s score in the domain model been 0.2000 higher (0.4000 -> 0.6000), the request would" in told
    assert "How the response went is not in the record." in told and told.endswith("it is the same.")
    line["plan"]["category"] = "legal"
    assert "the fallback category legal takes it." in said(line)


TURN = {"back": 1, "category": "legal", "score": 0.9, "method": "domain", "held_score": 0.0}


@pytest.mark.parametrize(
    ("scores", "after", "what"),
    [
        (
            {"medical": 0.7, "legal": 0.6},
            "affinity",
            "alone would be medical, but not by the margin of 0.15: it stays with",
        ),
        ({"medical": 0.9, "legal": 0.6}, "routed", "is medical by the margin of 0.15 or more: it leaves legal."),
        ({"medical": 0.3, "legal": 0.7}, "routed", "is about legal, too."),
        ({"medical": 0.3, "legal": 0.2}, "affinity", "says nothing that a method is sure of, so it stays with legal."),
    ],
)
def test_what_the_conversation_was_about_is_told_and_against_what(
    scores: dict[str, float], after: str, what: str
) -> None:
    line = decision()
    line["plan"]["steps"][0]["scores"] = scores
    best = max(scores, key=lambda name: scores[name])
    against = best if scores[best] >= 0.6 else None
    before = {"category": "coding", "score": 0.7, "method": "embedding"}
    line["plan"]["affinity"] = {
        "category": "legal",
        "held": after == "affinity",
        "against": against,
        "margin": 0.15,
        "turns": [TURN],
        "before": before,
    }
    told = said(line)
    assert f"The last turn {what}" in told
    assert (
        "The conversation was about legal: it was remembered to be about coding; 1 earlier turn speaks: 1 back legal "
        "0.9000 (domain)." in told
    )


def test_the_arm_is_told_with_the_key_that_drew_it_and_what_could_not_serve() -> None:
    line = decision()
    weights = {"medical-lora": 3, "other-lora": 1}
    line["plan"]["draw"] = {"category": "medical", "key": "0" * 32, "by": "user", "arm": "medical-lora"}
    line["plan"]["draw"]["weights"] = weights
    line["plan"]["share"] = {"key": "0" * 32, "by": "user", "share": 0.5, "at": 0.25}
    line["refused"] = [{"adapter": "medical-lora", "why": "its files are gone"}]
    line["served"] |= {"model": "other-lora", "adapter": "other-lora", "version": None, "arm": "other-lora"}
    told = said(line)
    assert (
        f"A share of 0.5 of the users is routed: key {'0' * 32}, found in user, stands at 0.2500 and is among" in told
    )
    assert f"(medical-lora 3, other-lora 1): key {'0' * 32}, found in user, draws medical-lora." in told
    assert "Where that cannot serve, the same key's next is other-lora." in told
    assert "medical-lora could not serve: its files are gone." in told
    assert "Served by the adapter other-lora with content 1a2b3c4d5e6f, arm other-lora" in told


def test_what_was_not_applied_is_told() -> None:
    observed = decision(reason="observe")
    observed["served"] |= {"model": "base", "adapter": None}
    assert "Routing only observes: medical-lora would have been tried first, and what the client named" in said(
        observed
    )
    named = decision(reason="named")
    named["plan"] |= {"reason": "named", "category": None, "method": None, "confidence": None, "steps": []}
    assert "The client named the model itself: nothing was decided." in said(named)
    off = decision(reason="off")
    off["plan"] |= {"reason": "off", "category": None, "method": None, "confidence": None, "steps": []}
    assert "Routing was off: default_model takes it." in said(off)


def test_several_prompts_are_told_one_after_the_other() -> None:
    line = decision(reason="mixed")
    line["plan"] |= {"reason": "mixed", "category": None, "method": None, "confidence": None}
    line["plan"]["steps"] *= 2
    line["prompts"] = 2
    told = said(line)
    assert "asked /v1/chat/completions for 'MoM', with 2 prompts" in told
    assert "Prompt 1: The domain model gave" in told and "Prompt 2: The domain model gave" in told
    assert "Its prompts are about different things, so none of them decides: default_model takes it." in told


def test_what_vllm_would_not_take_and_a_client_that_left_are_told() -> None:
    again = outcome(system_prompt=False, reasoning=None)
    assert "vLLM refused that with 400, and was asked again with the model alone." in said(decision(), again)
    left = outcome(status=None, first_byte_ms=None, finish=None, aborted=True)
    assert "In the end no response had begun, and it was broken off after 900.0 ms." in said(decision(), left)


def test_a_line_that_was_changed_is_told() -> None:
    line = decision()
    line["plan"]["steps"][0]["scores"]["legal"] = 0.9
    assert "it is not the same: plan.category: 'medical', decided again 'legal'" in said(line)


def test_what_users_and_files_say_cannot_break_a_line_or_colour_it() -> None:
    line = decision(text="two\nlines \x1b[31m")
    line["tenant"] = "a\x1b[2Jcme"
    told = explain(Recorded(line, None, [feedback(1, comment="\x1b[0m")]))
    assert all(sentence.isprintable() for sentence in told)
    assert r"tenant a\x1b[2Jcme" in told[0] and r"two\nlines" in told[1]


def test_every_decision_can_be_told(traffic: list[str]) -> None:
    for text in traffic[::10]:
        assert "it is the same." in explain(Recorded(json.loads(text)))[-1]
