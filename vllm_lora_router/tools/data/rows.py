"""Rows with named fields from JSONL and CSV files."""

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.text import suggest

MAX_PROBLEMS = 20  # listed per kind; the rest is counted
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_DELIMITERS = ",;\t"


class DataError(ValueError):
    """Data that cannot be used; `problems` has a line for each problem with file, line and remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file."""

    line: int  # where the row begins, from 1
    values: Mapping[str, str | None]  # field -> text; None: null, or an empty cell


def read_rows(file: Path, required: Sequence[str], optional: Collection[str] = ()) -> list[Row]:
    """Read the rows of a file: CSV with a header if the name ends in .csv or .tsv, else one JSON object per line.

    Blank lines and other fields are ignored.

    Raises:
        DataError: The file cannot be read or is not UTF-8, or a line is not an object or lacks a field.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError([f"{file}: cannot be read: {error.strerror or error}"]) from None
    text = _decode(file, content)
    fields = (*required, *optional)
    if file.suffix.lower() in (".csv", ".tsv"):
        return _read_csv(file, text, required, fields)
    return _read_json(file, text, required, fields)


def limited(problems: Sequence[str], kind: str) -> list[str]:
    """Return the first problems, and a line that counts the remaining problems of this kind."""
    more = len(problems) - MAX_PROBLEMS
    return [*problems[:MAX_PROBLEMS], *([f"and {more} more {kind}"] if more > 0 else [])]


def label_problems(labels: Iterable[tuple[str, str]], categories: Collection[str]) -> list[str]:
    """Return a problem for each label that is not a category.

    Args:
        labels: The location of each label, file:line, and the category that it names.
        categories: The categories of the configuration.
    """
    problems = [
        f"{location}: category {category!r} is not in the configuration{suggest(category, categories)}"
        for location, category in labels
        if category not in categories
    ]
    return limited(problems, "unknown categories")


def _decode(file: Path, content: bytes) -> str:
    if encoding := _BYTE_ORDER_MARKS.get(content[:2]):
        raise DataError([f"{file}: is {encoding}; save it as UTF-8 (iconv -f {encoding} -t UTF-8)"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    problems = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            excerpt = bytes(line[max(error.start - 12, 0) : error.end + 12]).decode("latin-1").strip()
            problems.append(
                f"{file}:{number}: byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8 (as "
                f"Latin-1: {excerpt!r}); convert this part of the file to UTF-8"
            )
    raise DataError(limited(problems, "lines that are not UTF-8"))


def _read_json(file: Path, text: str, required: Sequence[str], fields: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            problems.append(
                f"{file}:{number}: is not JSON ({error}); each line must be an object such as {_sample(required)}"
            )
            continue
        if not isinstance(value, dict):
            problems.append(f"{file}:{number}: must be an object such as {_sample(required)}")
            continue
        of_line = list(_object_problems(value, required, fields))
        problems += [f"{file}:{number}: {problem}" for problem in of_line]
        if not of_line:
            rows.append(Row(number, {name: value.get(name) for name in fields}))
    if problems:
        raise DataError(limited(problems, "lines that cannot be read"))
    return rows


def _object_problems(value: Mapping[str, object], required: Sequence[str], fields: Sequence[str]) -> Iterator[str]:
    for name in required:
        if name not in value:
            yield f"has no {name!r}{suggest(name, [key for key in value if key not in fields])}"
    for name in fields:
        field = value.get(name)
        if field is not None and not isinstance(field, str):
            yield f"{name!r} must be text or null, not {field!r}"


def _read_csv(file: Path, text: str, required: Sequence[str], fields: Sequence[str]) -> list[Row]:
    header = text.partition("\n")[0]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    problems: list[str] = []
    line = 1
    try:
        names = [name.strip() for name in next(reader, [])]
        problems += [
            f"{file}:1: the header has no {name!r}{suggest(name, names)}; it must name the columns "
            f"{', '.join(required)}"
            for name in required
            if name not in names
        ]
        line = reader.line_num + 1
        for cells in reader if not problems else ():
            if len(cells) > len(names):
                problems.append(
                    f"{file}:{line}: has {len(cells)} cells, but the header has {len(names)}; put texts that contain "
                    f"{delimiter!r} in double quotes"
                )
            elif any(cells):
                values = dict(zip(names, cells, strict=False))
                rows.append(Row(line, {name: values.get(name) or None for name in fields}))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{file}:{line}: is not CSV ({error}); write a quote within a quoted text twice")
    if problems:
        raise DataError(limited(problems, "lines that cannot be read"))
    return rows


def _sample(required: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{name}": "..."' for name in required) + "}"
