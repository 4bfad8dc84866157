"""Construction of the classifiers of a configuration, and the deadline that is measured for them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_lora_router.classifiers.factory import build
from vllm_lora_router.classifiers.model_classifier import ModelClassifier
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


async def test_keyword_rules_need_no_model(loaded: Load) -> None:
    classifiers = build(loaded(RULES))
    (step,) = await classifiers.cascade.classify(Query("a fever"))
    assert step.classification is not None
    assert (step.method, step.classification.category, step.classification.accepted) == ("keyword", "medical", True)
    assert (classifiers.label_mapping, classifiers.cascade.deadline_ms) == ((), 50)


async def test_a_rule_whose_category_excludes_the_method_is_ignored_and_the_other_rules_keep_their_positions(
    loaded: Load,
) -> None:
    categories = (
        "categories:\n"
        "  - {name: technical, methods: [domain], model_scores: [{model: base}]}\n"
        "  - {name: medical, methods: [keyword], model_scores: [{model: base}]}\n"
    )
    cascade = build(loaded(RULES + categories)).cascade
    (python,), (fever,) = await cascade.classify(Query("Python")), await cascade.classify(Query("fever"))
    assert python.classification is not None
    assert python.classification.category is None
    assert fever.classification is not None
    assert fever.classification.evidence["rule"] == 1


def test_without_rules_and_models_the_cascade_is_empty(loaded: Load) -> None:
    assert build(loaded("classifier: {embedding_model: {head: off}}")).cascade.classifiers == ()
    assert build(loaded(RULES + "router: {methods: [embedding, domain]}\n")).cascade.classifiers == ()


@needs_encoder
@pytest.mark.parametrize(
    ("settings", "single_ms", "deadline_ms", "level", "message"),
    [
        ("{}", 2, 50, None, ""),
        ("{}", 20, 80, logging.INFO, "using 80 ms for all methods together"),
        (
            "{}",
            200,
            800,
            logging.WARNING,
            "using 800 ms for all methods together, because their models take 200 ms for one short text",
        ),
        ("{}", 600, 1000, logging.WARNING, "using 1000 ms for all methods together"),
        (
            "{}",
            2000,
            1000,
            logging.WARNING,
            "takes 2000 ms on this machine, but router.deadline_ms is 1000",
        ),
        ("{deadline_ms: 20}", 2, 20, None, ""),
        ("{deadline_ms: 20}", 10, 20, None, ""),
        (
            "{deadline_ms: 20}",
            30,
            20,
            logging.WARNING,
            "one short text takes 30 ms on this machine, but router.deadline_ms is 20",
        ),
    ],
)
def test_without_a_configured_deadline_it_is_measured_on_this_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: str,
    single_ms: float,
    deadline_ms: float,
    level: int | None,
    message: str,
) -> None:
    def warm_up(self: ModelClassifier, text: str) -> None:
        self.single_text_s = single_ms / 1000

    monkeypatch.setattr(ModelClassifier, "warm_up", warm_up)
    write_encoder(tmp_path / "encoder")
    file = tmp_path / "config.yaml"
    file.write_text(f"{EMBEDDING_RULES}router: {settings}\n", "utf-8")
    with caplog.at_level(logging.INFO, "vllm_lora_router.classifiers"):
        built = build(load(file))
    assert built.cascade.deadline_ms == deadline_ms
    assert built.model_classifiers["embedding"].batcher.budget_s == deadline_ms / 4000
    records = [record for record in caplog.records if "deadline_ms" in record.message]
    assert {record.levelno for record in records} == ({level} if level else set())
    assert message in " ".join(record.message for record in records)
