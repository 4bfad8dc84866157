"""Lines of a JSONL or CSV file with named fields, each with its place, or everything that is wrong with them."""

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.config.cross_checks import suggest

SHOWN = 20  # problems of one kind: a file in which all lines are wrong is told in one line more
_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_DELIMITERS = ",;\t"


class DataError(ValueError):
    """Labelled data that cannot be used; `problems` has a line for each thing wrong, with file, line and way out."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file."""

    line: int  # in the file, from 1; where it begins
    values: Mapping[str, str | None]  # field -> text; None: null, or an empty cell


def read_rows(file: Path, required: Sequence[str], optional: Collection[str] = ()) -> list[Row]:
    """The rows of a file: JSON objects a line, or CSV with a header where the name ends in .csv or .tsv.

    Blank lines are passed over, and fields that are not asked for.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or has lines that are no objects or lack a field.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError([f"{file}: cannot be read: {error.strerror or error}"]) from None
    text = _decoded(file, content)
    known = (*required, *optional)
    if file.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(file, text, required, known)
    return _from_json(file, text, required, known)


def shortened(problems: Sequence[str], what: str) -> list[str]:
    """The first problems, and how many more there are of `what`."""
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"and {more} more {what}"] if more > 0 else [])]


def unknown_labels(labels: Iterable[tuple[str, str]], categories: Collection[str]) -> list[str]:
    """A problem for each label, given as its place and the category that it names, that is none of the categories."""
    problems = [
        f"{place}: category {category!r} is not one of the configuration's{suggest(category, categories)}"
        for place, category in labels
        if category not in categories
    ]
    return shortened(problems, "labels that are no category")


def _decoded(file: Path, content: bytes) -> str:
    if found := _ENCODINGS.get(content[:2]):
        raise DataError([f"{file}: is {found}; save it as UTF-8 (iconv -f {found} -t UTF-8)"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    problems = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            word = bytes(line[max(error.start - 12, 0) : error.end + 12]).decode("latin-1").strip()
            problems.append(
                f"{file}:{number}: byte {error.start + 1} is 0x{line[error.start]:02x}, which is not UTF-8 (as Latin-1 "
                f"it would read {word!r}); the whole file must be UTF-8: convert this part from its own encoding"
            )
    raise DataError(shortened(problems, "lines that are not UTF-8"))


def _from_json(file: Path, text: str, required: Sequence[str], known: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            problems.append(
                f"{file}:{number}: is not JSON ({error}); each line must be an object such as {_shape(required)}"
            )
            continue
        if not isinstance(found, dict):
            problems.append(f"{file}:{number}: must be an object such as {_shape(required)}")
            continue
        wrong = list(_wrong(found, required, known))
        problems += [f"{file}:{number}: {problem}" for problem in wrong]
        if not wrong:
            rows.append(Row(number, {name: found.get(name) for name in known}))
    if problems:
        raise DataError(shortened(problems, "lines that cannot be read"))
    return rows


def _wrong(found: Mapping[str, object], required: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    for name in required:
        if name not in found:
            yield f"has no {name!r}{suggest(name, [key for key in found if key not in known])}"
    for name in known:
        value = found.get(name)
        if value is not None and not isinstance(value, str):
            yield f"{name!r} must be text or null, and {value!r} is not"


def _from_csv(file: Path, text: str, required: Sequence[str], known: Sequence[str]) -> list[Row]:
    header = text.partition("\n")[0]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    problems: list[str] = []
    line = 1
    try:
        names = [name.strip() for name in next(reader, [])]
        problems += [
            f"{file}:1: its header has no {name!r}{suggest(name, names)}; it must name the columns "
            f"{', '.join(required)}"
            for name in required
            if name not in names
        ]
        line = reader.line_num + 1
        for cells in reader if not problems else ():
            if len(cells) > len(names):
                problems.append(
                    f"{file}:{line}: has {len(cells)} cells and the header {len(names)}; put a text with {delimiter!r} "
                    "in it into double quotes"
                )
            elif any(cells):
                values = dict(zip(names, cells, strict=False))
                rows.append(Row(line, {name: values.get(name) or None for name in known}))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(f"{file}:{line}: is not CSV ({error}); a quote within a quoted text is written twice")
    if problems:
        raise DataError(shortened(problems, "lines that cannot be read"))
    return rows


def _shape(required: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{name}": "..."' for name in required) + "}"
