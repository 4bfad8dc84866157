"""Reading of audit records: the lines of all files in order of time, and the lines that are missing."""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from vllm_lora_router.observability.audit_schema import SCHEMA_VERSION, AuditLine
from vllm_lora_router.tools.audit.upgrade import upgrade

# A line without these keys is invalid: it cannot be used or joined with other lines.
_REQUIRED_KEYS = {
    "decision": {"id", "plan", "served"},
    "outcome": {"id"},
    "feedback": {"id", "score"},
    "lost": {"lines"},
}


class AuditRecordError(Exception):
    """There is no audit record to read, or this version cannot read it."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of line numbers that are missing in a run."""

    run: str
    after: int  # the last `seq` before the gap
    before: int  # the first `seq` after the gap

    @property
    def lines(self) -> int:
        """The number of missing lines."""
        return self.before - self.after - 1

    def __str__(self) -> str:
        lines = "1 line is" if self.lines == 1 else f"{self.lines} lines are"
        return f"run {self.run}: {lines} missing between seq {self.after} and {self.before}"


@dataclass(slots=True)
class MissingLines:
    """Lines that are missing in a record, as far as the record shows it."""

    invalid: list[str] = field(default_factory=list)  # "file:line number" of each invalid line
    gaps: list[Gap] = field(default_factory=list)
    lost: int = 0  # lines that a process could not write
    deleted: list[Gap] = field(default_factory=list)  # at the beginning of a run: old files may have been deleted

    def __bool__(self) -> bool:
        """Return whether lines are missing, apart from deleted files."""
        return bool(self.invalid or self.gaps or self.lost)

    def sentences(self) -> list[str]:
        """Return one sentence for each problem."""
        sentences = [f"{place}: invalid line (truncated or changed)" for place in self.invalid]
        sentences += map(str, self.gaps)
        sentences += [f"run {gap.run} begins at seq {gap.before}: earlier files are missing" for gap in self.deleted]
        if self.lost:
            sentences.append(f"{self.lost} line{'s' * (self.lost != 1)} could not be written and are lost")
        return sentences


class AuditRecord:
    """The files of one audit record, written by any number of processes and hosts."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._missing: MissingLines | None = None
        self.unmatched_feedback = 0  # lines of feedback on no decision of the record; set by `join_decisions`

    @classmethod
    def open(cls, *paths: Path) -> "AuditRecord":
        """Return the record in the given folders and files.

        Raises:
            AuditRecordError: a path does not exist, or a folder contains no record.
        """
        files: dict[Path, Path] = {}
        for path in paths:
            matches = [path]
            if path.is_dir():
                matches = sorted(path.glob("*.jsonl"))
                if not matches:
                    raise AuditRecordError(f"{path}: no *.jsonl file here; name the folder of router.audit.path")
            elif not path.is_file():
                raise AuditRecordError(f"{path}: no such folder or file; name the folder of router.audit.path")
            files.update((file.resolve(), file) for file in matches)
        return cls(list(files.values()))

    def lines(self) -> Iterator[AuditLine]:
        """Yield all lines in order of time, upgraded to the current schema version.

        Keeps one line of each file in memory.

        Raises:
            AuditRecordError: a line has a newer schema version.
        """
        files = [_File(path) for path in self.files]
        yield from heapq.merge(*(file.lines() for file in files), key=_order)
        self._missing = _missing(files)

    @property
    def missing(self) -> MissingLines:
        """The lines that were missing when the record was last read completely. Reads the record if necessary."""
        if self._missing is None:
            for _ in self.lines():
                pass
        assert self._missing is not None
        return self._missing


@dataclass(slots=True)
class _File:
    path: Path
    invalid: list[str] = field(default_factory=list)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)  # run -> its first and last `seq` in this file
    gaps: list[Gap] = field(default_factory=list)
    lost: int = 0
    number: int = 0

    def lines(self) -> Iterator[AuditLine]:
        with self.path.open("rb") as file:
            first, offset = self._next(file), file.tell()
        if first is None:
            return
        yield first
        # The file is closed until its first line is reached, so only files that overlap in time are open together.
        with self.path.open("rb") as file:
            file.seek(offset)
            while (line := self._next(file)) is not None:
                yield line

    def _next(self, file: BinaryIO) -> AuditLine | None:
        while raw := file.readline():
            self.number += 1
            line = _parse(raw)
            if line is None:
                self.invalid.append(f"{self.path}:{self.number}")
                continue
            if line.get("schema", 1) > SCHEMA_VERSION:
                raise AuditRecordError(
                    f"{self.path}:{self.number}: schema version {line['schema']} is newer than {SCHEMA_VERSION}, the "
                    "newest that this version of vllm-lora-router reads; install a newer version"
                )
            if line.get("schema", 1) < SCHEMA_VERSION:
                line = upgrade(line)
            self._note(line)
            return line
        return None

    def _note(self, line: AuditLine) -> None:
        run, seq = line["run"], line["seq"]
        first, last = self.spans.get(run, (seq, seq - 1))
        if seq > last + 1:
            self.gaps.append(Gap(run, last, seq))
        self.spans[run] = (min(first, seq), max(last, seq))
        if line["type"] == "lost":
            self.lost += line["lines"]


def _parse(raw: bytes) -> AuditLine | None:
    try:
        line = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError):
        try:
            line = json.loads(raw)  # unlike msgspec, it accepts an unpaired surrogate
        except ValueError:
            return None
    if not isinstance(line, dict):
        return None
    has_texts = all(isinstance(line.get(key), str) for key in ("type", "at", "run"))
    has_numbers = isinstance(line.get("seq"), int) and isinstance(line.get("schema", 1), int)
    is_newer = has_numbers and line.get("schema", 1) > SCHEMA_VERSION  # its keys are unknown
    if not has_texts or not has_numbers:
        return None
    return line if is_newer or line.keys() >= _REQUIRED_KEYS.get(line["type"], set()) else None


def _order(line: AuditLine) -> tuple[str, str, int]:
    return line["at"], line["run"], line["seq"]


def _missing(files: Iterable[_File]) -> MissingLines:
    missing = MissingLines()
    spans: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        missing.invalid += file.invalid
        missing.gaps += file.gaps
        missing.lost += file.lost
        for run, span in file.spans.items():
            spans.setdefault(run, []).append(span)
    # A process numbers its lines from 1, and continues in its next file.
    for run, run_spans in spans.items():
        reached = 0
        for first, last in sorted(run_spans):
            if first > reached + 1:
                (missing.gaps if reached else missing.deleted).append(Gap(run, reached, first))
            reached = max(reached, last)
    missing.gaps.sort(key=lambda gap: (gap.run, gap.after))
    return missing
