"""A head on the encoder: where it comes from, when it is asked, and what it must not be."""

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
from vllm_lora_router.classifiers.heads.storage import PROBES, Stored, write
from vllm_lora_router.classifiers.model_classifier import ScoredClassifier
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


class Network:
    """An encoder to which a text is the mean of its words, each of which lies where chance put it."""

    tokenizer = None
    longest = 512
    runs_on = "test, cpu"
    on_any_thread = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.passes = 0

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        self.passes += 1
        rows = [np.sum([self._word(word) for word in text.split()], axis=0) for text in texts]
        found = np.array(rows)
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        return np.random.default_rng([self.seed, *word.encode()]).normal(size=24) * (3 if len(word) == 4 else 1)


def encoder(seed: int = 0) -> Encoder:
    return Encoder(Network(seed), 64, Worker("test"), f"words {seed}")


def test_examples_of_the_configuration_make_a_head(loaded: Load) -> None:
    words = encoder()
    head = load_head(loaded(EXAMPLES), words)
    assert head is not None and head.few is not None and head.few.calibrated
    assert head.thresholds == {"technical": 0.5, "medical": 0.5}
    found = ScoredClassifier(EmbeddingScorer([], words, 2, head)).decide(["code loop index", "pain knee", "moon cake"])
    assert [one.category for one in found[:2]] == ["technical", "medical"]
    assert [one.accepted for one in found] == [True, True, False]
    assert {one.scale for one in found} == {"probability"}
    assert found[0].evidence["none"] == pytest.approx(1 - sum(found[0].scores.values()), abs=1e-3)


def test_rules_come_first_and_share_the_pass_of_the_encoder(loaded: Load) -> None:
    words = encoder()
    head = load_head(loaded(EXAMPLES), words)
    rule = EmbeddingRule(category="general", threshold=0.9, candidates=["code loop"])
    classifier = ScoredClassifier(EmbeddingScorer([(0, rule)], words, 2, head))
    before = words.network.passes  # pyright: ignore[reportAttributeAccessIssue]
    ruled, headed, unsure = classifier.decide(["code loop", "code test type", "moon cake"])
    assert words.network.passes == before + 1  # pyright: ignore[reportAttributeAccessIssue]
    assert (ruled.category, ruled.scale, ruled.accepted) == ("general", "similarity", True)
    assert (headed.category, headed.scale, headed.accepted) == ("technical", "probability", True)
    assert (unsure.scale, unsure.accepted) == ("probability", False)


def test_a_category_that_embeddings_may_not_choose_is_not_chosen(loaded: Load) -> None:
    words = encoder()
    head = load_head(loaded(EXAMPLES), words)
    (found,) = ScoredClassifier(EmbeddingScorer([], words, 2, head, ["medical"])).decide(["code loop index"])
    assert (found.category, found.accepted) == ("medical", False)
    assert set(found.scores) == {"medical"}


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ("", False),  # another method says how to tell the categories apart, and there are descriptions alone
        ("head: auto", True),
        ("head: off", False),
    ],
)
def test_descriptions_make_a_head_where_one_is_asked_for(loaded: Load, settings: str, there: bool) -> None:
    rules = "keyword_rules: [{category: medical, keywords: [x]}]"
    config = loaded(f"classifier: {{embedding_model: {{{settings}}}}}\n{rules}")
    assert (load_head(config, encoder()) is not None) == there


def test_descriptions_make_a_head_where_nothing_else_is_said(loaded: Load) -> None:
    head = load_head(loaded(""), encoder())
    assert head is not None and head.few is not None and not head.few.calibrated
    assert head.head.categories == ("technical", "medical")


def test_thresholds_of_the_configuration_stand_before_those_of_the_head(loaded: Load, tmp_path: Path) -> None:
    stored = _stored(loaded, tmp_path)
    settings = "head: head, threshold: 0.8, thresholds: {medical: 0.3}"
    head = load_head(loaded(f"classifier: {{embedding_model: {{{settings}}}}}"), encoder())
    assert head is not None and head.thresholds == {"technical": 0.8, "medical": 0.3}
    head = load_head(loaded("classifier: {embedding_model: {head: head}}"), encoder())
    assert head is not None and head.thresholds == stored.thresholds


def test_a_stored_head_answers_as_the_one_that_was_written(loaded: Load, tmp_path: Path) -> None:
    stored, words = _stored(loaded, tmp_path), encoder()
    head = load_head(loaded("classifier: {embedding_model: {head: head}}"), words)
    asked = words.encode(["code loop", "pain leg"])
    assert head is not None and np.array_equal(head.head(asked), stored.head(asked))


def test_a_head_of_another_encoder_is_refused(loaded: Load, tmp_path: Path) -> None:
    _stored(loaded, tmp_path)
    with pytest.raises(ClassifierError, match="head was fitted on words, which is another encoder than sentence-tr"):
        load_head(loaded("classifier: {embedding_model: {head: head}}"), encoder(seed=1))


def test_a_head_that_knows_other_categories_is_refused(loaded: Load, tmp_path: Path) -> None:
    stored = _stored(loaded, tmp_path)
    other = replace(stored, head=replace(stored.head, outputs=["technical", "medcal"]))
    write(tmp_path / "head", replace(other, thresholds={"technical": 0.5, "medcal": 0.5}))
    with pytest.raises(ClassifierError, match=r"knows 'medcal', which is not a category .* did you mean 'medical'"):
        load_head(loaded("classifier: {embedding_model: {head: head}}"), encoder())


def test_a_folder_that_is_not_there_is_named(loaded: Load, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"embedding_model.head: no such folder: 'heads'.*fit writes one"):
        load_head(loaded("classifier: {embedding_model: {head: heads}}"), encoder())


def test_what_a_head_answers_stands_in_its_fingerprint(loaded: Load) -> None:
    words = encoder()
    head = load_head(loaded(EXAMPLES), words)
    other = load_head(loaded(EXAMPLES.replace("pain foot", "pain toes")), words)
    assert head is not None and other is not None
    lower = replace(head, thresholds={"technical": 0.4, "medical": 0.5})
    prints = [EmbeddingScorer([], words, 2, one).fingerprint for one in (head, other, lower)]
    assert len({*prints, EmbeddingScorer([], words, 2, head, ["medical"]).fingerprint}) == 4
    assert prints[0] == EmbeddingScorer([], words, 2, head).fingerprint


def _stored(loaded: Load, folder: Path) -> Stored:
    words = encoder()
    head = load_head(loaded(EXAMPLES), words)
    assert head is not None
    stored = Stored(head.head, "words", words.encode(PROBES), {"technical": 0.6, "medical": 0.7}, {})
    write(folder / "head", stored)
    return stored
