"""Scores of labelled prompts under each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from vllm_lora_router.classifiers.factory import build
from vllm_lora_router.config import LoadedConfig, load
from vllm_lora_router.tools.calibrate.labelled import score_examples
from vllm_lora_router.tools.data.examples import Example

from ..evaluate.encoder import RULES, needs_encoder, write_encoder

EXAMPLES = (
    Example("fever", "medical"),
    Example("knee", "medical"),
    Example("lawsuit", "legal"),
    Example("medicine", "medical"),
    Example("weather", None),
)

pytestmark = needs_encoder


def loaded(folder: Path, *changes: tuple[str, str], more: str = "") -> LoadedConfig:
    if not (folder / "encoder").exists():
        write_encoder(folder / "encoder")
    text = RULES
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "config.yaml"
    file.write_text(text + more, "utf-8")
    return load(file)


def rounded(values: np.ndarray) -> Sequence[Sequence[float]]:
    return values.round(4).tolist()


def test_each_rule_scores_every_prompt_whatever_its_threshold(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    (rules,) = score_examples(loaded(tmp_path), EXAMPLES, lambda *report: reports.append(report))
    assert (rules.method, rules.categories) == ("embedding rules", ("medical", "legal"))
    assert rounded(rules.values) == [[0.9, 0.1], [0.5, 0.3], [0.2, 0.7], [1.0, 0.0], [0.4, 0.2]]
    assert rules.correct is not None
    assert rules.correct.tolist() == [[True, False], [True, False], [False, True], [True, False], [False, False]]
    assert [(threshold.path, threshold.value) for threshold in rules.thresholds] == [
        (("embedding_rules", 0, "threshold"), 0.6),
        (("embedding_rules", 1, "threshold"), 0.6),
    ]
    assert rules.labelled == {"medical": 3, "legal": 1}
    assert reports == [("embedding scores", 5, 5)]


def test_two_rules_of_one_category_have_two_thresholds(tmp_path: Path) -> None:
    second = "  - {category: medical, threshold: 0.3, candidates: [knee, cough], aggregation_method: mean}\n"
    (rules,) = score_examples(loaded(tmp_path, ("categories:\n", second + "categories:\n")), EXAMPLES)
    assert rules.categories == ("medical", "legal", "medical")
    assert [threshold.path[1] for threshold in rules.thresholds] == [0, 1, 2]
    assert rules.values[3].round(4).tolist() == [1.0, 0.0, pytest.approx(0.6)]


def test_scores_ignore_keyword_rules_and_categories_without_the_method(tmp_path: Path) -> None:
    more = "keyword_rules: [{category: legal, keywords: [fever, knee, weather]}]\n"
    changes = ("{name: medical, model_scores", "{name: medical, methods: [keyword], model_scores")
    (rules,) = score_examples(loaded(tmp_path, changes, more=more), EXAMPLES)
    assert rules.categories == ("legal",)
    assert [threshold.path for threshold in rules.thresholds] == [("embedding_rules", 1, "threshold")]
    assert rounded(rules.values) == [[0.1], [0.3], [0.7], [0.0], [0.2]]


def test_configuration_without_thresholds_has_no_scores(tmp_path: Path) -> None:
    config = yaml.safe_load(RULES)
    del config["embedding_rules"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert score_examples(load(file), EXAMPLES) == []
    assert score_examples(loaded(tmp_path, more="router: {methods: [keyword]}\n"), EXAMPLES) == []


def test_scores_are_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    words = ["fever", "lawsuit", "knee"]
    examples = [Example(f"{words[n % 3]} {'and so on ' * (n * 7 % 11)}", None) for n in range(100)]
    (rules,) = score_examples(loaded(tmp_path), examples)
    assert rules.values[:, 0].round(4).tolist() == [(0.9, 0.2, 0.5)[n % 3] for n in range(100)]


def test_long_text_is_scored_by_windows_as_in_routing(tmp_path: Path) -> None:
    settings = loaded(tmp_path, more="router: {text: {max_tokens: 8}}\n")
    texts = ["fever " * 20 + "lawsuit " * 20, "knee", "rent " * 7 + "fever " * 9]
    (rules,) = score_examples(settings, [Example(text, None) for text in texts])
    classifier = build(settings).model_classifiers["embedding"]
    classifications = classifier.scorer.worker.run_blocking(lambda: classifier.decide(texts))
    assert rules.values.tolist() == [
        [classification.scores["medical"], classification.scores["legal"]] for classification in classifications
    ]
    assert rules.values[0].tolist() == [pytest.approx((0.9 + 0.2) / 2), pytest.approx((0.1 + 0.7) / 2)]
