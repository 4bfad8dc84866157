"""The configuration reference: descriptions, examples and the generated page config/README.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from pydantic import BaseModel

from vllm_lora_router.config.json_schema import json_schema
from vllm_lora_router.config.reference import EXAMPLES, Key, children, find_key, keys, markdown
from vllm_lora_router.config.schema import Config

FOLDER = Path(__file__).parents[3] / "config"
KEYS = keys()
SETTINGS = [key for key in KEYS if not key.is_block and not key.is_ignored]


def test_the_committed_page_is_the_generated_one() -> None:
    assert (FOLDER / "README.md").read_text() == markdown(), (
        "write it with: vllm-lora-router schema --markdown > config/README.md"
    )


def test_the_page_lists_every_example() -> None:
    assert set(EXAMPLES) == {file.name for file in FOLDER.glob("*.yaml")}


def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from blocks(argument)


def fields_of(block: type[BaseModel]) -> Iterator[str]:
    for name, field in block.model_fields.items():
        yield field.alias or name
        for inner in blocks(field.annotation):
            yield from fields_of(inner)


def test_the_reference_contains_every_key_of_the_schema() -> None:
    referenced = [key.path[-1] for key in KEYS if not key.is_ignored and not key.path[-1].startswith("<")]
    assert sorted(referenced) == sorted(fields_of(Config))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_has_a_description_of_complete_sentences(key: Key) -> None:
    assert len(key.description.split()) >= 3
    assert key.description.endswith(".")
    assert "\n" not in key.description and "  " not in key.description


def is_only_incomplete(error: ValidationError) -> bool:
    """Return whether an error is only about required keys that an example leaves out."""
    if error.validator != "anyOf":
        return error.validator == "required"
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.schema_path[0], []).append(inner)
    return any(all(map(is_only_incomplete, branch)) for branch in branches.values())


@pytest.mark.parametrize("key", SETTINGS, ids=lambda key: key.name)
def test_the_example_of_a_key_is_valid(key: Key) -> None:
    example = yaml.safe_load(key.example)
    errors = Draft202012Validator(json_schema()).iter_errors(example)
    assert [error.message for error in errors if not is_only_incomplete(error)] == []
    assert f"{key.path[-1]}:" in key.example


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("router.affinity.margin", "router.affinity.margin"),
        ("categories[].name", "categories[].name"),
        ("categories[2].model_scores[0].lora_name", "categories[].model_scores[].lora_name"),
        ("categories.model_scores.lora_name", "categories[].model_scores[].lora_name"),
        ("model_config", "model_config"),
        ("model_config.<base>", "model_config.<base>"),
        ("model_config.llama2-7b", "model_config.<base>"),
        ("model_config.loras", "model_config.<base>.loras"),
        ("model_config.llama2-7b.loras[0].path", "model_config.<base>.loras[].path"),
        ("model_config.qwen2.5.loras.path", "model_config.<base>.loras[].path"),
        ('model_config."qwen2.5".loras', "model_config.<base>.loras"),
        ("reasoning_families.mine.type", "reasoning_families.<name>.type"),
        ("vllm_endpoints", "vllm_endpoints"),
        (" router ", "router"),
    ],
)
def test_a_key_is_found_by_its_path(text: str, name: str) -> None:
    key = find_key(text, KEYS)
    assert key is not None and key.name == name


@pytest.mark.parametrize(
    "text", ["margin", "router.margin", "router.affinity.margin.x", "", ".", "Router", "router.tex"]
)
def test_an_unknown_path_is_not_found(text: str) -> None:
    assert find_key(text, KEYS) is None


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ("router.affinity", ["enabled", "margin", "turns"]),
        ("router.text", ["drop", "max_tokens", "windows", "take"]),
        ("keyword_rules", ["category", "operator", "keywords", "case_sensitive"]),
        ("reasoning_families", ["type", "parameter"]),
    ],
)
def test_the_children_of_a_block_are_its_own_keys(block: str, names: list[str]) -> None:
    key = find_key(block, KEYS)
    assert key is not None
    assert [child.path[-1] for child in children(key, KEYS)] == names


@pytest.mark.parametrize(
    ("name", "type_", "default"),
    [
        ("router.affinity.margin", "number from 0 to 1", "0.15"),
        ("router.mode", "`route`, `observe` or `off`", "route"),
        ("router.deadline_ms", "number (above 0)", "unset"),
        ("router.tenant", "text or null", "header:x-tenant"),
        ("router.adapters.sources", "list of blocks or text (at most 100)", "[]"),
        ("classifier.embedding_model.head", "text", "unset"),
        ("classifier.embedding_model.thresholds", "mapping of names to numbers from 0 to 1 (at most 10,000)", "{}"),
        ("classifier.mcp_category_model.timeout_seconds", "number (above 0, at most 60)", "2"),
        ("classifier.mcp_category_model.headers_env", "mapping of names to text (at most 100)", "{}"),
        ("router.ab.salt", "text", '""'),
        ("default_model", "text", "required"),
        ("router", "block", ""),
        ("vllm_endpoints", "ignored", ""),
    ],
)
def test_the_type_and_the_default_of_a_key(name: str, type_: str, default: str) -> None:
    key = find_key(name, KEYS)
    assert key is not None
    assert (key.type, key.default) == (type_, default)
