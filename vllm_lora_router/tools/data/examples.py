"""Labelled prompts: what people ask, and the category that should answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.tools.data.rows import DataError, read_rows, shortened, unknown_labels


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt."""

    text: str
    category: str | None  # None: out of scope, no category should answer
    intent: str | None = None  # what it is more finely, within its category
    place: str = ""  # file:line, for messages


@dataclass(frozen=True, slots=True)
class Read:
    """What a file holds, and what was left out of it and why."""

    examples: tuple[Example, ...]
    warnings: tuple[str, ...]


def read_examples(files: Sequence[Path], categories: Collection[str] | None = None) -> Read:
    """The labelled prompts of JSONL or CSV files, fields `text`, `category` (null: out of scope) and `intent`, if any.

    Empty texts and texts that stand under two categories are left out, and repeated ones count once; each is a warning.

    Args:
        categories: those that a label may name; None: any.

    Raises:
        DataError: a file cannot be read, or labels name categories that there are not; all at once.
    """
    problems: list[str] = []
    warnings: list[str] = []
    found: list[Example] = []
    for file in files:
        try:
            rows = read_rows(file, ("text", "category"), ("intent",))
        except DataError as error:
            problems += error.problems
            continue
        for row in rows:
            text, place = (row.values["text"] or "").strip(), f"{file}:{row.line}"
            if text:
                found.append(Example(text, row.values["category"], row.values["intent"], place))
            else:
                warnings.append(f"{place}: its text is empty; left out")
    if categories is not None:
        labels = ((one.place, one.category) for one in found if one.category is not None)
        problems += unknown_labels(labels, categories)
    if problems:
        raise DataError(problems)
    kept, repeated = once_each(found)
    return Read(tuple(kept), (*shortened(warnings, "empty texts"), *repeated))


def once_each(examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """The examples without repetitions, and without those that contradict each other; with what to say of them."""
    by_text: dict[str, list[Example]] = {}
    for example in examples:
        by_text.setdefault(" ".join(example.text.casefold().split()), []).append(example)
    kept: list[Example] = []
    contradicted: list[str] = []
    repeated: list[str] = []
    for same in by_text.values():
        first = same[0]
        other = next((one for one in same if one.category != first.category), None)
        if other is not None:
            contradicted.append(
                f"{other.place}: {other.text[:60]!r} is {_label(other)} here and {_label(first)} in {first.place}; "
                "left out, for it cannot be both"
            )
            continue
        kept.append(first)
        repeated += [f"{one.place}: the same text as in {first.place}; counted once" for one in same[1:]]
    return kept, [*shortened(contradicted, "texts under two categories"), *shortened(repeated, "repeated texts")]


def _label(example: Example) -> str:
    return "out of scope" if example.category is None else repr(example.category)
