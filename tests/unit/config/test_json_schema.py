"""The JSON schema of the configuration file: it accepts every valid file and rejects misspelt keys."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from vllm_lora_router.config.json_schema import json_schema
from vllm_lora_router.config.semantic_router_keys import IGNORED_KEYS
from vllm_lora_router.config.yaml_document import KeyPath, read_yaml

if TYPE_CHECKING:
    from .conftest import Configs

EXAMPLES = sorted((Path(__file__).parents[3] / "config").glob("*.yaml"))
SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
# Mappings with keys that users choose.
USER_KEYS = {"model_config", "reasoning_families", "thresholds", "env", "headers_env"}


def is_valid(text: str) -> bool:
    return VALIDATOR.is_valid(yaml.safe_load(text))


def test_the_schema_is_a_valid_json_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_valid(file: Path) -> None:
    errors = VALIDATOR.iter_errors(yaml.safe_load(file.read_text()))
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def schema_keys(file: Path) -> Iterator[KeyPath]:
    """Yield the path of each key in a file that the schema names, except below ignored keys."""
    for path in read_yaml(file).keys:
        parents = path[:-1]
        chosen_by_user = bool(parents) and parents[-1] in USER_KEYS
        if not chosen_by_user and not any((key,) in IGNORED_KEYS for key in parents):
            yield path


def with_renamed_key(data: Any, path: KeyPath) -> Any:
    changed = copy.deepcopy(data)
    block = changed
    for part in path[:-1]:
        block = block[part]
    block[f"{path[-1]}x"] = block.pop(path[-1])
    return changed


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_any_misspelt_key_of_an_example_is_invalid(file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    paths = list(schema_keys(file))
    assert len(paths) > 10
    assert [path for path in paths if VALIDATOR.is_valid(with_renamed_key(data, path))] == []


@pytest.mark.parametrize(
    "line",
    [
        "router: {mode: off, log: off, adapters: {snapshot: off}}",
        "router: {mode: 'off', log: 'off', adapters: {snapshot: 'off'}}",
        "router: {adapters: {sources: [/adapters, {path: '/store/{name}', immutable: true}]}}",
        "router: {tenant: null, deadline_ms: null, admin_key_env: null, adapters: {max_disk_gb: null, run_dir: null}}",
        "router: {text: {take: last}}",
        "x-anchors: [&a {category: medical}]",
        "router: {share: 1, affinity: {margin: 0}}",
        "classifier: {mcp_category_model: null}",
        "classifier: {embedding_model: {head: off, thresholds: {medical: 0.5}}}",
        "classifier: {mcp_category_model: {headers_env: {Authorization: T}, env: {A: b}}}",
        "classifier: {pii_model: {model_id: x}, category_model: {use_mmbert_32k: true}}",
    ],
)
def test_a_value_that_the_loader_converts_or_ignores_is_valid(configs: Configs, line: str) -> None:
    text = f"{configs.good}{line}\n"
    configs.load(text)
    assert is_valid(text)


def test_a_base_without_settings_is_valid(configs: Configs) -> None:
    text = configs.changed(("default_model", "  other:\ndefault_model"))
    configs.load(text)
    assert is_valid(text)


@pytest.mark.parametrize("pattern", IGNORED_KEYS, ids=lambda pattern: str(pattern[-1]))
def test_an_ignored_key_is_valid_with_any_content(configs: Configs, pattern: tuple[str | None, ...]) -> None:
    for value in ({"a": {"b": [1, None]}}, [1], None, "text"):
        data = yaml.safe_load(configs.good)
        block: Any = data
        for part in pattern[:-1]:
            if part is None:
                block = block[0] if isinstance(block, list) else block["base"]
            else:
                block = block.setdefault(part, {})
        block[pattern[-1]] = value
        assert VALIDATOR.is_valid(data)
        assert len(configs.load(yaml.safe_dump(data)).ignored) == 1


@pytest.mark.parametrize(
    "line",
    [
        "zzz: 1",
        "router: {x-anchors: 1}",
        "router: {deadlin_ms: 70}",
        "router: {semantic_cache: {enabled: true}}",
        "router: {text: {take: all}}",
        "router: {share: 1.5}",
        "router: {mode: on}",
        "router: {methods: [embeddings]}",
        "router: {ab: {key: [users]}}",
        "router: {ab: {key: []}}",
        "router: {adapters: {sources: [3]}}",
        "router: {adapters: {sources: /adapters}}",
        "router: {tenant: x-tenant}",
        "classifier: {embedding_model: {head: on}}",
        "classifier: {category_model: {threshold: high}}",
        "classifier: {mcp_category_model: {url: 'ftp://x'}}",
        "classifier: {mcp_category_model: {headers_env: {'a b': T}}}",
        "reasoning_families: {mine: {type: switch, parameter: x}}",
        "keyword_rules: [{category: medical, keywords: []}]",
        "auto_model_name: ''",
    ],
)
def test_a_value_that_the_loader_rejects_is_invalid(configs: Configs, line: str) -> None:
    text = configs.good.replace("keyword_rules:", "unused:", 1) if line.startswith("keyword_rules") else configs.good
    assert configs.problems(f"{text}{line}\n")
    assert not is_valid(f"{text}{line}\n")


@pytest.mark.parametrize("key", ["model_config", "default_model", "categories"])
def test_a_missing_required_key_is_invalid(configs: Configs, key: str) -> None:
    data = yaml.safe_load(configs.good)
    del data[key]
    assert not VALIDATOR.is_valid(data)
