"""From a configuration to its classifiers: here those that need no model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.factory import build
from vllm_lora_router.classifiers.model_classifier import ScoredClassifier
from vllm_lora_router.config import load
from vllm_lora_router.types import Query

from ..tools.evaluate.encoder import RULES as EMBEDDING_RULES
from ..tools.evaluate.encoder import needs_encoder, write_encoder

if TYPE_CHECKING:
    from .conftest import Load

RULES = """
keyword_rules:
  - {category: technical, keywords: [Python]}
  - {category: medical, keywords: [fever]}
"""


async def test_keyword_rules_answer_without_any_model(loaded: Load) -> None:
    classifiers = build(loaded(RULES))
    (step,) = await classifiers.cascade.ask(Query("a fever"))
    assert step.classification is not None
    assert (step.method, step.classification.category, step.classification.accepted) == ("keyword", "medical", True)
    assert (classifiers.labels, classifiers.cascade.deadline_ms) == ((), 50)


async def test_a_rule_whose_category_leaves_the_method_out_does_nothing_and_the_others_keep_their_places(
    loaded: Load,
) -> None:
    categories = (
        "categories:\n"
        "  - {name: technical, methods: [domain], model_scores: [{model: base}]}\n"
        "  - {name: medical, methods: [keyword], model_scores: [{model: base}]}\n"
    )
    cascade = build(loaded(RULES + categories)).cascade
    (python,), (fever,) = await cascade.ask(Query("Python")), await cascade.ask(Query("fever"))
    assert python.classification is not None
    assert python.classification.category is None
    assert fever.classification is not None
    assert fever.classification.evidence["rule"] == 1


def test_without_rules_or_models_there_is_nothing_to_ask(loaded: Load) -> None:
    assert build(loaded("classifier: {embedding_model: {head: off}}")).cascade.classifiers == ()
    assert build(loaded(RULES + "router: {methods: [embedding, domain]}\n")).cascade.classifiers == ()


@needs_encoder
@pytest.mark.parametrize(
    ("settings", "lone_ms", "deadline_ms", "level", "said"),
    [
        ("{}", 2, 50, None, ""),
        ("{}", 20, 80, logging.INFO, "methods have 80 ms together"),
        (
            "{}",
            200,
            800,
            logging.WARNING,
            "methods have 800 ms together, since a short question takes their models 200 ms here",
        ),
        ("{}", 600, 1000, logging.WARNING, "methods have 1000 ms together"),
        ("{}", 2000, 1000, logging.WARNING, "takes 2000 ms for one short question here, router.deadline_ms is 1000"),
        ("{deadline_ms: 20}", 2, 20, None, ""),
        ("{deadline_ms: 20}", 10, 20, None, ""),
        (
            "{deadline_ms: 20}",
            30,
            20,
            logging.WARNING,
            "takes 30 ms for one short question here, router.deadline_ms is 20",
        ),
    ],
)
def test_without_a_deadline_methods_have_what_suits_the_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: str,
    lone_ms: float,
    deadline_ms: float,
    level: int | None,
    said: str,
) -> None:
    def warm_up(self: ScoredClassifier, text: str) -> None:
        self.lone_s = lone_ms / 1000

    monkeypatch.setattr(ScoredClassifier, "warm_up", warm_up)
    write_encoder(tmp_path / "encoder")
    file = tmp_path / "config.yaml"
    file.write_text(f"{EMBEDDING_RULES}router: {settings}\n", "utf-8")
    with caplog.at_level(logging.INFO, "vllm_lora_router.classifiers"):
        built = build(load(file))
    assert built.cascade.deadline_ms == deadline_ms
    assert built.scored["embedding"].batcher.budget_s == deadline_ms / 2000
    told = [record for record in caplog.records if "deadline_ms" in record.message]
    assert {record.levelno for record in told} == ({level} if level else set())
    assert said in " ".join(record.message for record in told)
