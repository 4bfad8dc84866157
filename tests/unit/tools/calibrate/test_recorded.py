"""What the audit record says of the methods, and which of it is a label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.config import Loaded, load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.observability.audit_schema import decision_line, none_at_all
from vllm_lora_router.tools.audit.join import Recorded
from vllm_lora_router.tools.calibrate.recorded import FeedbackError, Traffic, labelled_of, read_traffic, scored_of
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
def loaded(tmp_path: Path) -> Loaded:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return load(file)


def found(scores: Mapping[str, float], method: Method = "domain", scale: Scale = "probability") -> Step:
    best = max(scores, key=lambda name: scores[name])
    thresholds = dict.fromkeys(scores, 0.6)
    sure = scores[best] >= 0.6
    return Step(method, 1.0, Classification(best, scores[best], scores, scale, 0.6, sure, thresholds=thresholds))


def line(
    *steps: Step, asked_for: str | None = "MoM", reason: Any = None, feedback: tuple[float, ...] = (), **asked: Any
):
    """A decision as the record has it."""
    last = steps[-1].classification if steps else None
    sure = last is not None and last.accepted
    plan = Plan(
        steps,
        "routed" if sure else "below_threshold",
        last.category if sure and last is not None else None,
        None,
        steps[-1].method if sure else None,
        (Candidate("base", None),),
        "0a1b2c3d",
    )
    made = Decision(
        "chatcmpl-7",
        plan,
        plan.candidates[0],
        reason or plan.reason,
        AppliedEdit(),
        1.0,
        request=RequestInfo("/v1/chat/completions", "chat", asked_for, **asked),
    )
    return Recorded(decision_line(made, 0.0, (), none_at_all), None, [{"score": score} for score in feedback])


def read(loaded: Loaded, *recorded: Recorded) -> Traffic:
    return read_traffic(recorded, loaded, served_base(loaded, ["acme/base"]))


def test_every_step_with_scores_is_read_by_its_method(loaded: Loaded) -> None:
    rules = found({"medical": 0.3, "legal": 0.55}, "embedding", "similarity")
    keyword = Step("keyword", 1.0, Classification("legal", 1.0, {"legal": 1.0}, "rule", 1.0, True))
    late = Step("domain", 50.0, failure="timeout")
    traffic = read(loaded, line(rules, found({"medical": 0.9, "legal": 0.1})), line(keyword), line(rules, late))
    by_rules, domain = scored_of(traffic, loaded)
    assert traffic.decisions == 3
    assert (by_rules.method, by_rules.values.tolist()) == ("embedding rules", [[0.3, 0.55]] * 2)
    assert (domain.method, domain.values.tolist(), domain.right) == ("domain model", [[0.9, 0.1]], None)
    assert [(knob.path, knob.columns, knob.threshold) for knob in domain.knobs] == [
        (("classifier", "category_model", "threshold"), (0, 1), 0.7)
    ]


def test_a_rule_has_its_threshold_from_the_configuration_unless_others_share_its_category(loaded: Loaded) -> None:
    traffic = read(loaded, line(found({"medical": 0.3, "legal": 0.55}, "embedding", "similarity")))
    (rules,) = scored_of(traffic, loaded)
    medical, legal = rules.knobs
    assert (medical.path, medical.threshold, medical.fixed) == (("embedding_rules", 0, "threshold"), 0.4, None)
    assert legal.fixed == "2 rules are for legal, and the record has one score for them"


def test_rules_with_a_head_behind_them_are_left_alone_and_the_head_has_a_threshold_a_category(loaded: Loaded) -> None:
    rules = found({"medical": 0.7}, "embedding", "similarity")
    traffic = read(loaded, line(rules), line(found({"medical": 0.2, "legal": 0.8}, "embedding")))
    by_rules, head = scored_of(traffic, loaded)
    assert by_rules.knobs[0].fixed == "where no rule is sure a head answers, and the record has the head's scores alone"
    assert [(knob.path, knob.threshold) for knob in head.knobs] == [
        (("classifier", "embedding_model", "thresholds", "medical"), 0.6),
        (("classifier", "embedding_model", "thresholds", "legal"), 0.6),
    ]


def test_each_prompt_of_a_request_with_several_counts(loaded: Loaded) -> None:
    one, other = found({"medical": 0.9, "legal": 0.1}), found({"medical": 0.3, "legal": 0.7})
    traffic = read(loaded, line(one, other, prompts=2, asked_for="medical-lora", reason="observe"))
    (domain,) = scored_of(traffic, loaded)
    assert domain.values.tolist() == [[0.9, 0.1], [0.3, 0.7]]
    assert labelled_of(traffic, loaded) == []  # nobody knows which of them the client's model is for


SCORES = {"medical": 0.9, "legal": 0.1, "general": 0.0}


@pytest.mark.parametrize(
    ("asked_for", "right"),
    [
        ("medical-lora", [True, False, False]),
        ("legal-lora", [False, True, False]),
        ("acme/base", [False, False, True]),
        ("base", [False, False, True]),
        (None, [False, False, True]),
    ],
)
def test_the_model_that_a_client_names_is_a_label_where_routing_only_observes(
    loaded: Loaded, asked_for: str | None, right: list[bool]
) -> None:
    traffic = read(loaded, line(found(SCORES), asked_for=asked_for, reason="observe"))
    (domain,) = labelled_of(traffic, loaded)
    assert domain.right is not None and domain.right.tolist() == [right]
    assert domain.labelled == {name: 1 for name, holds in zip(SCORES, right, strict=True) if holds}
    assert traffic.labels == {"the model that the client names": 1}


@pytest.mark.parametrize(
    ("asked_for", "reason"), [("MoM", "observe"), ("auto", "observe"), ("medical-lora", "named"), ("MoM", "routed")]
)
def test_other_requests_have_no_label(loaded: Loaded, asked_for: str, reason: str) -> None:
    traffic = read(loaded, line(found(SCORES), asked_for=asked_for, reason=reason))
    assert labelled_of(traffic, loaded) == [] and len(scored_of(traffic, loaded)) == 1
    assert traffic.unknown == {}


def test_a_category_without_an_entry_for_this_base_is_served_by_the_default(tmp_path: Path) -> None:
    text = CONFIG.replace("{name: general, model_scores: [{model: base}]}", "{name: other, model_scores: [{model: b}]}")
    text = text.replace("model_config: {", "model_config: {b: {}, ").replace(
        "default_model: base", "default_model: x-lora"
    )
    text = text.replace("{name: legal-lora}]", "{name: legal-lora}, {name: x-lora}]")
    (tmp_path / "config.yaml").write_text(text)
    loaded = load(tmp_path / "config.yaml")
    scores = {"medical": 0.9, "legal": 0.1, "other": 0.0}
    recorded = [line(found(scores), asked_for="x-lora", reason="observe")]
    (domain,) = labelled_of(read_traffic(recorded, loaded, served_base(loaded, ["base"])), loaded)
    assert domain.right is not None and domain.right.tolist() == [[False, False, True]]


def test_an_adapter_that_serves_no_category_is_told_of_and_is_no_label(loaded: Loaded) -> None:
    traffic = read(loaded, line(found(SCORES), asked_for="other-lora", reason="observe"))
    assert labelled_of(traffic, loaded) == [] and traffic.unknown == {"other-lora": 1}


def test_feedback_says_of_the_category_that_answered_whether_it_was_right(loaded: Loaded) -> None:
    traffic = read(
        loaded,
        line(found(SCORES), feedback=(1.0,)),
        line(found(SCORES), feedback=(0.0, 0.0, 1.0)),
        line(found({"medical": 0.4, "legal": 0.1}), feedback=(1.0,)),
        line(found(SCORES)),
    )
    (domain,) = labelled_of(traffic, loaded)
    assert domain.right is not None
    assert domain.right[:, 0].tolist() == [True, False]
    assert np.isnan(domain.values[:, 1:]).all() and domain.values[:, 0].tolist() == [0.9, 0.9]
    assert domain.labelled == {"medical": 2} and traffic.labels == {"feedback": 2}


def test_feedback_on_another_scale_is_told(loaded: Loaded) -> None:
    with pytest.raises(FeedbackError, match="feedback on chatcmpl-7 is 5: as labels serve scores from 0"):
        read(loaded, line(found(SCORES), feedback=(5.0,)))
