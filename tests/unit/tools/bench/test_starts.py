"""Combination of several server starts."""

from io import StringIO

import pytest
from rich.console import Console

from vllm_lora_router.tools.bench.serve.compare import Row, Spread
from vllm_lora_router.tools.bench.serve.starts import combine_starts
from vllm_lora_router.tools.bench.serve.tables import Cell, problems, tables
from vllm_lora_router.tools.statistics import Estimate

pytest.importorskip("scipy")


def cell(more: float, *, rate: float = 30.0, failed: int = 0) -> Cell:
    def row(load: str, setup: str, more: float | None) -> Row:
        figure = None if more is None else Estimate(more, more - 0.01, more + 0.01, 6)
        first = Spread(40.0 + (more or 0), 50.0, 60.0)
        errors = ("503: no room",) if failed and more is not None else ()
        lost = failed if more is not None else 0
        return Row(
            load,
            setup,
            10,
            lost,
            0,
            first,
            first,
            rate,
            {"server": rate},
            5,
            figure,
            figure,
            figure,
            None,
            None,
            errors,
        )

    return Cell("keyword", 0, "evenly", [row("alone", "named", None), row("alone", "MoM", more)])


def test_interval_of_a_difference_is_over_starts_not_pairs() -> None:
    (combined,) = combine_starts([[cell(0.0)], [cell(1.0, rate=32.0)], [cell(0.5, rate=34.0)]])
    named, routed = combined.rows
    assert named.first_more is None and (named.succeeded, named.rounds) == (30, 15)
    assert routed.first_more is not None and routed.first_more.value == pytest.approx(0.5)
    assert routed.first_more.high - routed.first_more.low == pytest.approx(2 * 4.302653 * 0.5 / 3**0.5, rel=1e-4)
    assert routed.first.p50 == pytest.approx(40.5) and routed.per_second == 32.0
    assert routed.cpu_ms == {"server": 32.0}


def test_combined_cell_reports_starts_and_failures() -> None:
    (combined,) = combine_starts([[cell(0.2)], [cell(0.3, failed=4)]])
    out = StringIO()
    for table in tables(combined):
        Console(file=out, width=200).print(table)
    assert "means of 2 starts' medians" in out.getvalue()
    assert ["4 of 24 failed: 503: no room" in message for message in problems(combined)] == [True]
    assert "2 starts" in str(combined)
