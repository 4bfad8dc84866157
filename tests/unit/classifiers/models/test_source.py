"""Encoders whose files name foreign classes are refused before their code can run."""

import json
from pathlib import Path

import pytest

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.source import check_classes

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}


def test_modules_of_sentence_transformers_are_accepted(tmp_path: Path) -> None:
    check_classes(tmp_path)  # a plain transformers model
    (tmp_path / "modules.json").write_text(json.dumps([TRANSFORMER]))
    (tmp_path / "router_config.json").write_text(json.dumps({"types": {"0": TRANSFORMER["type"]}}))
    check_classes(tmp_path)


@pytest.mark.parametrize("name", ["modeling.Evil", "os.system", "sentence_transformers_evil.Module", 1])
def test_foreign_class_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([TRANSFORMER, {**TRANSFORMER, "type": name}]))
    with pytest.raises(ClassifierError, match=r"modules.json: the class .* is not part of sentence-transformers"):
        check_classes(tmp_path)


def test_foreign_class_of_a_router_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Router").mkdir()
    (tmp_path / "1_Router/router_config.json").write_text(json.dumps({"types": {"a": "modeling.Evil"}}))
    with pytest.raises(ClassifierError, match=r"1_Router/router_config.json: the class 'modeling.Evil'"):
        check_classes(tmp_path)


@pytest.mark.parametrize("text", ["[", "[1]", "{}", "1", "[" * 100_000])
def test_unreadable_modules_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ClassifierError, match=r"modules.json cannot be read"):
        check_classes(tmp_path)
