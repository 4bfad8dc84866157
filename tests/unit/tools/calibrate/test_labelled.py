"""What methods say of labelled prompts, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from vllm_lora_router.classifiers.factory import build
from vllm_lora_router.config import Loaded, load
from vllm_lora_router.tools.calibrate.labelled import score
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


def loaded(folder: Path, *changes: tuple[str, str], more: str = "") -> Loaded:
    if not (folder / "encoder").exists():
        write_encoder(folder / "encoder")
    text = RULES
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "config.yaml"
    file.write_text(text + more, "utf-8")
    return load(file)


def columns(found: np.ndarray) -> Sequence[Sequence[float]]:
    return found.round(4).tolist()


def test_each_rule_is_scored_for_every_prompt_whatever_its_threshold(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    (rules,) = score(loaded(tmp_path), EXAMPLES, lambda *progress: told.append(progress))
    assert (rules.method, rules.categories) == ("embedding rules", ("medical", "legal"))
    assert columns(rules.values) == [[0.9, 0.1], [0.5, 0.3], [0.2, 0.7], [1.0, 0.0], [0.4, 0.2]]
    assert rules.right is not None
    assert rules.right.tolist() == [[True, False], [True, False], [False, True], [True, False], [False, False]]
    assert [(knob.path, knob.threshold) for knob in rules.knobs] == [
        (("embedding_rules", 0, "threshold"), 0.6),
        (("embedding_rules", 1, "threshold"), 0.6),
    ]
    assert rules.labelled == {"medical": 3, "legal": 1}
    assert told == [("embedding scores", 5, 5)]


def test_two_rules_of_one_category_are_two_thresholds(tmp_path: Path) -> None:
    second = "  - {category: medical, threshold: 0.3, candidates: [knee, cough], aggregation_method: mean}\n"
    (rules,) = score(loaded(tmp_path, ("categories:\n", second + "categories:\n")), EXAMPLES)
    assert rules.categories == ("medical", "legal", "medical")
    assert [knob.path[1] for knob in rules.knobs] == [0, 1, 2]
    assert rules.values[3].round(4).tolist() == [1.0, 0.0, pytest.approx(0.6)]


def test_keyword_rules_before_it_do_not_hide_a_prompt_from_a_rule_nor_does_a_category_without_the_method(
    tmp_path: Path,
) -> None:
    more = "keyword_rules: [{category: legal, keywords: [fever, knee, weather]}]\n"
    changes = ("{name: medical, model_scores", "{name: medical, methods: [keyword], model_scores")
    (rules,) = score(loaded(tmp_path, changes, more=more), EXAMPLES)
    assert rules.categories == ("legal",)
    assert [knob.path for knob in rules.knobs] == [("embedding_rules", 1, "threshold")]
    assert columns(rules.values) == [[0.1], [0.3], [0.7], [0.0], [0.2]]


def test_a_configuration_without_thresholds_has_nothing_to_score(tmp_path: Path) -> None:
    config = yaml.safe_load(RULES)
    del config["embedding_rules"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert score(load(file), EXAMPLES) == []
    assert score(loaded(tmp_path, more="router: {methods: [keyword]}\n"), EXAMPLES) == []


def test_prompts_come_back_in_their_order_however_long_they_are(tmp_path: Path) -> None:
    words = ["fever", "lawsuit", "knee"]
    examples = [Example(f"{words[n % 3]} {'and so on ' * (n * 7 % 11)}", None) for n in range(100)]
    (rules,) = score(loaded(tmp_path), examples)
    assert rules.values[:, 0].round(4).tolist() == [(0.9, 0.2, 0.5)[n % 3] for n in range(100)]


def test_a_long_text_is_scored_by_its_windows_as_it_is_when_it_is_routed(tmp_path: Path) -> None:
    settings = loaded(tmp_path, more="router: {text: {max_tokens: 8}}\n")
    texts = ["fever " * 20 + "lawsuit " * 20, "knee", "rent " * 7 + "fever " * 9]
    (rules,) = score(settings, [Example(text, None) for text in texts])
    classifier = build(settings).scored["embedding"]
    said = classifier.scorer.worker.run_blocking(lambda: classifier.decide(texts))
    assert rules.values.tolist() == [[one.scores["medical"], one.scores["legal"]] for one in said]
    assert rules.values[0].tolist() == [pytest.approx((0.9 + 0.2) / 2), pytest.approx((0.1 + 0.7) / 2)]
