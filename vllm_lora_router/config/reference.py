"""The keys of the configuration file with their meaning, type, default and an example, from the JSON schema."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from vllm_lora_router.config.file_content import MAX_BYTES
from vllm_lora_router.config.json_schema import IGNORED_KEYWORD, Schema, json_schema, resolve
from vllm_lora_router.config.yaml_document import MAX_NUMBER_CHARACTERS
from vllm_lora_router.config.yaml_nodes import MAX_DEPTH, MAX_NODES

# Placeholders for keys that users choose, in paths and in examples.
_PLACEHOLDERS: Mapping[str, tuple[str, str]] = {"model_config": ("<base>", "llama-3")}
_OTHER_PLACEHOLDER = ("<name>", "mine")

# The example configurations in config/ of the repository.
EXAMPLES: Mapping[str, str] = {
    "keyword.yaml": "Keyword rules decide: each decision names its rule and the keywords that matched.",
    "embedding.yaml": "Embedding rules decide: a request goes to the category of the most similar example.",
    "examples.yaml": "Categories with a few example requests each, from which a head is fitted when the server starts.",
    "domain.yaml": "A domain model decides: a sequence classifier with labels that are mapped to categories.",
    "combined.yaml": "Keyword rules, then embedding rules, then a domain model.",
    "adapters.yaml": "Adapters that are added, changed and removed while the server runs, also per tenant.",
    "ab.yaml": "An A/B test of a new adapter, with an audit record and feedback.",
    "tenants.yaml": "An MCP tool (`tenants.py`) that looks up each tenant's adapter in a table.",
    "rules.yaml": "An MCP tool (`rules.py`) that classifies by Python rules of your own.",
    "guide.yaml": "The configuration of vllm-project/semantic-router's LoRA routing guide, unchanged.",
}


@dataclass(frozen=True)
class Key:
    """One key of the configuration file."""

    path: tuple[str, ...]  # `("categories[]", "name")`; `<base>` is a placeholder for a key that users choose
    schema: Schema
    required: bool
    is_block: bool  # it has keys of its own

    @property
    def name(self) -> str:
        """The path in one text: `categories[].name`."""
        return ".".join(self.path)

    @property
    def description(self) -> str:
        """The meaning of the key, in one line."""
        return self.schema.get("description", "")

    @property
    def is_ignored(self) -> bool:
        """Whether the key is accepted without any effect."""
        return self.schema.get(IGNORED_KEYWORD, False)

    @property
    def type(self) -> str:
        """The type in words: `number from 0 to 1`. An unset key may also be null."""
        if self.is_ignored:
            return "ignored"
        text = _type(self.schema)
        return text.removesuffix(" or null") if self.default == "unset" else text

    @property
    def default(self) -> str:
        """The default as YAML writes it; `required` or `unset` where there is none, empty for an ignored key."""
        if self.required:
            return "required"
        if self.is_ignored or (self.is_block and "default" not in self.schema):
            return ""
        default = self.schema.get("default")
        return "unset" if default is None else _value(default)

    @property
    def example(self) -> str:
        """A snippet of YAML that sets the key; empty for a block and for an ignored key."""
        if self.is_block or self.is_ignored:
            return ""
        value = self._example_value()
        for part in reversed(self.path):
            value = {part.removesuffix("[]"): [value]} if part.endswith("[]") else {_example_name(part): value}
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)

    def _example_value(self) -> Any:
        if examples := self.schema.get("examples"):
            return examples[0]
        default = self.schema.get("default")
        if isinstance(default, bool):
            return not default
        return next((option for option in self.schema.get("enum", ()) if option != default), default)


def keys(root: Schema | None = None) -> list[Key]:
    """Return all keys of the file, each block before its keys, in the order of the schema."""
    root = json_schema() if root is None else root
    return list(_keys(root, root, ()))


def find_key(text: str, among: list[Key]) -> Key | None:
    """Return the key that a path names.

    Indexes are optional. A user's own key may replace `<base>`, or be left out. Valid paths are `categories[2].name`,
    `categories.name`, `model_config.llama-3.loras.path` and `model_config.loras.path`.
    """
    parts = [part.strip('"') for part in re.findall(r'"[^"]*"|[^."]+', re.sub(r"\[[^\]]*\]", "", text.strip()))]
    matches = [key for key in among if _matches(_without_list_marks(key.path), parts)]
    return max(matches, key=_literal_parts, default=None)


def children(block: Key, among: list[Key]) -> list[Key]:
    """Return the keys directly below a block, or below each item or value of it."""
    parent = _without_list_marks(block.path)
    return [key for key in among if _is_child(_without_list_marks(key.path), parent)]


def markdown() -> str:
    """Return the reference page, config/README.md."""
    all_keys = keys()
    sections = [_INTRODUCTION, "## Top level\n\n" + _table([key for key in all_keys if len(key.path) == 1])]
    for block in all_keys:
        below = children(block, all_keys) if block.is_block else []
        if below and not _is_placeholder(block.path[-1]):
            description = f"{block.description}\n\n" if block.description else ""
            sections.append(f"## `{_prefix(below[0])}`\n\n{description}{_table(below)}")
    ignored = "\n".join(f"- `{key.name}`" for key in all_keys if key.is_ignored)
    sections.append(_IGNORED + ignored)
    sections.append("## Examples\n\n" + "\n".join(f"- [`{file}`]({file}): {text}" for file, text in EXAMPLES.items()))
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _keys(block: Schema, root: Schema, path: tuple[str, ...]) -> Iterator[Key]:
    for name, schema in block["properties"].items():
        inner = resolve(schema, root)
        yield Key((*path, name), schema, name in block.get("required", ()), inner is not None)
        if inner is None:
            continue
        below = (*path, f"{name}[]") if schema.get("type") == "array" else (*path, name)
        if schema.get("type") == "object":
            below = (*below, _PLACEHOLDERS.get(name, _OTHER_PLACEHOLDER)[0])
            yield Key(below, {"description": inner.get("description", ""), "$ref": ""}, False, True)
        yield from _keys(inner, root, below)


def _matches(path: list[str], parts: list[str]) -> bool:
    if not path:
        return not parts
    if _is_placeholder(path[0]):
        return any(_matches(path[1:], parts[count:]) for count in range(len(parts) + 1))
    return bool(parts) and parts[0] == path[0] and _matches(path[1:], parts[1:])


def _is_child(path: list[str], parent: list[str]) -> bool:
    below = [part for part in path[len(parent) :] if not _is_placeholder(part)]
    return path[: len(parent)] == parent and len(below) == 1


def _without_list_marks(path: tuple[str, ...]) -> list[str]:
    return [part.removesuffix("[]") for part in path]


def _literal_parts(key: Key) -> int:
    return sum(not _is_placeholder(part) for part in key.path)


def _is_placeholder(part: str) -> bool:
    return part.startswith("<")


def _example_name(part: str) -> str:
    return dict([*_PLACEHOLDERS.values(), _OTHER_PLACEHOLDER]).get(part, part)


def _type(schema: Schema, plural: bool = False) -> str:
    if options := schema.get("anyOf"):
        # YAML 1.1 reads `off` as false, so that false is a way to write a text.
        return " or ".join(_type(option, plural) for option in options if option.get("const", True) is not False)
    if "enum" in schema:
        values = [_code(value) for value in schema["enum"] if value is not False]
        return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))
    if "$ref" in schema:
        return "blocks" if plural else "block"
    kind: str = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema['items'], plural=True)}{_at_most(schema.get('maxItems'))}"
    if kind == "object":
        # Pydantic writes names with a pattern as `patternProperties`.
        values = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"mapping of names to {_type(values, plural=True)}{_at_most(schema.get('maxProperties'))}"
    if kind in ("integer", "number"):
        return f"{kind}{'s' if plural else ''}{_range(schema)}"
    return "text" if kind == "string" else "true or false" if kind == "boolean" else kind


def _range(schema: Schema) -> str:
    low, above, high = (schema.get(keyword) for keyword in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    lower = f"at least {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    upper = f"at most {high:g}" if high is not None else ""
    limits = ", ".join(filter(None, [lower, upper]))
    return f" ({limits})" if limits else ""


def _at_most(limit: int | None) -> str:
    return "" if limit is None else f" (at most {limit:,})"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return value if isinstance(value, str) and value else json.dumps(value)


def _code(value: Any) -> str:
    return f"`{value}`"


def _prefix(child: Key) -> str:
    return ".".join(child.path[:-1])


def _table(rows: list[Key]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key in rows:
        if key.is_ignored or _is_placeholder(key.path[-1]):
            continue
        default = key.default if key.default in ("", "required", "unset") else _code(key.default)
        lines.append(f"| {_code(key.path[-1])} | {key.type} | {default} | {key.description} |".replace("  ", " "))
    return "\n".join(lines)


_INTRODUCTION = f"""
# Configuration reference

This page is generated from the schema: `vllm-lora-router schema --markdown > config/README.md`.

The configuration is one YAML file in the format of vllm-project/semantic-router's LoRA routing guide, with additional
keys. Name it with `--router-config FILE` or in the environment variable `VLLM_LORA_ROUTER_CONFIG`; the default is
`config/config.yaml`. The smallest useful file has `model_config`, `default_model`, `categories` and one method that can
tell the categories apart.

- **Errors.** Unknown keys, wrong types, adapters and categories that are not declared, duplicates and values out of
  range are errors. All errors are reported at once, with file, line, column and the nearest valid name.
- **Check.** `vllm-lora-router validate FILE --files` prints the meaning of a file and checks adapters and models as the
  server does. `vllm-lora-router explain KEY` prints one entry of this page.
- **Editors.** `vllm-lora-router schema > schema.json` writes the JSON schema. With the first line
  `# yaml-language-server: $schema=schema.json` an editor completes and checks keys.
- **Relative paths** are tried against the folder of the configuration file, then against the working directory.
- **Reload.** The server reads the file again when it changes, at SIGHUP, and at `POST /v1/router/reload`. If it has an
  error, the configuration in effect stays. `router.adapters.run_dir` and the LoRA flags of the command line need a
  restart.
- **YAML.** `on`, `off`, `yes` and `no` are truth values unless they are quoted. Keys with the value `off` accept it
  without quotes. Anchors, aliases and merge keys (`<<`) work. Top-level keys that begin with `x-` are ignored: they are
  a place for values with an anchor. JSON works, too.
- **Names** of categories, labels, base models and adapters have no control characters and no white space at their ends.
  They are compared character by character, and must be in Unicode's composed form (NFC).
- **Limits.** A file has at most {MAX_BYTES // 2**20} MiB, {MAX_NODES:,} values and keys, and {MAX_DEPTH} levels.
  An alias counts as all that it stands for. A number has at most {MAX_NUMBER_CHARACTERS} characters; a name, keyword,
  candidate or header 256; a path or URL 4,096; a description or example 16,384; an argument of a tool 32,768; a system
  prompt 262,144. The tables give the limits of lists and mappings.

In the tables, "unset" means that the key has no default value; the meaning says what happens then.
"""

_IGNORED = """
## Ignored keys

These keys of vllm-project/semantic-router are accepted and have no effect. When the server starts, one INFO line names
those in your file.

"""
