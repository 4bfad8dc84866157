"""Pairs of a prompt and the answer that it should get, each labelled with its category."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.tools.data.rows import DataError, Row, read_rows, shortened, unknown_labels


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a reference answer."""

    prompt: str
    answer: str
    category: str
    place: str = ""  # file:line, for messages


@dataclass(frozen=True, slots=True)
class Read:
    """What files hold, and what was left out of it and why."""

    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]


def read_pairs(files: Sequence[Path], categories: Collection[str]) -> Read:
    """The pairs of JSONL or CSV files, fields `prompt` (or `text`), `answer` and `category`.

    Pairs without a prompt, an answer or a category are left out, and repeated ones count once; each is a warning.

    Args:
        categories: those that a label may name.

    Raises:
        DataError: a file cannot be read, or labels name categories that there are not; all at once.
    """
    problems: list[str] = []
    warnings: list[str] = []
    found: list[Pair] = []
    for file in files:
        try:
            rows = read_rows(file, ("answer", "category"), ("prompt", "text"))
        except DataError as error:
            problems += error.problems
            continue
        if rows and not any(row.values["prompt"] or row.values["text"] for row in rows):
            problems.append(f"{file}: no line has a 'prompt' (or 'text'); it is what the answer answers")
            continue
        for row in rows:
            place = f"{file}:{row.line}"
            if missing := _missing(row):
                warnings.append(f"{place}: its {missing} is empty; left out")
            else:
                found.append(_pair(row, place))
    problems += unknown_labels(((one.place, one.category) for one in found), categories)
    if problems:
        raise DataError(problems)
    kept, repeated = _once_each(found)
    return Read(tuple(kept), (*shortened(warnings, "lines with something empty"), *repeated))


def _prompt(row: Row) -> str:
    return row.values["prompt"] or row.values["text"] or ""


def _missing(row: Row) -> str | None:
    fields = {"prompt": _prompt(row), "answer": row.values["answer"], "category": row.values["category"]}
    return next((name for name, value in fields.items() if not (value or "").strip()), None)


def _pair(row: Row, place: str) -> Pair:
    return Pair(_prompt(row), row.values["answer"] or "", row.values["category"] or "", place)


def _once_each(pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    first: dict[tuple[str, str, str], Pair] = {}
    repeated: list[str] = []
    for pair in pairs:
        before = first.setdefault((pair.category, pair.prompt.strip(), pair.answer.strip()), pair)
        if before is not pair:
            repeated.append(f"{pair.place}: the same pair as in {before.place}; counted once")
    return list(first.values()), shortened(repeated, "repeated pairs")
