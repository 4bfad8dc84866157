"""Print a comparison as tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from vllm_lora_router.tools.bench.serve.compare import Row, Spread
from vllm_lora_router.tools.statistics import Estimate


@dataclass(frozen=True)
class Cell:
    """One combination of method, prompt length and mix with its results."""

    method: str  # the deciding method
    prompt_tokens: int  # minimum length; 0: unchanged questions
    mix: str
    rows: Sequence[Row]
    starts: int = 1  # server starts

    def __str__(self) -> str:
        length = f", {self.prompt_tokens} tokens" if self.prompt_tokens else ""
        starts = f", {self.starts} starts" if self.starts > 1 else ""
        return f"questions decided by {self.method}, adapters {self.mix}{length}{starts}"


def tables(cell: Cell) -> Iterator[Table]:
    """Yield tables of times, differences and CPU times."""
    yield _speeds(cell)
    yield _differences(cell)
    if any(row.cpu_ms for row in cell.rows):
        yield _processors(cell.rows)


def _speeds(cell: Cell) -> Table:
    title = f"{cell}; p50, p95, p99 in ms"
    table = Table("load", "setup", "first token", "end to end", "requests/s", title=title, title_justify="left")
    for row in cell.rows:
        rate = "-" if row.per_second is None else f"{row.per_second:.1f}"
        table.add_row(row.load, row.setup, _spread(row.first), _spread(row.total), rate)
    return table


def _differences(cell: Cell) -> Table:
    """Return a table of differences; the last columns compare on the same server, whose processes are the same."""
    kind = "medians" if cell.starts == 1 else f"means of {cell.starts} starts' medians"
    title = f"difference in ms, and ratios; {kind} with 95 % intervals"
    table = Table("load", "setup", title=title, title_justify="left")
    for column in ("first token", "end to end", "requests/s", "first token, same server", "requests/s, same server"):
        table.add_column(column)
    for row in cell.rows:
        if row.first_more is not None:
            table.add_row(
                row.load,
                row.setup,
                _interval(row.first_more, "+.2f"),
                _interval(row.total_more, "+.2f"),
                _interval(row.rate_ratio, ".3f"),
                _interval(row.first_more_here, "+.2f"),
                _interval(row.rate_ratio_here, ".3f"),
            )
    return table


def memory(peaks: Mapping[str, float]) -> Table:
    """Return a table of the peak memory of each process."""
    table = Table("process", "peak memory, MiB", title_justify="left")
    for name, mib in peaks.items():
        table.add_row(name, f"{mib:,.0f}")
    return table


def problems(cell: Cell) -> Iterator[str]:
    """Yield a message for each setup with failed or unexpected responses."""
    for row in cell.rows:
        total = row.succeeded + row.failed
        if row.failed:
            yield f"{cell}; {row.load}, {row.setup}: {row.failed} of {total} failed: {'; '.join(row.errors)}"
        if row.other_adapter:
            yield f"{cell}; {row.load}, {row.setup}: {row.other_adapter} of {total} were answered by another adapter"


def _processors(rows: Sequence[Row]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row.cpu_ms))
    table = Table("load", "setup", *names, title="CPU time per request, in ms", title_justify="left")
    for row in rows:
        if row.cpu_ms:
            table.add_row(
                row.load, row.setup, *(f"{row.cpu_ms[name]:.2f}" if name in row.cpu_ms else "" for name in names)
            )
    return table


def _spread(spread: Spread) -> str:
    return f"{spread.p50:.1f} {spread.p95:.1f} {spread.p99:.1f}"


def _interval(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
