"""What several starts of the same servers say together: two processes of one server are not equally fast."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from vllm_lora_router.tools.bench.estimates import Estimate, mean
from vllm_lora_router.tools.bench.serve.compare import Row, Spread
from vllm_lora_router.tools.bench.serve.tables import Cell


def together(starts: Sequence[Sequence[Cell]]) -> list[Cell]:
    """The cells of at least two starts as one: counts summed, percentiles and costs by the mean.

    What a way takes more is the mean of what the starts say, and its interval is theirs: more pairs of one start would
    only say more exactly how that start went.
    """
    cells: dict[tuple[str, int, str], list[Cell]] = defaultdict(list)
    for start in starts:
        for cell in start:
            cells[cell.method, cell.prompt_tokens, cell.mix].append(cell)
    return [Cell(*key, [_row(rows) for rows in _rows(own)], starts=len(own)) for key, own in cells.items()]


def _rows(cells: Sequence[Cell]) -> Iterable[list[Row]]:
    # A load that comes by itself has another rate each time: it is told by its place. It stands last, and is missing
    # where nothing was answered.
    return (list(rows) for rows in zip(*(cell.rows for cell in cells), strict=False))


def _row(rows: Sequence[Row]) -> Row:
    rates = [row.per_second for row in rows if row.per_second is not None]
    processes = dict.fromkeys(name for row in rows for name in row.cpu_ms)
    return Row(
        load=rows[0].load,
        way=rows[0].way,
        answered=sum(row.answered for row in rows),
        failed=sum(row.failed for row in rows),
        elsewhere=sum(row.elsewhere for row in rows),
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
        *(round(statistics.fmean(getattr(one, name) for one in spreads), 3) for name in ("p50", "p95", "p99"))
    )


def _mean(rows: Sequence[Row], of: Callable[[Row], Estimate | None]) -> Estimate | None:
    found = [estimate.value for row in rows if (estimate := of(row)) is not None]
    return mean(found) if len(found) > 1 else None
