"""The domain model: checks of its files, and the scores of categories from its labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vllm_lora_router.classifiers import ClassifierError, domain
from vllm_lora_router.classifiers.domain import DomainScorer
from vllm_lora_router.classifiers.labels import LabelMapping, check_files, read_labels
from vllm_lora_router.classifiers.models.registry import ModelRegistry

if TYPE_CHECKING:
    from .conftest import Load

ID2LABEL = {"0": "law", "1": "health", "10": "other", **{str(number): f"label {number}" for number in range(2, 10)}}
SETTINGS = "classifier: {category_model: {model_id: model}}"
MAPPED = "classifier: {category_model: {model_id: model, category_mapping_path: mapping.json}}"


def write(file: Path, value: Any) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model as transformers saves it, without weights."""
    write(tmp_path / "model/config.json", {"id2label": ID2LABEL})
    write(tmp_path / "model/model.safetensors", "")
    return tmp_path / "model"


def check_error(loaded: Load, settings: str = SETTINGS) -> str:
    """Return the message of the error that `check_files` raises."""
    with pytest.raises(ClassifierError) as error:
        check_files(loaded(settings))
    return str(error.value)


def test_labels_come_from_the_model_in_the_order_of_its_outputs(loaded: Load, folder: Path) -> None:
    labels = ["law", "health", *(f"label {number}" for number in range(2, 10)), "other"]
    assert read_labels(loaded(SETTINGS)) == labels
    assert check_files(loaded(SETTINGS)) == labels


MAPPING = {"category_to_idx": {"Größe": 0, "health": 1}, "idx_to_category": {"1": "health", "0": "Größe"}}


def test_a_mapping_in_the_model_folder_takes_precedence_over_id2label(loaded: Load, folder: Path) -> None:
    write(folder / "category_mapping.json", MAPPING)
    assert read_labels(loaded(SETTINGS)) == ["Größe", "health"]


def test_category_mapping_path_takes_precedence(loaded: Load, folder: Path) -> None:
    write(folder / "category_mapping.json", {"idx_to_category": {"0": "not this"}})
    write(folder.parent / "mapping.json", MAPPING)
    assert read_labels(loaded(MAPPED)) == ["Größe", "health"]


def test_a_missing_mapping_is_reported_with_the_folders_that_were_tried(loaded: Load, folder: Path) -> None:
    message = check_error(loaded, MAPPED)
    assert message.startswith(
        f"{folder.parent}/config.yaml: classifier.category_model.category_mapping_path: no such file"
    )
    assert f"'mapping.json' (tried in {folder.parent} and {Path.cwd()})" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("not json", "cannot be read as JSON: "),
        ("[]", "must contain a JSON object"),
        ({}, 'idx_to_category must be an object such as {"0": "biology", "1": "business"}'),
        ({"idx_to_category": {}}, "idx_to_category must be an object"),
        ({"idx_to_category": ["law"]}, "idx_to_category must be an object"),
        ({"idx_to_category": {"law": "0"}}, "idx_to_category: its keys must be the numbers of the model's outputs"),
        (
            {"idx_to_category": {"1": "a", "2": "b"}},
            "idx_to_category: its keys must be 0 to 1, each once; they are [1, 2]",
        ),
        (
            {"idx_to_category": {"0": "a", "2": "b"}},
            "idx_to_category: its keys must be 0 to 1, each once; they are [0, 2]",
        ),
    ],
)
@pytest.mark.parametrize("place", ["mapping.json", "model/category_mapping.json"])
def test_a_mapping_with_the_wrong_structure_is_reported(
    loaded: Load, folder: Path, content: Any, problem: str, place: str
) -> None:
    file = write(folder.parent / place, content)
    message = check_error(loaded, MAPPED if place == "mapping.json" else SETTINGS)
    assert str(file) in message
    assert problem in message


@pytest.mark.parametrize("settings", [SETTINGS, MAPPED])
@pytest.mark.parametrize("config", [{}, {"id2label": None}, {"id2label": ["law"]}, {"id2label": 5}, "{", "[]"])
def test_a_model_without_valid_labels_is_reported(loaded: Load, folder: Path, config: Any, settings: str) -> None:
    write(folder / "config.json", config)
    write(folder.parent / "mapping.json", {"idx_to_category": {"0": "a", "1": "b", "2": "c"}})
    assert str(folder) in check_error(loaded, settings)


def test_a_mapping_that_is_not_utf8_is_reported(loaded: Load, folder: Path) -> None:
    (folder / "category_mapping.json").write_bytes(b'{"idx_to_category": {"0": "Gr\xf6\xdfe"}}')
    assert f"{folder}/category_mapping.json cannot be read as JSON" in check_error(loaded)


def test_a_folder_instead_of_a_mapping_is_reported(loaded: Load, folder: Path) -> None:
    (folder.parent / "mapping.json").mkdir()
    assert f"{folder.parent}/mapping.json cannot be read as JSON: " in check_error(loaded, MAPPED)


def test_a_mapping_with_a_different_number_of_labels_is_refused(loaded: Load, folder: Path) -> None:
    write(folder.parent / "mapping.json", MAPPING)
    assert f"the model in {folder} has 11 labels, but its mapping names 2" in check_error(loaded, MAPPED)


@pytest.mark.parametrize(
    ("file", "problem"),
    [("config.json", "has no config.json; it must be a model saved by transformers"),
     ("model.safetensors", "has no *.safetensors; save the model with save_pretrained")],
)  # fmt: skip
def test_a_folder_without_a_model_is_reported(loaded: Load, folder: Path, file: str, problem: str) -> None:
    (folder / file).unlink()
    assert check_error(loaded) == f"{folder.parent}/config.yaml: classifier.category_model.model_id: {folder} {problem}"


class FakeModel:
    """Returns the probabilities that each text contains, such as `0.5 0.3 0.2`."""

    tokenizer = None
    max_length = 128
    runs_on = "test, cpu"
    thread_safe = False

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        assert max_tokens == 128
        return np.log(np.array([[float(number) for number in (text or "1 1 1").split()] for text in texts], np.float32))


LABELS = ["law", "health", "biology"]
MAPPING_OF_LABELS = [
    LabelMapping("law", None, "fallback"),
    LabelMapping("health", "medical", "name"),
    LabelMapping("biology", "medical", "similarity"),
]


def scorer(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, labels: Sequence[str], mapping: Sequence[LabelMapping]
) -> DomainScorer:
    monkeypatch.setattr(domain, "_load", lambda loaded, source, device: FakeModel())
    monkeypatch.setattr(domain, "model_folder", lambda loaded: Path("model"))
    configured = loaded("classifier: {category_model: {model_id: model, threshold: 0.7}}")
    return DomainScorer(configured, labels, mapping, ModelRegistry())


def test_the_score_of_a_category_is_the_sum_over_its_labels(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scorer(loaded, monkeypatch, LABELS, MAPPING_OF_LABELS)
    assert [(column.category, column.threshold) for column in model.groups[0].columns] == [("medical", 0.7)]
    (scores,) = model.score(["0.25 0.45 0.3", "0.8 0.05 0.15"])
    assert scores.values.ravel().tolist() == pytest.approx([0.75, 0.2], abs=1e-6)


def test_the_evidence_lists_the_labels_with_the_highest_probabilities(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scores,) = scorer(loaded, monkeypatch, LABELS, MAPPING_OF_LABELS).score(["0.25 0.45 0.3"])
    labels: Any = scores.evidence[0]["labels"]
    assert list(labels.items()) == [("health", 0.45), ("biology", 0.3), ("law", 0.25)]


def test_a_model_with_a_different_number_of_outputs_is_refused(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClassifierError, match="model has 3 labels, but its mapping names 2"):
        scorer(loaded, monkeypatch, LABELS[:2], MAPPING_OF_LABELS[:2])
