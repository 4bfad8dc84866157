"""Generates valid and nearly valid configurations from the JSON schema and the examples, and messages of all kinds."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from vllm_lora_router.config.json_schema import Schema, json_schema

EXAMPLES = sorted((Path(__file__).parents[3] / "config").glob("*.yaml"))
SCHEMA = json_schema()
# A configuration without models, so that a router can be built from what is generated.
KEYWORDS_ONLY: dict[str, Any] = {
    "model_config": {"base": {"reasoning_family": "qwen3", "loras": [{"name": "a-lora"}, {"name": "b-lora"}]}},
    "default_model": "base",
    "categories": [
        {"name": "a", "model_scores": [{"model": "base", "lora_name": "a-lora"}]},
        {"name": "b", "model_scores": [{"model": "base", "lora_name": "b-lora", "score": 0.5}, {"model": "base"}]},
    ],
    "keyword_rules": [{"category": "a", "keywords": ["alpha"]}, {"category": "b", "keywords": ["beta", "发烧"]}],
}
# Keys that would make a router load a model or start a program.
MODEL_KEYS = {"classifier", "embedding_rules", "examples", "mcp_category_model"}

NAMES: dict[str, tuple[str, ...]] = {
    "model": ("base",),
    "default_model": ("base", "a-lora"),
    "lora_name": ("a-lora", "b-lora"),
    "category": ("a", "b"),
    "fallback_category": ("a", "b"),
    "drop": (r"(?s)<a>.*?</a>", r"\d+", "x*"),
    "keywords": ("alpha", "c++", "Größe", "two words", "发烧", "cafe\u0301", "ﬁ", "İ", ".*", "_"),
}
TEXTS = (
    *("", " ", "a", "b", "base", "a-lora", "auto", "MoM", "text", "..", "/", "~nobody/x", "x" * 300, "x" * 5000),
    *("é", "e\u0301", "\u200b", "\u202e", "😀", "\ud83d", "\0", "\n", "\t", "\u2028", "\x85", "\ufeff", "İ", "ﬁ", "ß"),
    *("null", "no", "1", "1e3", "0x1f", "12:30:00", "2024-01-01", ".inf", "<<", "=", "*a", "&a", "!!int x", "# x"),
    *("header:x-user", "header:", "https://", "http://[", "http://x:99999", "http://x:0", "a=b", "(", "[[:alpha:]]"),
)
NUMBERS = (0, 1, -1, 2, 0.5, 1e-300, 1e300, 10**30, -(10**18), float("inf"), float("-inf"), float("nan"), True, False)
BYTES = (
    *(b"\0", b"\xff", b"\t", b"\r", b"\x85", b": ", b"- ", b"? ", b"&a ", b"*a", b"<<: *a", b"!!x ", b"%", b"@", b"|"),
    *(b"'", b'"', b"[", b"{", b"---\n", b"\xef\xbb\xbf", b"\\ud83d", b"\xe2\x80\xa8"),
)


@dataclass
class Fuzzer:
    """Generates configurations and messages from a seed."""

    random: Random

    def configuration(self) -> bytes:
        """Return the content of a configuration file; about a third are valid."""
        data = self._start()
        for _ in range(self.random.choice((0, 1, 2, 4))):
            self._add_block(data)
        for _ in range(self.random.choice((0, 0, 1, 3))):
            self._mutate(data)
        content = self._dump(data)
        if self.random.random() < 0.2:
            content = self._damage(content)
        return content

    def message(self) -> str:
        """Return a text with all kinds of characters; some are empty and some are long."""
        length = self.random.choice((0, 1, 3, 30, 300, 300, 30_000))
        kinds: list[Callable[[], str]] = [
            lambda: chr(self.random.randrange(0x110000)),
            lambda: chr(self.random.randrange(0x300)),
            lambda: self.random.choice(TEXTS[:30]) or " ",
            lambda: self.random.choice(NAMES["keywords"]) + self.random.choice((" ", "\n", "")),
        ]
        kind = self.random.choice(kinds)
        if length > 1000:  # a repeated part: generating each character would take most of the time
            return "".join(kind() for _ in range(50)) * (length // 50)
        return "".join(kind() for _ in range(length))

    def _start(self) -> dict[str, Any]:
        if self.random.random() < 0.8:
            return copy.deepcopy(KEYWORDS_ONLY)
        return yaml.safe_load(self.random.choice(EXAMPLES).read_text(encoding="utf-8"))

    def _add_block(self, data: dict[str, Any]) -> None:
        """Set a key at the top level, or below a block that exists, to a value that the schema allows."""
        block: Any = data
        schema = SCHEMA
        while True:
            key = self.random.choice(list(schema["properties"]))
            if key in MODEL_KEYS and self.random.random() < 0.9:
                return
            inner = schema["properties"][key]
            below = _block_schema(inner)
            existing = block.get(key)
            if isinstance(existing, list) and below and existing and isinstance(existing[0], dict):
                block, schema = self.random.choice(existing), below
            elif isinstance(existing, dict) and below and "properties" in below and key != "model_config":
                block, schema = existing, below
            else:
                block[key] = self._value(inner, key)
                return
            if not isinstance(block, dict):
                return

    def _value(self, schema: Schema, key: str, depth: int = 0) -> Any:
        """Return a value for a key that the schema allows, apart from formats and dependencies between keys."""
        if "$ref" in schema:
            return self._value(_definition(schema), key, depth + 1)
        if options := schema.get("anyOf"):
            return self._value(self.random.choice(options), key, depth)
        if "enum" in schema or "const" in schema:
            return self.random.choice(schema.get("enum") or [schema["const"]])
        match schema.get("type"):
            case "object" if "properties" in schema:
                required = schema.get("required", ())
                chosen = [name for name in schema["properties"] if name in required or self.random.random() < 0.3]
                return {name: self._value(schema["properties"][name], name, depth) for name in chosen}
            case "object":
                inner = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
                return {self._text(key): self._value(inner, key, depth) for _ in range(self.random.randrange(3))}
            case "array":
                count = self.random.randrange(schema.get("minItems", 0), 4)
                return [self._value(schema["items"], key, depth) for _ in range(count)]
            case "integer":
                return self.random.randrange(int(schema.get("minimum", 0)), int(schema.get("maximum", 1000)) + 1)
            case "number":
                low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 100)
                return round(self.random.uniform(low, high), 3)
            case "boolean":
                return self.random.random() < 0.5
            case "string":
                examples = [example for example in schema.get("examples", ()) if isinstance(example, str)]
                default = schema.get("default")
                usual = [*examples, *([default] if isinstance(default, str) else [])]
                return self.random.choice(usual) if usual and self.random.random() < 0.7 else self._text(key)
        return None

    def _text(self, key: str) -> str:
        if key in NAMES and self.random.random() < 0.9:
            return self.random.choice(NAMES[key])
        return self.random.choice(TEXTS if self.random.random() < 0.1 else ("a", "b", "header:x-user", "c d", "Größe"))

    def _mutate(self, data: Any) -> None:
        """Change one place."""
        containers = [container for container in _containers(data) if container]
        if not containers:
            return
        container = self.random.choice(containers)
        key = self.random.choice(list(container) if isinstance(container, dict) else range(len(container)))
        match self.random.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[f"{key}{self.random.choice(TEXTS)}"] = container.pop(key)
            case 2 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case 3:
                container[key] = self.random.choice(NUMBERS)
            case 4:
                container[key] = self.random.choice(([], {}, None, [None], {"a": {}}, [[]]))
            case _:
                container[key] = self.random.choice(TEXTS)

    def _dump(self, data: Any) -> bytes:
        if self.random.random() < 0.3:
            return json.dumps(data, ensure_ascii=self.random.random() < 0.5).encode("utf-8", "surrogatepass")
        try:
            text = yaml.dump(
                data,
                Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
                default_flow_style=self.random.choice((None, True, False)),
                allow_unicode=self.random.random() < 0.5,
            )
        except UnicodeEncodeError:  # half a surrogate pair
            text = json.dumps(data)
        return text.encode("utf-8", "surrogatepass")

    def _damage(self, content: bytes) -> bytes:
        """Insert, remove or repeat some bytes."""
        place = self.random.randrange(len(content) + 1)
        end = min(len(content), place + self.random.randrange(40))
        match self.random.randrange(4):
            case 0:
                return content[:place] + content[end:]
            case 1:
                return content[:end] + content[place:]
            case 2:
                return content[:place]
            case _:
                return content[:place] + self.random.choice(BYTES) + content[place:]


def _definition(schema: Schema) -> Schema:
    return SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]


def _block_schema(schema: Schema) -> Schema | None:
    """Return the schema of a block or of the blocks of a list; None for another value."""
    if "$ref" in schema:
        return _definition(schema)
    items = schema.get("items")
    return _definition(items) if isinstance(items, dict) and "$ref" in items else None


def _containers(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list):
        yield data
        for value in data.values() if isinstance(data, dict) else data:
            yield from _containers(value)
