"""Combine the results of several server starts, because two processes of the same server differ in speed."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from vllm_lora_router.tools.bench.serve.compare import Row, Spread
from vllm_lora_router.tools.bench.serve.tables import Cell
from vllm_lora_router.tools.statistics import Estimate, mean


def combine_starts(starts: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Combine the cells of at least two starts: counts are added, percentiles and costs are averaged.

    A difference is the mean over the starts with the interval over the starts: more pairs in one start would only
    describe that start more exactly.
    """
    cells: dict[tuple[str, int, str], list[Cell]] = defaultdict(list)
    for start in starts:
        for cell in start:
            cells[cell.method, cell.prompt_tokens, cell.mix].append(cell)
    return [Cell(*key, [_combined_row(rows) for rows in _rows(same)], starts=len(same)) for key, same in cells.items()]


def _rows(cells: Sequence[Cell]) -> Iterable[list[Row]]:
    # An open loop has a different rate in each start, so rows are matched by position. It comes last and is missing if
    # no request succeeded.
    return (list(rows) for rows in zip(*(cell.rows for cell in cells), strict=False))


def _combined_row(rows: Sequence[Row]) -> Row:
    rates = [row.per_second for row in rows if row.per_second is not None]
    processes = dict.fromkeys(name for row in rows for name in row.cpu_ms)
    return Row(
        load=rows[0].load,
        setup=rows[0].setup,
        succeeded=sum(row.succeeded for row in rows),
        failed=sum(row.failed for row in rows),
        other_adapter=sum(row.other_adapter for row in rows),
        first=_spread([row.first for row in rows]),
        total=_spread([row.total for row in rows]),
        per_second=statistics.fmean(rates) if rates else None,
        cpu_ms={name: round(statistics.fmean(row.cpu_ms.get(name, 0.0) for row in rows), 3) for name in processes},
        rounds=sum(row.rounds for row in rows),
        first_more=_mean(rows, lambda row: row.first_more),
        total_more=_mean(rows, lambda row: row.total_more),
        rate_ratio=_mean(rows, lambda row: row.rate_ratio),
        first_more_here=_mean(rows, lambda row: row.first_more_here),
        rate_ratio_here=_mean(rows, lambda row: row.rate_ratio_here),
        errors=tuple(dict.fromkeys(error for row in rows for error in row.errors))[:3],
    )


def _spread(spreads: Sequence[Spread]) -> Spread:
    return Spread(
        *(round(statistics.fmean(getattr(spread, name) for spread in spreads), 3) for name in ("p50", "p95", "p99"))
    )


def _mean(rows: Sequence[Row], estimate_of: Callable[[Row], Estimate | None]) -> Estimate | None:
    values = [estimate.value for row in rows if (estimate := estimate_of(row)) is not None]
    return mean(values) if len(values) > 1 else None
