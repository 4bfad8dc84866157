"""The domain model: what its files must say, and how its labels become categories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vllm_lora_router.classifiers import ClassifierError, domain
from vllm_lora_router.classifiers.domain import DomainScorer, check_files, read_labels
from vllm_lora_router.classifiers.labels import Mapped
from vllm_lora_router.classifiers.models.registry import Models

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
    """A model as transformers saves it, but for its weights."""
    write(tmp_path / "model/config.json", {"id2label": ID2LABEL})
    write(tmp_path / "model/model.safetensors", "")
    return tmp_path / "model"


def refused(loaded: Load, settings: str = SETTINGS) -> str:
    with pytest.raises(ClassifierError) as error:
        check_files(loaded(settings))
    return str(error.value)


def test_the_labels_are_the_models_own_in_the_order_of_its_outputs(loaded: Load, folder: Path) -> None:
    labels = ["law", "health", *(f"label {number}" for number in range(2, 10)), "other"]
    assert read_labels(loaded(SETTINGS)) == labels
    assert check_files(loaded(SETTINGS)) == labels


MAPPING = {"category_to_idx": {"Größe": 0, "health": 1}, "idx_to_category": {"1": "health", "0": "Größe"}}


def test_a_mapping_beside_the_model_counts_before_its_own_labels(loaded: Load, folder: Path) -> None:
    write(folder / "category_mapping.json", MAPPING)
    assert read_labels(loaded(SETTINGS)) == ["Größe", "health"]


def test_the_mapping_that_the_configuration_names_counts_before_all(loaded: Load, folder: Path) -> None:
    write(folder / "category_mapping.json", {"idx_to_category": {"0": "not this"}})
    write(folder.parent / "mapping.json", MAPPING)
    assert read_labels(loaded(MAPPED)) == ["Größe", "health"]


def test_a_mapping_that_does_not_exist_says_where_it_was_looked_for(loaded: Load, folder: Path) -> None:
    said = refused(loaded, MAPPED)
    assert said.startswith(
        f"{folder.parent}/config.yaml: classifier.category_model.category_mapping_path: no such file"
    )
    assert f"'mapping.json' (tried in {folder.parent} and {Path.cwd()})" in said


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not json", "cannot be read as JSON: "),
        ("[]", "must hold a JSON object"),
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
def test_a_mapping_of_a_wrong_form_is_named_with_what_it_must_be(
    loaded: Load, folder: Path, content: Any, what: str, place: str
) -> None:
    file = write(folder.parent / place, content)
    said = refused(loaded, MAPPED if place == "mapping.json" else SETTINGS)
    assert str(file) in said
    assert what in said


@pytest.mark.parametrize("settings", [SETTINGS, MAPPED])
@pytest.mark.parametrize("config", [{}, {"id2label": None}, {"id2label": ["law"]}, {"id2label": 5}, "{", "[]"])
def test_a_model_without_labels_of_the_right_form_is_named(
    loaded: Load, folder: Path, config: Any, settings: str
) -> None:
    write(folder / "config.json", config)
    write(folder.parent / "mapping.json", {"idx_to_category": {"0": "a", "1": "b", "2": "c"}})
    assert str(folder) in refused(loaded, settings)


def test_a_mapping_of_bytes_that_are_no_text_is_named(loaded: Load, folder: Path) -> None:
    (folder / "category_mapping.json").write_bytes(b'{"idx_to_category": {"0": "Gr\xf6\xdfe"}}')
    assert f"{folder}/category_mapping.json cannot be read as JSON" in refused(loaded)


def test_a_folder_in_place_of_a_mapping_is_named(loaded: Load, folder: Path) -> None:
    (folder.parent / "mapping.json").mkdir()
    assert f"{folder.parent}/mapping.json cannot be read as JSON: " in refused(loaded, MAPPED)


def test_a_mapping_with_another_number_of_labels_than_the_model_is_refused(loaded: Load, folder: Path) -> None:
    write(folder.parent / "mapping.json", MAPPING)
    assert f"the model in {folder} has 11 labels, its mapping names 2" in refused(loaded, MAPPED)


@pytest.mark.parametrize(
    ("file", "what"),
    [("config.json", "holds no config.json; it must be a model saved by transformers"),
     ("model.safetensors", "holds no *.safetensors; save the model with save_pretrained")],
)  # fmt: skip
def test_a_folder_that_holds_no_model_is_named(loaded: Load, folder: Path, file: str, what: str) -> None:
    (folder / file).unlink()
    assert refused(loaded) == f"{folder.parent}/config.yaml: classifier.category_model.model_id: {folder} {what}"


class Network:
    """Gives each text the probabilities that stand in it, such as `0.5 0.3 0.2`."""

    tokenizer = None
    longest = 128
    runs_on = "test, cpu"
    on_any_thread = False

    def __call__(self, texts: Sequence[str], max_tokens: int) -> np.ndarray:
        assert max_tokens == 128
        return np.log(np.array([[float(number) for number in (text or "1 1 1").split()] for text in texts], np.float32))


LABELS = ["law", "health", "biology"]
STAND_FOR = [Mapped("law", None, "rest"), Mapped("health", "medical", "name"), Mapped("biology", "medical", "meaning")]


def scorer(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, labels: Sequence[str], mapped: Sequence[Mapped]
) -> DomainScorer:
    monkeypatch.setattr(domain, "_load", lambda loaded, source, device: Network())
    monkeypatch.setattr(domain, "model_folder", lambda loaded: Path("model"))
    configured = loaded("classifier: {category_model: {model_id: model, threshold: 0.7}}")
    return DomainScorer(configured, labels, mapped, Models())


def test_a_categorys_probability_is_the_sum_over_its_labels(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scorer(loaded, monkeypatch, LABELS, STAND_FOR)
    assert [(choice.category, choice.threshold) for choice in model.parts[0].choices] == [("medical", 0.7)]
    (scores,) = model.score(["0.25 0.45 0.3", "0.8 0.05 0.15"])
    assert scores.values.ravel().tolist() == pytest.approx([0.75, 0.2], abs=1e-6)


def test_the_evidence_is_the_labels_with_the_highest_probabilities_first(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scores,) = scorer(loaded, monkeypatch, LABELS, STAND_FOR).score(["0.25 0.45 0.3"])
    labels: Any = scores.evidence[0]["labels"]
    assert list(labels.items()) == [("health", 0.45), ("biology", 0.3), ("law", 0.25)]


def test_a_model_with_another_number_of_outputs_than_labels_is_refused(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClassifierError, match="model has 3 labels, its mapping names 2"):
        scorer(loaded, monkeypatch, LABELS[:2], STAND_FOR[:2])
