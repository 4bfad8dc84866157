"""YAML that sets the chosen thresholds, to paste into a configuration."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.yaml_document import KeyPath
from vllm_lora_router.tools.calibrate.labelled import HEAD_PATH


def yaml_patch(loaded: LoadedConfig, changes: Mapping[KeyPath, float]) -> str:
    """Return the changed keys in the configuration's structure; "" without changes.

    Args:
        changes: Key path of a threshold -> new value.
    """
    parts = []
    tree: dict[str, Any] = {}
    if any(path[: len(HEAD_PATH)] == HEAD_PATH for path in changes):
        # A mapping is pasted as a whole, so it includes the values that do not change.
        for name, value in loaded.config.classifier.embedding_model.thresholds.items():
            _set(tree, (*HEAD_PATH, name), value)
    for path, value in changes.items():
        if path[0] == "classifier":
            _set(tree, path, value)
    if tree:
        parts.append(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000))
    rules = [path for path in changes if path[0] == "embedding_rules"]
    if rules:
        lines = ["# Each rule keeps its other keys.", "embedding_rules:"]
        for path in rules:
            lines += _rule_lines(loaded, path, changes[path])
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def _rule_lines(loaded: LoadedConfig, path: KeyPath, value: float) -> Sequence[str]:
    index = int(path[1])
    rule = loaded.config.embedding_rules[index]
    line, _ = loaded.document.values[path[:2]]
    category = json.dumps(rule.category, ensure_ascii=False)
    return (
        f"  - category: {category} # embedding_rules[{index}], line {line}; was {rule.threshold:g}",
        f"    threshold: {value:g}",
    )


def _set(tree: dict[str, Any], path: KeyPath, value: float) -> None:
    *parents, last = map(str, path)
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value
