"""YAML that sets chosen thresholds."""

from pathlib import Path

import pytest
import yaml

from vllm_lora_router.config import LoadedConfig, load
from vllm_lora_router.tools.calibrate.yaml_patch import yaml_patch

CONFIG = """\
model_config: {base: {}}
classifier: {embedding_model: {thresholds: {"no": 0.5, "größe: x": 0.4}}}
default_model: base
embedding_rules:
  - {category: "größe: x", threshold: 0.4, candidates: [a]}
  - {category: "no", candidates: [b]}
categories:
  - {name: "größe: x", model_scores: [{model: base}]}
  - {name: "no", model_scores: [{model: base}]}
"""
RULE_0, RULE_1 = (("embedding_rules", index, "threshold") for index in (0, 1))
DOMAIN = ("classifier", "category_model", "threshold")
HEAD = ("classifier", "embedding_model", "thresholds")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedConfig:
    (tmp_path / "config.yaml").write_text(CONFIG, "utf-8")
    return load(tmp_path / "config.yaml")


def test_patch_contains_only_changes_in_the_configurations_structure(loaded: LoadedConfig) -> None:
    text = yaml_patch(loaded, {DOMAIN: 0.52, RULE_1: 0.7125})
    assert yaml.safe_load(text) == {
        "classifier": {"category_model": {"threshold": 0.52}},
        "embedding_rules": [{"category": "no", "threshold": 0.7125}],
    }
    assert '"no" # embedding_rules[1], line 6; was 0.6' in text


def test_patch_of_a_mapping_includes_its_unchanged_values(loaded: LoadedConfig) -> None:
    text = yaml_patch(loaded, {(*HEAD, "größe: x"): 0.3, (*HEAD, "new"): 0.7})
    expected = {"no": 0.5, "größe: x": 0.3, "new": 0.7}
    assert yaml.safe_load(text) == {"classifier": {"embedding_model": {"thresholds": expected}}}
    assert "thresholds" not in yaml_patch(loaded, {DOMAIN: 0.5})


def test_patch_without_changes_is_empty(loaded: LoadedConfig) -> None:
    assert yaml_patch(loaded, {}) == ""


def test_pasted_patch_loads(loaded: LoadedConfig) -> None:
    patch = yaml.safe_load(yaml_patch(loaded, {RULE_0: 0.123, RULE_1: 1.0, DOMAIN: 0.0}))
    content = yaml.safe_load(CONFIG)
    for rule, change in zip(content["embedding_rules"], patch["embedding_rules"], strict=True):
        assert rule["category"] == change["category"]
        rule.update(change)
    file = loaded.file.with_name("new.yaml")
    file.write_text(yaml.safe_dump({**content, "classifier": patch["classifier"]}), "utf-8")
    config = load(file).config
    assert [rule.threshold for rule in config.embedding_rules] == [0.123, 1.0]
    assert config.classifier.category_model.threshold == 0.0
