"""Checks between parts of a configuration: names that must be declared, and names that must be unique."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from vllm_lora_router.config.yaml_document import Document, KeyPath, Problem, find_values
from vllm_lora_router.text import suggest


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
    known_adapters = dict.fromkeys([*adapters, *command_line])
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
    models = ("categories", None, "model_scores", None, "model")
    yield from _undeclared(document, models, bases, "is not declared under model_config")
    if not has_sources:
        yield from _undeclared_adapters(document, data, command_line)
        message = "is neither a base under model_config nor an adapter"
        yield from _undeclared(document, ("default_model",), [*bases, *known_adapters], message)
    for path, name in find_values(data, "auto_model_name"):
        if name in bases or name in known_adapters:
            yield document.problem(path, f"{name!r} is also the name of a model; clients could not request that model")
    for path, name in find_values(data, "model_config", None, "loras", None, "name"):
        if isinstance(name, str) and name in bases:
            yield document.problem(path, f"{name!r} is also the name of a base under model_config")
    examples = find_values(data, "categories", None, "examples", None)
    yield from _duplicates(document, examples, "example", ignore_case=True)
    yield from _single_category_with_text(document, data)
    for path, _ in find_values(data, "classifier", "embedding_model", "thresholds", None):
        if path[-1] not in categories:
            message = f"{path[-1]!r} is not a category of this file{suggest(path[-1], categories)}"
            yield document.problem(path, message, at_key=True)
    yield from _isolation_without_tenant(document, data)


def _single_category_with_text(document: Document, data: Any) -> Iterator[Problem]:
    """Yield a problem if one category has examples and no other category has any text."""
    with_examples = [path for path, value in find_values(data, "categories", None, "examples") if value]
    described = {path[1] for path, value in find_values(data, "categories", None, "description") if value}
    if len(with_examples) == 1 and not described - {with_examples[0][1]}:
        message = (
            "no other category has examples or a description, so a head cannot be fitted; add some to another category"
        )
        yield document.problem(with_examples[0], message, at_key=True)


def _isolation_without_tenant(document: Document, data: Any) -> Iterator[Problem]:
    for path, cache in find_values(data, "router", "tenant_cache"):
        if cache == "isolated" and any(header is None for _, header in find_values(data, "router", "tenant")):
            message = (
                "isolated needs the tenant of each request, but router.tenant is null; set it to the header with the "
                'tenant, such as "header:x-tenant"'
            )
            yield document.problem(path, message)


def _undeclared_adapters(document: Document, data: Any, command_line: Collection[str]) -> Iterator[Problem]:
    for path, entry in find_values(data, "categories", None, "model_scores", None):
        if not isinstance(entry, dict) or not isinstance(name := entry.get("lora_name"), str):
            continue
        base = entry.get("model")
        declared = _texts(value for _, value in find_values(data, "model_config", str(base), "loras", None, "name"))
        if name not in declared and name not in command_line:
            valid = [*declared, *command_line]
            yield document.problem(
                (*path, "lora_name"), f"{name!r} is not declared under model_config.{base}.loras{suggest(name, valid)}"
            )


def _undeclared(
    document: Document, pattern: tuple[str | None, ...], valid: Collection[str], message: str
) -> Iterator[Problem]:
    for path, name in find_values(document.data, *pattern):
        if isinstance(name, str) and name not in valid:
            yield document.problem(path, f"{name!r} {message}{suggest(name, valid)}")


def _duplicates(
    document: Document, names: Iterable[tuple[KeyPath, Any]], kind: str, *, ignore_case: bool = False
) -> Iterator[Problem]:
    seen: dict[str, KeyPath] = {}
    for path, name in names:
        if not isinstance(name, str):
            continue
        key = name.casefold() if ignore_case else name
        if key in seen:
            line = document.values[seen[key]][0]
            yield document.problem(path, f"duplicate {kind} {name!r}; the first one is in line {line}")
        seen.setdefault(key, path)


def _texts(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
