"""Scores and labels from the audit record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.config import LoadedConfig, load
from vllm_lora_router.config.schema import FeedbackSettings
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.observability.audit_schema import decision_line, keep_no_text
from vllm_lora_router.tools.audit.join import JoinedDecision
from vllm_lora_router.tools.calibrate.recorded import FeedbackError, Traffic, all_scores, labelled_scores, read_traffic
from vllm_lora_router.types import (
    AppliedEdit,
    Candidate,
    Classification,
    Decision,
    Method,
    Plan,
    RequestInfo,
    Scale,
    Step,
)

CONFIG = """
model_config: {base: {loras: [{name: medical-lora}, {name: legal-lora}]}}
default_model: base
classifier: {category_model: {threshold: 0.7}}
embedding_rules:
  - {category: medical, threshold: 0.4, candidates: [fever]}
  - {category: legal, threshold: 0.5, candidates: [law]}
  - {category: legal, threshold: 0.6, candidates: [court]}
categories:
  - {name: medical, model_scores: [{model: base, lora_name: medical-lora}]}
  - {name: legal, model_scores: [{model: base, lora_name: legal-lora}]}
  - {name: general, model_scores: [{model: base}]}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedConfig:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return load(file)


def step(scores: Mapping[str, float], method: Method = "domain", scale: Scale = "probability") -> Step:
    best = max(scores, key=lambda name: scores[name])
    thresholds = dict.fromkeys(scores, 0.6)
    accepted = scores[best] >= 0.6
    return Step(method, 1.0, Classification(best, scores[best], scores, scale, 0.6, accepted, thresholds=thresholds))


def decision(
    *steps: Step, model: str | None = "MoM", reason: Any = None, feedback: tuple[float, ...] = (), **request: Any
):
    """Return a decision as it is recorded."""
    last = steps[-1].classification if steps else None
    accepted = last is not None and last.accepted
    plan = Plan(
        steps,
        "routed" if accepted else "below_threshold",
        last.category if accepted and last is not None else None,
        None,
        steps[-1].method if accepted else None,
        (Candidate("base", None),),
        "0a1b2c3d",
    )
    result = Decision(
        "chatcmpl-7",
        plan,
        plan.candidates[0],
        reason or plan.reason,
        AppliedEdit(),
        1.0,
        request=RequestInfo("/v1/chat/completions", "chat", model, **request),
    )
    return JoinedDecision(decision_line(result, 0.0, (), keep_no_text), None, [{"score": score} for score in feedback])


def read(loaded: LoadedConfig, *decisions: JoinedDecision) -> Traffic:
    return read_traffic(decisions, loaded, served_base(loaded, ["acme/base"]))


def test_steps_with_scores_are_read_by_method(loaded: LoadedConfig) -> None:
    rules = step({"medical": 0.3, "legal": 0.55}, "embedding", "similarity")
    keyword = Step("keyword", 1.0, Classification("legal", 1.0, {"legal": 1.0}, "rule", 1.0, True))
    timeout = Step("domain", 50.0, failure="timeout")
    traffic = read(
        loaded, decision(rules, step({"medical": 0.9, "legal": 0.1})), decision(keyword), decision(rules, timeout)
    )
    by_rules, domain = all_scores(traffic, loaded)
    assert traffic.decisions == 3
    assert (by_rules.method, by_rules.values.tolist()) == ("embedding rules", [[0.3, 0.55]] * 2)
    assert (domain.method, domain.values.tolist(), domain.correct) == ("domain model", [[0.9, 0.1]], None)
    assert [(threshold.path, threshold.columns, threshold.value) for threshold in domain.thresholds] == [
        (("classifier", "category_model", "threshold"), (0, 1), 0.7)
    ]


def test_rule_threshold_is_fixed_if_several_rules_share_its_category(loaded: LoadedConfig) -> None:
    traffic = read(loaded, decision(step({"medical": 0.3, "legal": 0.55}, "embedding", "similarity")))
    (rules,) = all_scores(traffic, loaded)
    medical, legal = rules.thresholds
    assert (medical.path, medical.value, medical.fixed) == (("embedding_rules", 0, "threshold"), 0.4, None)
    assert legal.fixed == "legal has 2 rules, and the record has one score for all of them"


def test_rule_thresholds_are_fixed_if_a_head_has_scores(loaded: LoadedConfig) -> None:
    rules = step({"medical": 0.7}, "embedding", "similarity")
    traffic = read(loaded, decision(rules), decision(step({"medical": 0.2, "legal": 0.8}, "embedding")))
    by_rules, head = all_scores(traffic, loaded)
    assert by_rules.thresholds[0].fixed == (
        "prompts that no rule accepts go to the head, and the record has only the head's scores for them"
    )
    assert [(threshold.path, threshold.value) for threshold in head.thresholds] == [
        (("classifier", "embedding_model", "thresholds", "medical"), 0.6),
        (("classifier", "embedding_model", "thresholds", "legal"), 0.6),
    ]


def test_each_prompt_of_a_batch_request_counts(loaded: LoadedConfig) -> None:
    first, second = step({"medical": 0.9, "legal": 0.1}), step({"medical": 0.3, "legal": 0.7})
    traffic = read(loaded, decision(first, second, prompts=2, model="medical-lora", reason="observe"))
    (domain,) = all_scores(traffic, loaded)
    assert domain.values.tolist() == [[0.9, 0.1], [0.3, 0.7]]
    assert labelled_scores(traffic, loaded) == []  # the label of each prompt is unknown


SCORES = {"medical": 0.9, "legal": 0.1, "general": 0.0}


@pytest.mark.parametrize(
    ("model", "correct"),
    [
        ("medical-lora", [True, False, False]),
        ("legal-lora", [False, True, False]),
        ("acme/base", [False, False, True]),
        ("base", [False, False, True]),
        (None, [False, False, True]),
    ],
)
def test_model_requested_in_observe_mode_is_a_label(
    loaded: LoadedConfig, model: str | None, correct: list[bool]
) -> None:
    traffic = read(loaded, decision(step(SCORES), model=model, reason="observe"))
    (domain,) = labelled_scores(traffic, loaded)
    assert domain.correct is not None and domain.correct.tolist() == [correct]
    assert domain.labelled == {name: 1 for name, is_correct in zip(SCORES, correct, strict=True) if is_correct}
    assert traffic.labels == {"requested model": 1}


@pytest.mark.parametrize(
    ("model", "reason"), [("MoM", "observe"), ("auto", "observe"), ("medical-lora", "named"), ("MoM", "routed")]
)
def test_other_requests_have_no_label(loaded: LoadedConfig, model: str, reason: str) -> None:
    traffic = read(loaded, decision(step(SCORES), model=model, reason=reason))
    assert labelled_scores(traffic, loaded) == [] and len(all_scores(traffic, loaded)) == 1
    assert traffic.unknown == {}


def test_category_without_entry_for_this_base_is_served_by_default_model(tmp_path: Path) -> None:
    text = CONFIG.replace("{name: general, model_scores: [{model: base}]}", "{name: other, model_scores: [{model: b}]}")
    text = text.replace("model_config: {", "model_config: {b: {}, ").replace(
        "default_model: base", "default_model: x-lora"
    )
    text = text.replace("{name: legal-lora}]", "{name: legal-lora}, {name: x-lora}]")
    (tmp_path / "config.yaml").write_text(text)
    loaded = load(tmp_path / "config.yaml")
    scores = {"medical": 0.9, "legal": 0.1, "other": 0.0}
    decisions = [decision(step(scores), model="x-lora", reason="observe")]
    (domain,) = labelled_scores(read_traffic(decisions, loaded, served_base(loaded, ["base"])), loaded)
    assert domain.correct is not None and domain.correct.tolist() == [[False, False, True]]


def test_requested_adapter_without_category_is_counted_as_unknown(loaded: LoadedConfig) -> None:
    traffic = read(loaded, decision(step(SCORES), model="other-lora", reason="observe"))
    assert labelled_scores(traffic, loaded) == [] and traffic.unknown == {"other-lora": 1}


def test_feedback_labels_the_routed_category(loaded: LoadedConfig) -> None:
    traffic = read(
        loaded,
        decision(step(SCORES), feedback=(1.0,)),
        decision(step(SCORES), feedback=(0.0, 0.0, 1.0)),
        decision(step({"medical": 0.4, "legal": 0.1}), feedback=(1.0,)),
        decision(step(SCORES)),
    )
    (domain,) = labelled_scores(traffic, loaded)
    assert domain.correct is not None
    assert domain.correct[:, 0].tolist() == [True, False]
    assert np.isnan(domain.values[:, 1:]).all() and domain.values[:, 0].tolist() == [0.9, 0.9]
    assert domain.labelled == {"medical": 2} and traffic.labels == {"feedback": 2}


def test_feedback_is_read_on_the_configured_scale(loaded: LoadedConfig) -> None:
    router = loaded.config.router.model_copy(update={"feedback": FeedbackSettings(min=1, max=5)})
    scaled = replace(loaded, config=loaded.config.model_copy(update={"router": router}))
    traffic = read(
        scaled,
        decision(step(SCORES), feedback=(4.0,)),
        decision(step(SCORES), feedback=(2.0,)),
    )
    (domain,) = labelled_scores(traffic, scaled)
    assert domain.correct is not None and domain.correct[:, 0].tolist() == [True, False]


def test_feedback_outside_0_to_1_is_reported(loaded: LoadedConfig) -> None:
    with pytest.raises(FeedbackError, match="feedback on chatcmpl-7 is 5: scores are from 0 \\(wrong\\) to 1"):
        read(loaded, decision(step(SCORES), feedback=(5.0,)))
