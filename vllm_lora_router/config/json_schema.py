"""JSON schema of the configuration file, for editors and for the reference page."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from vllm_lora_router.config.schema import Config
from vllm_lora_router.config.semantic_router_keys import EXTENSION_PREFIX, IGNORED_KEYS, UNSUPPORTED_KEYS

Schema = dict[str, Any]

IGNORED = "Accepted and ignored: it configures a part of vllm-project/semantic-router that this router does not have."
EXTENSION = "Ignored: a place for values that have a YAML anchor."
# Marks the keys above in the schema. JSON Schema ignores keywords that it does not know.
IGNORED_KEYWORD = "x-ignored"


def json_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of the configuration file.

    The schema describes the file before validation: `off` may be the boolean that YAML 1.1 reads, and a source may be a
    path. It also accepts the keys of vllm-project/semantic-router that have no effect.
    """
    schema = Config.model_json_schema(by_alias=True, schema_generator=_Generator)
    _clean(schema)
    for pattern in IGNORED_KEYS:
        _add_property(schema, pattern, {"description": IGNORED, IGNORED_KEYWORD: True})
    for pattern, feature, accepted in UNSUPPORTED_KEYS:
        description = f"Accepted and ignored. Other values are refused: {feature} is not supported."
        _add_property(schema, pattern, {"enum": list(accepted), "description": description, IGNORED_KEYWORD: True})
    schema["patternProperties"] = {f"^{EXTENSION_PREFIX}": {"description": EXTENSION}}
    dialect = GenerateJsonSchema.schema_dialect
    return {"$schema": dialect, "title": "Configuration of vllm-lora-router", **schema}


def resolve(schema: Schema, root: Schema) -> Schema | None:
    """Return the block that a key's schema leads to; None for a key without keys of its own.

    A block may be the value itself, or an item of a list, or a value of a mapping.
    """
    if reference := schema.get("$ref"):
        return root["$defs"][reference.rpartition("/")[2]]
    for option in schema.get("anyOf", ()):
        if block := resolve(option, root):
            return block
    for keyword in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(keyword), dict):
            return resolve(inner, root)
    return None


class _Generator(GenerateJsonSchema):
    """Generates schemas without titles: a title would only repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _clean(schema: Schema) -> None:
    """Improve the schema for editors.

    Descriptions become one line. Titles of blocks and defaults that repeat a block are removed. Names that do not match
    their pattern become invalid.
    """
    for block in (schema, *schema["$defs"].values()):
        block.pop("title", None)
        for described in (block, *block["properties"].values()):
            if "description" in described:
                described["description"] = " ".join(described["description"].split())
            if isinstance(default := described.get("default"), dict) and default:
                del described["default"]
            if "patternProperties" in described:
                described["additionalProperties"] = False


def _add_property(root: Schema, pattern: tuple[str | None, ...], property_schema: Schema) -> None:
    block = root
    for key in pattern[:-1]:
        if key is not None:  # `resolve` has already entered the list or mapping that None matches
            inner = resolve(block["properties"][key], root)
            assert inner is not None, pattern
            block = inner
    last = pattern[-1]
    assert last is not None, pattern
    block["properties"][last] = property_schema
