"""From a configuration to its classifiers: here those that need no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lora_router.classifiers.build import build
from vllm_lora_router.values import Query

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
    assert (step.method, step.classification.category, step.classification.sure) == ("keyword", "medical", True)
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
