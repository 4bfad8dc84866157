"""Labels of the domain model: where they are read from, and the category that each one is mapped to."""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.schema import Category, Config

# With all-MiniLM-L6-v2 and the categories of the LoRA routing guide, matching pairs of label and category have a
# cosine similarity of 0.46 to 0.59, all other pairs at most 0.32.
SIMILARITY_THRESHOLD = 0.40

Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class LabelMapping:
    """The category that one label is mapped to."""

    label: str
    category: str | None  # None: `default_model`
    source: Literal["name", "mmlu_categories", "similarity", "fallback"]
    similarity: float | None = None  # cosine similarity, if `source` is "similarity"


def map_labels(labels: Sequence[str], config: Config, encode: Callable[[], Encode]) -> list[LabelMapping]:
    """Map labels to categories.

    A label is mapped by the category's name, then by `mmlu_categories`, then by the similarity of its embedding to
    the category's name and description. All other labels are mapped to the first category without an adapter.

    Args:
        encode: Returns the encoder. It is called only if a label has to be mapped by similarity, because it loads a
            model.
    """
    categories = [category for category in config.categories if category.may_be_chosen_by("domain")]
    by_name = {_normalized(category.name): category.name for category in categories}
    by_list = {_normalized(label): category.name for category in categories for label in category.mmlu_categories}
    exact: dict[str, LabelMapping] = {}
    for label in labels:
        if category := by_name.get(_normalized(label)):
            exact[label] = LabelMapping(label, category, "name")
        elif category := by_list.get(_normalized(label)):
            exact[label] = LabelMapping(label, category, "mmlu_categories")
    remaining = [label for label in labels if label not in exact]
    similar = _map_by_similarity(remaining, categories, encode()) if remaining and categories else {}
    fallback = next((category.name for category in categories if _prefers_base(category)), None)
    return [exact.get(label) or similar.get(label) or LabelMapping(label, fallback, "fallback") for label in labels]


def unreachable_categories(mapping: Sequence[LabelMapping], config: Config) -> list[str]:
    """Return the categories that the domain model may choose but that no label is mapped to."""
    reached = {label.category for label in mapping}
    return [
        category.name
        for category in config.categories
        if category.may_be_chosen_by("domain") and category.name not in reached
    ]


def read_labels(loaded: LoadedConfig) -> list[str]:
    """Return the domain model's labels in the order of its outputs.

    The labels come from `category_mapping_path`, from `category_mapping.json` in the model's folder, or from the
    model's own config.json. Only JSON is read.

    Raises:
        ClassifierError: A file is missing or has an unexpected structure.
    """
    settings = loaded.config.classifier.category_model
    where = f"{loaded.file}: classifier.category_model."
    if settings.category_mapping_path:
        file = loaded.locate(settings.category_mapping_path)
        if file is None:
            raise ClassifierError(
                f"{where}category_mapping_path: no such file: {settings.category_mapping_path!r} (tried in "
                f"{loaded.file.parent} and {Path.cwd()})"
            )
        return _labels_in_order(
            _read_json(file).get("idx_to_category"), f"{where}category_mapping_path: {file}: idx_to_category"
        )
    folder = model_folder(loaded)
    if folder is None:
        from transformers import AutoConfig

        return _labels_in_order(AutoConfig.from_pretrained(settings.model_id).id2label, f"{where}model_id: id2label")
    if (mapping := folder / "category_mapping.json").is_file():
        return _labels_in_order(_read_json(mapping).get("idx_to_category"), f"{mapping}: idx_to_category")
    return _labels_in_order(
        _read_json(folder / "config.json").get("id2label"), f"{where}model_id: {folder}/config.json: id2label"
    )


def model_folder(loaded: LoadedConfig) -> Path | None:
    """Return the domain model's folder, or None if `model_id` is a hub id.

    Raises:
        ClassifierError: `model_id` is neither a folder nor available from the hub.
    """
    settings = loaded.config.classifier.category_model
    folder = loaded.locate(settings.model_id)
    place = f"{loaded.file}: classifier.category_model.model_id: "
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ClassifierError(f"{place}{folder} has no config.json; it must be a model saved by transformers")
        if not any(folder.glob("*.safetensors")):
            raise ClassifierError(f"{place}{folder} has no *.safetensors; save the model with save_pretrained")
        return folder
    try:
        from transformers import AutoConfig

        AutoConfig.from_pretrained(settings.model_id)
    except ImportError:
        raise ClassifierError(f"{place}needs transformers; pip install 'vllm-lora-router[models]'") from None
    except Exception:
        raise ClassifierError(
            f"{place}{settings.model_id!r} does not exist: no such folder in {loaded.file.parent} or {Path.cwd()}, and "
            "not available from the hub"
        ) from None
    return None


def check_files(loaded: LoadedConfig) -> list[str]:
    """Return the domain model's labels after all checks that are possible without loading the model.

    Raises:
        ClassifierError: The folder or the mapping is missing or invalid, or they do not match each other.
    """
    folder = model_folder(loaded)
    labels = read_labels(loaded)
    if folder is not None:
        config = _read_json(folder / "config.json")
        id2label = config.get("id2label")
        outputs = len(id2label) if isinstance(id2label, dict) and id2label else config.get("num_labels", 2)
        if outputs != len(labels):
            raise ClassifierError(
                f"{loaded.file}: classifier.category_model: the model in {folder} has {outputs} labels, but its "
                f"mapping names {len(labels)}"
            )
    return labels


def _map_by_similarity(
    labels: Sequence[str], categories: Sequence[Category], encode: Encode
) -> Mapping[str, LabelMapping]:
    label_vectors = encode(labels)
    category_vectors = encode([f"{category.name}: {category.description}".rstrip(": ") for category in categories])
    similarity = label_vectors @ category_vectors.T
    mapped: dict[str, LabelMapping] = {}
    for label, row in zip(labels, similarity, strict=True):
        best = int(row.argmax())
        if row[best] >= SIMILARITY_THRESHOLD:
            mapped[label] = LabelMapping(label, categories[best].name, "similarity", round(float(row[best]), 2))
    return mapped


def _prefers_base(category: Category) -> bool:
    return max(category.model_scores, key=lambda entry: entry.score).lora_name is None


def _normalized(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


def _labels_in_order(mapping: Any, where: str) -> list[str]:
    if not isinstance(mapping, dict) or not mapping:
        raise ClassifierError(f'{where} must be an object such as {{"0": "biology", "1": "business"}}')
    try:
        by_index = {int(index): str(label) for index, label in mapping.items()}
    except ValueError:
        raise ClassifierError(f"{where}: its keys must be the numbers of the model's outputs") from None
    if sorted(by_index) != list(range(len(by_index))):
        raise ClassifierError(
            f"{where}: its keys must be 0 to {len(by_index) - 1}, each once; they are {sorted(by_index)}"
        )
    return [by_index[index] for index in range(len(by_index))]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ClassifierError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ClassifierError(f"{file} must contain a JSON object")
    return value
