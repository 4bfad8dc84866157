"""Labelled prompts from JSONL and CSV files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.tools.data.rows import DataError, label_problems, limited, read_rows


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled prompt."""

    text: str
    category: str | None  # None: out of scope
    intent: str | None = None  # a finer label within the category
    location: str = ""  # file:line, for messages


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The usable examples of some files, and a warning for each line that was left out."""

    examples: tuple[Example, ...]
    warnings: tuple[str, ...]


def read_examples(files: Sequence[Path], categories: Collection[str] | None = None) -> ExampleSet:
    """Read labelled prompts with the fields `text`, `category` (null: out of scope) and, optionally, `intent`.

    Empty texts and texts with two categories are left out, and duplicates count once. Each of them is a warning.

    Args:
        files: JSONL or CSV files.
        categories: The categories that a label may name; None allows any.

    Raises:
        DataError: A file cannot be read, or a label names an unknown category. The error lists all problems.
    """
    problems: list[str] = []
    warnings: list[str] = []
    examples: list[Example] = []
    for file in files:
        try:
            rows = read_rows(file, ("text", "category"), ("intent",))
        except DataError as error:
            problems += error.problems
            continue
        for row in rows:
            text, location = (row.values["text"] or "").strip(), f"{file}:{row.line}"
            if text:
                examples.append(Example(text, row.values["category"], row.values["intent"], location))
            else:
                warnings.append(f"{location}: the text is empty; left out")
    if categories is not None:
        labels = ((example.location, example.category) for example in examples if example.category is not None)
        problems += label_problems(labels, categories)
    if problems:
        raise DataError(problems)
    unique, duplicates = deduplicate(examples)
    return ExampleSet(tuple(unique), (*limited(warnings, "empty texts"), *duplicates))


def deduplicate(examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """Return the examples without duplicates and without texts that have two categories, and a warning for each.

    Texts are compared without regard to case and white space.
    """
    by_text: dict[str, list[Example]] = {}
    for example in examples:
        by_text.setdefault(" ".join(example.text.casefold().split()), []).append(example)
    unique: list[Example] = []
    conflicts: list[str] = []
    duplicates: list[str] = []
    for with_text in by_text.values():
        first = with_text[0]
        conflict = next((example for example in with_text if example.category != first.category), None)
        if conflict is not None:
            conflicts.append(
                f"{conflict.location}: {conflict.text[:60]!r} is {_label(conflict)} here and {_label(first)} in "
                f"{first.location}; both are left out"
            )
            continue
        unique.append(first)
        duplicates += [
            f"{example.location}: duplicate of the text in {first.location}; counted once" for example in with_text[1:]
        ]
    return unique, [*limited(conflicts, "texts with two categories"), *limited(duplicates, "duplicate texts")]


def _label(example: Example) -> str:
    return "out of scope" if example.category is None else repr(example.category)
