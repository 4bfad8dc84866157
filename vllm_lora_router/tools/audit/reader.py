"""The audit record as one stream of lines by time, and what is missing in it."""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

Line = dict[str, Any]

# Without these, a line can be matched to no other, and says nothing.
_NEEDED = {"decision": {"id", "plan", "served"}, "outcome": {"id"}, "feedback": {"id", "score"}, "lost": {"lines"}}


class RecordError(Exception):
    """There is no record to read."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that no line of a run has."""

    run: str
    after: int  # the last `seq` in front of it
    before: int  # the first `seq` behind it

    @property
    def lines(self) -> int:
        return self.before - self.after - 1

    def __str__(self) -> str:
        lines = "1 line is" if self.lines == 1 else f"{self.lines} lines are"
        return f"run {self.run}: {lines} missing between seq {self.after} and {self.before}"


@dataclass(slots=True)
class Missing:
    """What the record does not have, as far as it can be seen."""

    broken: list[str] = field(default_factory=list)  # "file:line number" of what is no line of a record
    gaps: list[Gap] = field(default_factory=list)
    lost: int = 0  # lines that a process says it could not write
    cleared: list[Gap] = field(default_factory=list)  # what runs began with; old files may have been cleared away

    def __bool__(self) -> bool:
        """Whether anything was lost, as far as it was not cleared away."""
        return bool(self.broken or self.gaps or self.lost)

    def sentences(self) -> list[str]:
        """A sentence a finding."""
        said = [f"{place}: not a line of the record: cut off, or changed" for place in self.broken]
        said += map(str, self.gaps)
        said += [f"run {gap.run} begins at seq {gap.before} here: earlier files are not here" for gap in self.cleared]
        if self.lost:
            said.append(f"{self.lost} line{'s' * (self.lost != 1)} could not be written when they came, and are lost")
        return said


class Record:
    """Files of one audit record, of any number of processes and hosts."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._missing: Missing | None = None

    @classmethod
    def of(cls, *paths: Path) -> "Record":
        """The record in folders, or of single files.

        Raises:
            RecordError: a path does not exist, or a folder holds no record.
        """
        files: dict[Path, Path] = {}
        for path in paths:
            found = [path]
            if path.is_dir():
                found = sorted(path.glob("*.jsonl"))
                if not found:
                    raise RecordError(f"{path}: no *.jsonl in this folder; is it the one that router.audit.path names?")
            elif not path.is_file():
                raise RecordError(f"{path}: no such folder or file; router.audit.path names the record's folder")
            files.update((file.resolve(), file) for file in found)
        return cls(list(files.values()))

    def lines(self) -> Iterator[Line]:
        """All lines by time; in memory is one of each file."""
        files = [_File(path) for path in self.files]
        yield from heapq.merge(*(file.lines() for file in files), key=_place)
        self._missing = _missing(files)

    @property
    def missing(self) -> Missing:
        """What the last whole reading did not find; reads everything where nothing was read yet."""
        if self._missing is None:
            for _ in self.lines():
                pass
        assert self._missing is not None
        return self._missing


@dataclass(slots=True)
class _File:
    path: Path
    broken: list[str] = field(default_factory=list)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)  # run -> its first and last `seq` in here
    gaps: list[Gap] = field(default_factory=list)
    lost: int = 0
    number: int = 0

    def lines(self) -> Iterator[Line]:
        with self.path.open("rb") as file:
            first, offset = self._next(file), file.tell()
        if first is None:
            return
        yield first
        # It was closed until its first line's turn came: no more files are open at once than overlap in time.
        with self.path.open("rb") as file:
            file.seek(offset)
            while (line := self._next(file)) is not None:
                yield line

    def _next(self, file: BinaryIO) -> Line | None:
        while raw := file.readline():
            self.number += 1
            if (line := _parsed(raw)) is not None:
                self._note(line)
                return line
            self.broken.append(f"{self.path}:{self.number}")
        return None

    def _note(self, line: Line) -> None:
        run, seq = line["run"], line["seq"]
        first, last = self.spans.get(run, (seq, seq - 1))
        if seq > last + 1:
            self.gaps.append(Gap(run, last, seq))
        self.spans[run] = (min(first, seq), max(last, seq))
        if line["type"] == "lost":
            self.lost += line["lines"]


def _parsed(raw: bytes) -> Line | None:
    try:
        line = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError):
        try:
            line = json.loads(raw)  # which takes half an emoji, too
        except ValueError:
            return None
    if not isinstance(line, dict):
        return None
    texts = all(isinstance(line.get(name), str) for name in ("type", "at", "run"))
    whole = texts and isinstance(line.get("seq"), int) and line.keys() >= _NEEDED.get(line["type"], set())
    return line if whole else None


def _place(line: Line) -> tuple[str, str, int]:
    return line["at"], line["run"], line["seq"]


def _missing(files: Iterable[_File]) -> Missing:
    missing = Missing()
    spans: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        missing.broken += file.broken
        missing.gaps += file.gaps
        missing.lost += file.lost
        for run, span in file.spans.items():
            spans.setdefault(run, []).append(span)
    # A process counts from 1, and goes on counting in its next file.
    for run, of_run in spans.items():
        reached = 0
        for first, last in sorted(of_run):
            if first > reached + 1:
                (missing.gaps if reached else missing.cleared).append(Gap(run, reached, first))
            reached = max(reached, last)
    missing.gaps.sort(key=lambda gap: (gap.run, gap.after))
    return missing
