"""A comparison as tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from vllm_lora_router.tools.bench.estimates import Estimate
from vllm_lora_router.tools.bench.serve.compare import Row, Spread


@dataclass(frozen=True)
class Cell:
    """What was asked, and how each way did under each load."""

    method: str  # that decides the questions
    prompt_tokens: int  # at least; 0: as long as the questions are
    mix: str
    rows: Sequence[Row]
    starts: int = 1  # of the servers

    def __str__(self) -> str:
        length = f", {self.prompt_tokens} tokens" if self.prompt_tokens else ""
        starts = f", {self.starts} starts" if self.starts > 1 else ""
        return f"questions decided by {self.method}, adapters {self.mix}{length}{starts}"


def tables(cell: Cell) -> Iterator[Table]:
    """How fast, how much more than others, and what each process took for it."""
    yield _speeds(cell)
    yield _differences(cell)
    if any(row.cpu_ms for row in cell.rows):
        yield _processors(cell.rows)


def _speeds(cell: Cell) -> Table:
    title = f"{cell}; p50, p95, p99 in ms"
    table = Table("load", "way", "first token", "end to end", "requests/s", title=title, title_justify="left")
    for row in cell.rows:
        rate = "-" if row.per_second is None else f"{row.per_second:.1f}"
        table.add_row(row.load, row.way, _spread(row.first), _spread(row.total), rate)
    return table


def _differences(cell: Cell) -> Table:
    """Two processes of the same server are not equally fast: the last columns are of one and the same."""
    what = "medians" if cell.starts == 1 else f"means of {cell.starts} starts' medians"
    title = f"more, in ms, and ratios; {what} with 95 % intervals"
    table = Table("load", "way", title=title, title_justify="left")
    for column in ("first token", "end to end", "requests/s", "first token, named there", "requests/s, named there"):
        table.add_column(column)
    for row in cell.rows:
        if row.first_more is not None:
            table.add_row(
                row.load,
                row.way,
                _interval(row.first_more, "+.2f"),
                _interval(row.total_more, "+.2f"),
                _interval(row.rate_ratio, ".3f"),
                _interval(row.first_more_here, "+.2f"),
                _interval(row.rate_ratio_here, ".3f"),
            )
    return table


def memory(peaks: Mapping[str, float]) -> Table:
    """The most memory of each process."""
    table = Table("process", "memory at most, MiB", title_justify="left")
    for name, mib in peaks.items():
        table.add_row(name, f"{mib:,.0f}")
    return table


def problems(cell: Cell) -> Iterator[str]:
    """What was not answered as it should have been."""
    for row in cell.rows:
        asked = row.answered + row.failed
        if row.failed:
            yield f"{cell}; {row.load}, {row.way}: {row.failed} of {asked} failed: {'; '.join(row.errors)}"
        if row.elsewhere:
            yield f"{cell}; {row.load}, {row.way}: {row.elsewhere} of {asked} were answered by another adapter"


def _processors(rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row.cpu_ms))
    table = Table("load", "way", *names, title="processor time a request, in ms", title_justify="left")
    for row in rows:
        if row.cpu_ms:
            table.add_row(
                row.load, row.way, *(f"{row.cpu_ms[name]:.2f}" if name in row.cpu_ms else "" for name in names)
            )
    return table


def _spread(spread: Spread) -> str:
    return f"{spread.p50:.1f} {spread.p95:.1f} {spread.p99:.1f}"


def _interval(found: Estimate | None, form: str) -> str:
    return "" if found is None else f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"
