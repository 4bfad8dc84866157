"""Pairs of a prompt and a reference answer, each labelled with a category."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.tools.data.rows import DataError, Row, label_problems, limited, read_rows


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a reference answer."""

    prompt: str
    answer: str
    category: str
    location: str = ""  # file:line, for messages


@dataclass(frozen=True, slots=True)
class PairSet:
    """The usable pairs of some files, and a warning for each line that was left out."""

    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]


def read_pairs(files: Sequence[Path], categories: Collection[str]) -> PairSet:
    """Read pairs with the fields `prompt` (or `text`), `answer` and `category`.

    Pairs without a prompt, an answer or a category are left out, and duplicates count once. Each of them is a warning.

    Args:
        files: JSONL or CSV files.
        categories: The categories that a label may name.

    Raises:
        DataError: A file cannot be read, or a label names an unknown category. The error lists all problems.
    """
    problems: list[str] = []
    warnings: list[str] = []
    pairs: list[Pair] = []
    for file in files:
        try:
            rows = read_rows(file, ("answer", "category"), ("prompt", "text"))
        except DataError as error:
            problems += error.problems
            continue
        if rows and not any(row.values["prompt"] or row.values["text"] for row in rows):
            problems.append(f"{file}: no line has a 'prompt' (or 'text'); add the prompt of each answer")
            continue
        for row in rows:
            location = f"{file}:{row.line}"
            if field := _empty_field(row):
                warnings.append(f"{location}: the {field} is empty; left out")
            else:
                pairs.append(_pair(row, location))
    problems += label_problems(((pair.location, pair.category) for pair in pairs), categories)
    if problems:
        raise DataError(problems)
    unique, duplicates = _deduplicate(pairs)
    return PairSet(tuple(unique), (*limited(warnings, "lines with an empty field"), *duplicates))


def _prompt(row: Row) -> str:
    return row.values["prompt"] or row.values["text"] or ""


def _empty_field(row: Row) -> str | None:
    fields = {"prompt": _prompt(row), "answer": row.values["answer"], "category": row.values["category"]}
    return next((name for name, value in fields.items() if not (value or "").strip()), None)


def _pair(row: Row, location: str) -> Pair:
    return Pair(_prompt(row), row.values["answer"] or "", row.values["category"] or "", location)


def _deduplicate(pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    unique: dict[tuple[str, str, str], Pair] = {}
    duplicates: list[str] = []
    for pair in pairs:
        first = unique.setdefault((pair.category, pair.prompt.strip(), pair.answer.strip()), pair)
        if first is not pair:
            duplicates.append(f"{pair.location}: duplicate of the pair in {first.location}; counted once")
    return list(unique.values()), limited(duplicates, "duplicate pairs")
