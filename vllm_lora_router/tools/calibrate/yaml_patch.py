"""Chosen thresholds as YAML to paste."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vllm_lora_router.config import Loaded
from vllm_lora_router.config.yaml_document import Path_
from vllm_lora_router.tools.calibrate.labelled import HEAD_PATH


def to_paste(loaded: Loaded, changed: Mapping[Path_, float]) -> str:
    """The keys that change, in the configuration's own structure; "" where none does.

    Args:
        changed: a threshold's place -> its new value.
    """
    parts = []
    tree: dict[str, Any] = {}
    if any(path[: len(HEAD_PATH)] == HEAD_PATH for path in changed):
        # A mapping is pasted as a whole, with what stands in it already.
        for name, value in loaded.config.classifier.embedding_model.thresholds.items():
            _put(tree, (*HEAD_PATH, name), value)
    for path, value in changed.items():
        if path[0] == "classifier":
            _put(tree, path, value)
    if tree:
        parts.append(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000))
    rules = [path for path in changed if path[0] == "embedding_rules"]
    if rules:
        lines = ["# Each rule keeps its other keys.", "embedding_rules:"]
        for path in rules:
            lines += _rule(loaded, path, changed[path])
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def _rule(loaded: Loaded, path: Path_, value: float) -> Sequence[str]:
    place = int(path[1])
    rule = loaded.config.embedding_rules[place]
    line, _ = loaded.document.values[path[:2]]
    category = json.dumps(rule.category, ensure_ascii=False)
    return (
        f"  - category: {category} # embedding_rules[{place}], line {line}; it was {rule.threshold:g}",
        f"    threshold: {value:g}",
    )


def _put(tree: dict[str, Any], path: Path_, value: float) -> None:
    *way, last = map(str, path)
    for step in way:
        tree = tree.setdefault(step, {})
    tree[last] = value
