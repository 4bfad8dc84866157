"""The configured head: its source, its precedence after embedding rules, and the errors for an unsuitable head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.embedding import EmbeddingScorer
from vllm_lora_router.classifiers.head_loader import load_head
from vllm_lora_router.classifiers.heads.storage import PROBES, StoredHead, write_head
from vllm_lora_router.classifiers.model_classifier import ModelClassifier
from vllm_lora_router.classifiers.models.encoder import Encoder
from vllm_lora_router.classifiers.models.worker import Worker
from vllm_lora_router.config.schema import EmbeddingRule

if TYPE_CHECKING:
    from .conftest import Load

EXAMPLES = """
categories:
  - name: technical
    examples: [code loop, code test, code index, code type]
    model_scores: [{model: base, lora_name: technical-lora}]
  - name: medical
    examples: [pain arm, pain head, pain knee, pain foot]
    model_scores: [{model: base, lora_name: medical-lora}]
  - {name: general, model_scores: [{model: base}]}
"""


class WordModel:
    """An encoder that embeds a text as the mean of random word vectors."""

    tokenizer = None
    max_length = 512
    runs_on = "test, cpu"
    thread_safe = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.passes = 0

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        self.passes += 1
        rows = [np.sum([self._word_vector(word) for word in text.split()], axis=0) for text in texts]
        vectors = np.array(rows)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def _word_vector(self, word: str) -> np.ndarray:
        return np.random.default_rng([self.seed, *word.encode()]).normal(size=24) * (3 if len(word) == 4 else 1)


def encoder(seed: int = 0) -> Encoder:
    return Encoder(WordModel(seed), 64, Worker("test"), f"words {seed}")


def test_examples_of_the_configuration_create_a_head(loaded: Load) -> None:
    word_encoder = encoder()
    head = load_head(loaded(EXAMPLES), word_encoder)
    assert head is not None and head.few_shot is not None and head.few_shot.calibrated
    assert head.thresholds == {"technical": 0.5, "medical": 0.5}
    classifier = ModelClassifier(EmbeddingScorer([], word_encoder, 2, head))
    results = classifier.decide(["code loop index", "pain knee", "moon cake"])
    assert [result.category for result in results[:2]] == ["technical", "medical"]
    assert [result.accepted for result in results] == [True, True, False]
    assert {result.scale for result in results} == {"probability"}
    assert results[0].evidence["none"] == pytest.approx(1 - sum(results[0].scores.values()), abs=1e-3)


def test_rules_take_precedence_and_share_the_encoder_pass_with_the_head(loaded: Load) -> None:
    word_encoder = encoder()
    head = load_head(loaded(EXAMPLES), word_encoder)
    rule = EmbeddingRule(category="general", threshold=0.9, candidates=["code loop"])
    classifier = ModelClassifier(EmbeddingScorer([(0, rule)], word_encoder, 2, head))
    before = word_encoder.model.passes  # pyright: ignore[reportAttributeAccessIssue]
    by_rule, by_head, below_threshold = classifier.decide(["code loop", "code test type", "moon cake"])
    assert word_encoder.model.passes == before + 1  # pyright: ignore[reportAttributeAccessIssue]
    assert (by_rule.category, by_rule.scale, by_rule.accepted) == ("general", "similarity", True)
    assert (by_head.category, by_head.scale, by_head.accepted) == ("technical", "probability", True)
    assert (below_threshold.scale, below_threshold.accepted) == ("probability", False)


def test_a_category_whose_methods_exclude_embedding_is_not_chosen(loaded: Load) -> None:
    word_encoder = encoder()
    head = load_head(loaded(EXAMPLES), word_encoder)
    (result,) = ModelClassifier(EmbeddingScorer([], word_encoder, 2, head, ["medical"])).decide(["code loop index"])
    assert (result.category, result.accepted) == ("medical", False)
    assert set(result.scores) == {"medical"}


@pytest.mark.parametrize(
    ("settings", "has_head"),
    [
        ("", False),  # another method is configured, and the categories have only descriptions
        ("head: auto", True),
        ("head: off", False),
    ],
)
def test_head_auto_creates_a_head_from_descriptions(loaded: Load, settings: str, has_head: bool) -> None:
    rules = "keyword_rules: [{category: medical, keywords: [x]}]"
    config = loaded(f"classifier: {{embedding_model: {{{settings}}}}}\n{rules}")
    assert (load_head(config, encoder()) is not None) == has_head


def test_without_other_settings_descriptions_create_a_head(loaded: Load) -> None:
    head = load_head(loaded(""), encoder())
    assert head is not None and head.few_shot is not None and not head.few_shot.calibrated
    assert head.head.categories == ("technical", "medical")


def test_configured_thresholds_take_precedence_over_those_of_the_head(loaded: Load, tmp_path: Path) -> None:
    stored = _write_head(loaded, tmp_path)
    settings = "head: head, threshold: 0.8, thresholds: {medical: 0.3}"
    head = load_head(loaded(f"classifier: {{embedding_model: {{{settings}}}}}"), encoder())
    assert head is not None and head.thresholds == {"technical": 0.8, "medical": 0.3}
    head = load_head(loaded("classifier: {embedding_model: {head: head}}"), encoder())
    assert head is not None and head.thresholds == stored.thresholds


def test_a_stored_head_gives_the_same_probabilities_as_the_written_one(loaded: Load, tmp_path: Path) -> None:
    stored, word_encoder = _write_head(loaded, tmp_path), encoder()
    head = load_head(loaded("classifier: {embedding_model: {head: head}}"), word_encoder)
    vectors = word_encoder.encode(["code loop", "pain leg"])
    assert head is not None and np.array_equal(head.head(vectors), stored.head(vectors))


def test_a_head_of_another_encoder_is_refused(loaded: Load, tmp_path: Path) -> None:
    _write_head(loaded, tmp_path)
    with pytest.raises(ClassifierError, match="head was fitted on words, which is another encoder than sentence-tr"):
        load_head(loaded("classifier: {embedding_model: {head: head}}"), encoder(seed=1))


def test_a_head_with_unknown_categories_is_refused(loaded: Load, tmp_path: Path) -> None:
    stored = _write_head(loaded, tmp_path)
    other = replace(stored, head=replace(stored.head, outputs=["technical", "medcal"]))
    write_head(tmp_path / "head", replace(other, thresholds={"technical": 0.5, "medcal": 0.5}))
    with pytest.raises(
        ClassifierError, match=r"has the category 'medcal', which this file does not have; did you mean 'medical'"
    ):
        load_head(loaded("classifier: {embedding_model: {head: head}}"), encoder())


def test_a_missing_folder_is_reported(loaded: Load, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"embedding_model.head: no such folder: 'heads'.*fit writes one"):
        load_head(loaded("classifier: {embedding_model: {head: heads}}"), encoder())


def test_the_fingerprint_depends_on_the_head_its_thresholds_and_the_allowed_categories(loaded: Load) -> None:
    word_encoder = encoder()
    head = load_head(loaded(EXAMPLES), word_encoder)
    other = load_head(loaded(EXAMPLES.replace("pain foot", "pain toes")), word_encoder)
    assert head is not None and other is not None
    lower = replace(head, thresholds={"technical": 0.4, "medical": 0.5})
    fingerprints = [EmbeddingScorer([], word_encoder, 2, each).fingerprint for each in (head, other, lower)]
    assert len({*fingerprints, EmbeddingScorer([], word_encoder, 2, head, ["medical"]).fingerprint}) == 4
    assert fingerprints[0] == EmbeddingScorer([], word_encoder, 2, head).fingerprint


def _write_head(loaded: Load, folder: Path) -> StoredHead:
    word_encoder = encoder()
    head = load_head(loaded(EXAMPLES), word_encoder)
    assert head is not None
    stored = StoredHead(head.head, "words", word_encoder.encode(PROBES), {"technical": 0.6, "medical": 0.7}, {})
    write_head(folder / "head", stored)
    return stored
