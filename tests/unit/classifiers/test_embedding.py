"""Embedding rules: the score of a rule from the similarities of its examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vllm_lora_router.classifiers.embedding import EmbeddingScorer
from vllm_lora_router.classifiers.models.encoder import Encoder
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.config.schema import EmbeddingRule

# Cosine of each example with the text "x", which is on the first axis.
COSINES = {"x": 1.0, "near": 0.8, "middle": 0.6, "far": 0.28, "opposite": -0.6}


class TwoDimensionalModel:
    """An encoder with two dimensions."""

    tokenizer = None
    max_length = 512
    runs_on = "test, cpu"
    thread_safe = False

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        assert max_tokens in (8, 32, 64)
        return np.array([(cosine := COSINES[text], (1 - cosine**2) ** 0.5) for text in texts], dtype=np.float32)


def scorer(*rules: dict[str, Any], max_tokens: int = 64) -> EmbeddingScorer:
    placed = [(place, EmbeddingRule(**{"category": f"r{place}", **rule})) for place, rule in enumerate(rules)]
    return EmbeddingScorer(placed, Encoder(TwoDimensionalModel(), max_tokens, Worker("test"), f"model {max_tokens}"), 2)


@pytest.mark.parametrize(("method", "score"), [("mean", 0.27), ("avg", 0.27), ("max", 0.8), ("any", 0.8)])
def test_aggregation_method_combines_the_similarities_of_examples(method: str, score: float) -> None:
    rule = {"candidates": ["near", "opposite", "middle", "far"], "aggregation_method": method}
    values = scorer(rule).score(["x"])[0].values
    assert values.tolist() == [[pytest.approx(score, abs=1e-6)]]


def test_by_default_the_nearest_example_decides() -> None:
    assert float(scorer({"candidates": ["near", "far"]}).score(["x"])[0].values[0, 0]) == pytest.approx(0.8)


def test_keywords_and_candidates_of_a_rule_are_its_examples() -> None:
    rules = scorer(
        {"candidates": ["far"], "threshold": 0.2},
        {"keywords": ["near"], "candidates": ["middle"], "aggregation_method": "mean", "category": "b"},
        {"keywords": ["opposite"]},
    )
    assert rules.score(["x"])[0].values[0].tolist() == pytest.approx([0.28, 0.7, -0.6], abs=1e-6)
    assert [(column.category, column.threshold) for column in rules.groups[0].columns] == [
        ("r0", 0.2),
        ("b", 0.6),
        ("r2", 0.6),
    ]


def test_each_text_of_a_batch_has_its_nearest_example_as_evidence() -> None:
    (scores,) = scorer({"candidates": ["near", "opposite"]}).score(["x", "opposite"])
    assert scores.values.shape == (2, 1)
    assert scores.values.dtype == np.float32
    assert list(scores.evidence) == [
        {"nearest": "near", "similarity": 0.8},
        {"nearest": "opposite", "similarity": 1.0},
    ]


def test_the_fingerprint_depends_on_rules_and_encoder() -> None:
    rule = {"candidates": ["near"]}
    variants = [
        scorer(rule),
        scorer({**rule, "threshold": 0.5}),
        scorer({"candidates": ["far"]}),
        scorer(rule, max_tokens=32),
    ]
    assert len({variant.fingerprint for variant in variants}) == 4
    assert scorer(rule).fingerprint == scorer(rule).fingerprint


def test_a_short_text_is_one_window() -> None:
    assert scorer({"candidates": ["near"]}).windows("x") == ["x"]
