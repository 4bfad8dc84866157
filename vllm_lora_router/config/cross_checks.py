"""Names in a configuration that must lead somewhere, and names that may stand only once."""

from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from vllm_lora_router.config.yaml_document import Document, Path_, Problem, find


def suggest(name: object, valid: Iterable[str]) -> str:
    """`; did you mean 'medical-lora'?`, or nothing when no valid name is near."""
    names = list(valid)
    near = get_close_matches(str(name), names, n=1, cutoff=0.6)
    if not near:
        folded = {candidate.casefold(): candidate for candidate in names}
        near = [folded[match] for match in get_close_matches(str(name).casefold(), list(folded), n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else ""


def check(document: Document, command_line: Collection[str]) -> Iterator[Problem]:
    """Problems between parts of the file; `command_line` holds the adapters that `--lora-modules` declares.

    Reads plain data, so that these are reported together with the schema's own problems.
    """
    data = document.data
    bases = _names(data.get("model_config") if isinstance(data.get("model_config"), dict) else ())
    categories = _names(value for _, value in find(data, "categories", None, "name"))
    adapters = _names(value for _, value in find(data, "model_config", None, "loras", None, "name"))
    known_adapters = dict.fromkeys([*adapters, *command_line])
    # A source may have any adapter, now or later.
    come_later = any(value for _, value in find(data, "router", "adapters", "sources"))

    yield from _once(document, find(data, "categories", None, "name"), "category")
    yield from _once(document, find(data, "model_config", None, "loras", None, "name"), "adapter")
    yield from _once(document, find(data, "categories", None, "mmlu_categories", None), "label", fold=True)

    for pattern in (
        ("keyword_rules", None, "category"),
        ("embedding_rules", None, "category"),
        ("classifier", "category_model", "fallback_category"),
    ):
        yield from _known(document, pattern, categories, "is not a category of this file")
    yield from _known(document, ("categories", None, "model_scores", None, "model"), bases, "is not under model_config")
    if not come_later:
        yield from _lora_names(document, data, command_line)
        wrong = "is neither a base under model_config nor an adapter"
        yield from _known(document, ("default_model",), [*bases, *known_adapters], wrong)
    for path, name in find(data, "auto_model_name"):
        if name in bases or name in known_adapters:
            yield document.problem(path, f"{name!r} is also the name of a model; a client could not ask for that one")
    for path, name in find(data, "model_config", None, "loras", None, "name"):
        if isinstance(name, str) and name in bases:
            yield document.problem(path, f"{name!r} is also the name of a base under model_config")
    yield from _once(document, find(data, "categories", None, "examples", None), "example", fold=True)
    yield from _alone(document, data)
    for path, _ in find(data, "classifier", "embedding_model", "thresholds", None):
        if path[-1] not in categories:
            wrong = f"{path[-1]!r} is not a category of this file{suggest(path[-1], categories)}"
            yield document.problem(path, wrong, at_key=True)
    yield from _nobody_to_isolate(document, data)


def _alone(document: Document, data: Any) -> Iterator[Problem]:
    """Examples of one category, and no text of any other to tell it from."""
    with_examples = [path for path, found in find(data, "categories", None, "examples") if found]
    told = {path[1] for path, found in find(data, "categories", None, "description") if found}
    if len(with_examples) == 1 and not told - {with_examples[0][1]}:
        wrong = "no other category has examples or a description to tell these from; give another one some"
        yield document.problem(with_examples[0], wrong, at_key=True)


def _nobody_to_isolate(document: Document, data: Any) -> Iterator[Problem]:
    for path, cache in find(data, "router", "tenant_cache"):
        if cache == "isolated" and any(header is None for _, header in find(data, "router", "tenant")):
            wrong = "isolated keeps tenants apart, and router.tenant is null: nothing says whose a request is"
            yield document.problem(path, f'{wrong}; name its header there, such as "header:x-tenant"')


def _lora_names(document: Document, data: Any, command_line: Collection[str]) -> Iterator[Problem]:
    for path, entry in find(data, "categories", None, "model_scores", None):
        if not isinstance(entry, dict) or not isinstance(name := entry.get("lora_name"), str):
            continue
        base = entry.get("model")
        declared = _names(value for _, value in find(data, "model_config", str(base), "loras", None, "name"))
        if name not in declared and name not in command_line:
            valid = [*declared, *command_line]
            yield document.problem(
                (*path, "lora_name"), f"{name!r} is not declared under model_config.{base}.loras{suggest(name, valid)}"
            )


def _known(
    document: Document, pattern: tuple[str | None, ...], valid: Collection[str], wrong: str
) -> Iterator[Problem]:
    for path, name in find(document.data, *pattern):
        if isinstance(name, str) and name not in valid:
            yield document.problem(path, f"{name!r} {wrong}{suggest(name, valid)}")


def _once(
    document: Document, names: Iterable[tuple[Path_, Any]], what: str, *, fold: bool = False
) -> Iterator[Problem]:
    seen: dict[str, Path_] = {}
    for path, name in names:
        if not isinstance(name, str):
            continue
        key = name.casefold() if fold else name
        if key in seen:
            line = document.values[seen[key]][0]
            yield document.problem(path, f"{what} {name!r} is named twice; it already stands in line {line}")
        seen.setdefault(key, path)


def _names(values: Iterable[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
