"""Checks between parts of a configuration: names that must be declared, and names that must be unique."""

import unicodedata
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from vllm_lora_router.config.adapter_names import invalid_name_reason
from vllm_lora_router.config.names import name_problem
from vllm_lora_router.config.schema import AUTO_NAME, DEFAULT_AUTO_NAME
from vllm_lora_router.config.yaml_document import Document, KeyPath, Problem, find_values, format_key_path
from vllm_lora_router.text import quoted, suggest


def find_problems(document: Document, command_line: Collection[str]) -> Iterator[Problem]:
    """Yield the problems between parts of the file.

    The checks read plain data, so that their problems are reported together with those of the schema.

    Args:
        command_line: the adapters that `--lora-modules` declares.
    """
    data = document.data
    bases = _texts(data.get("model_config") if isinstance(data.get("model_config"), dict) else ())
    categories = _texts(value for _, value in find_values(data, "categories", None, "name"))
    adapters = _texts(value for _, value in find_values(data, "model_config", None, "loras", None, "name"))
    models = _texts([*bases, *adapters, *command_line])
    # A source may contain any adapter, now or later.
    has_sources = any(value for _, value in find_values(data, "router", "adapters", "sources"))

    yield from _duplicates(document, find_values(data, "categories", None, "name"), "category")
    yield from _duplicates(document, find_values(data, "model_config", None, "loras", None, "name"), "adapter")
    labels = find_values(data, "categories", None, "mmlu_categories", None)
    yield from _duplicates(document, labels, "label", ignore_case=True)

    for pattern in (
        ("keyword_rules", None, "category"),
        ("embedding_rules", None, "category"),
        ("classifier", "category_model", "fallback_category"),
    ):
        yield from _undeclared(document, pattern, categories, "is not a category of this file")
    entries = ("categories", None, "model_scores", None, "model")
    yield from _undeclared(document, entries, bases, "is not declared under model_config")
    if not has_sources:
        yield from _undeclared_adapters(document, data, command_line)
        message = "is neither a base under model_config nor an adapter"
        yield from _undeclared(document, ("default_model",), models, message)
    auto_names = {AUTO_NAME} if "auto_model_name" in data else {AUTO_NAME, DEFAULT_AUTO_NAME}
    for path, name in find_values(data, "auto_model_name"):
        if _is_in(name, models):
            message = f"{quoted(name)} is also the name of a model; clients could not request that model"
            yield document.problem(path, message)
    for base in auto_names & bases.keys():
        message = f"{base!r} is an auto name, which requests routing; use another name for the base"
        yield document.problem(("model_config", base), message, at_key=True)
    yield from _adapter_names(document, data, bases, command_line, auto_names)
    for path, name in find_values(data, "model_config", None, "loras", None, "name"):
        if isinstance(name, str) and name in bases:
            yield document.problem(path, f"{quoted(name)} is also the name of a base under model_config")
    examples = find_values(data, "categories", None, "examples", None)
    yield from _duplicates(document, examples, "example", ignore_case=True)
    yield from _single_category_with_text(document, data)
    for path, _ in find_values(data, "classifier", "embedding_model", "thresholds", None):
        if path[-1] not in categories:
            message = f"{quoted(path[-1])} is not a category of this file{suggest(path[-1], categories)}"
            yield document.problem(path, message, at_key=True)
    yield from _tenant_settings_without_tenant(document, data)


def _adapter_names(
    document: Document,
    data: Any,
    bases: Collection[str],
    command_line: Collection[str],
    auto_names: Collection[str],
) -> Iterator[Problem]:
    """Yield a problem for each name that an adapter cannot have."""
    named = [
        *find_values(data, "model_config", None, "loras", None, "name"),
        *find_values(data, "categories", None, "model_scores", None, "lora_name"),
        *((path, name) for path, name in find_values(data, "default_model") if not _is_in(name, bases)),
    ]
    for path, name in named:
        # The schema reports what is wrong with any name.
        if isinstance(name, str) and not name_problem(name) and (reason := invalid_name_reason(name, (), auto_names)):
            yield document.problem(path, reason)
    for name in command_line:
        if reason := invalid_name_reason(name, (), auto_names):
            yield Problem(document.file, 1, 1, (), f"--lora-modules: {reason}")


def _single_category_with_text(document: Document, data: Any) -> Iterator[Problem]:
    """Yield a problem if one category has examples and no other category has any text."""
    with_examples = [path for path, value in find_values(data, "categories", None, "examples") if value]
    described = {path[1] for path, value in find_values(data, "categories", None, "description") if value}
    if len(with_examples) == 1 and not described - {with_examples[0][1]}:
        message = (
            "no other category has examples or a description, so a head cannot be fitted; add some to another category"
        )
        yield document.problem(with_examples[0], message, at_key=True)


def _tenant_settings_without_tenant(document: Document, data: Any) -> Iterator[Problem]:
    if all(header is not None for _, header in find_values(data, "router", "tenant")):
        return
    remedy = (
        "needs the tenant of each request, but router.tenant is null; set it to the header with the tenant, such as "
        '"header:x-tenant"'
    )
    for path, cache in find_values(data, "router", "tenant_cache"):
        if cache == "isolated":
            yield document.problem(path, f"isolated {remedy}")
    for path, keys in find_values(data, "router", "tenants"):
        if keys is not None:
            yield document.problem(path, f"the table of API keys {remedy}", at_key=True)


def _undeclared_adapters(document: Document, data: Any, command_line: Collection[str]) -> Iterator[Problem]:
    declared: dict[str, dict[str, None]] = {}
    for (_, base, *_), name in find_values(data, "model_config", None, "loras", None, "name"):
        if isinstance(name, str):
            declared.setdefault(str(base), {})[name] = None
    for path, entry in find_values(data, "categories", None, "model_scores", None):
        if not isinstance(entry, dict) or not isinstance(name := entry.get("lora_name"), str):
            continue
        base = str(entry.get("model"))
        if name not in declared.get(base, ()) and name not in command_line:
            valid = [*declared.get(base, ()), *command_line]
            place = format_key_path(("model_config", base, "loras"))
            message = f"{quoted(name)} is not declared under {place}{suggest(name, valid)}"
            yield document.problem((*path, "lora_name"), message)


def _undeclared(
    document: Document, pattern: tuple[str | None, ...], valid: Collection[str], message: str
) -> Iterator[Problem]:
    for path, name in find_values(document.data, *pattern):
        if isinstance(name, str) and name not in valid:
            yield document.problem(path, f"{quoted(name)} {message}{suggest(name, valid)}")


def _duplicates(
    document: Document, names: Iterable[tuple[KeyPath, Any]], kind: str, *, ignore_case: bool = False
) -> Iterator[Problem]:
    seen: dict[str, KeyPath] = {}
    for path, name in names:
        if not isinstance(name, str):
            continue
        key = unicodedata.normalize("NFC", name)
        if ignore_case:
            key = key.casefold()
        if key in seen:
            line = document.values[seen[key]][0]
            yield document.problem(path, f"duplicate {kind} {quoted(name)}; the first one is in line {line}")
        seen.setdefault(key, path)


def _texts(values: Iterable[Any]) -> dict[str, None]:
    """Return the texts among the values, in their order, as a mapping that is fast to search."""
    return {value: None for value in values if isinstance(value, str)}


def _is_in(name: object, names: Collection[str]) -> bool:
    return isinstance(name, str) and name in names
