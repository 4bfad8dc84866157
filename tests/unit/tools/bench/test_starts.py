"""Several starts of the same servers, taken together."""

from io import StringIO

import pytest
from rich.console import Console

from vllm_lora_router.tools.bench.estimates import Estimate
from vllm_lora_router.tools.bench.serve.compare import Row, Spread
from vllm_lora_router.tools.bench.serve.starts import together
from vllm_lora_router.tools.bench.serve.tables import Cell, problems, tables

pytest.importorskip("scipy")


def cell(more: float, *, rate: float = 30.0, failed: int = 0) -> Cell:
    def row(load: str, way: str, more: float | None) -> Row:
        figure = None if more is None else Estimate(more, more - 0.01, more + 0.01)
        first = Spread(40.0 + (more or 0), 50.0, 60.0)
        errors = ("503: no room",) if failed and more is not None else ()
        lost = failed if more is not None else 0
        return Row(
            load, way, 10, lost, 0, first, first, rate, {"server": rate}, 5, figure, figure, figure, None, None, errors
        )

    return Cell("keyword", 0, "evenly", [row("alone", "named", None), row("alone", "MoM", more)])


def test_what_a_way_takes_more_varies_as_the_starts_do_and_not_as_their_pairs() -> None:
    (found,) = together([[cell(0.0)], [cell(1.0, rate=32.0)], [cell(0.5, rate=34.0)]])
    named, routed = found.rows
    assert named.first_more is None and (named.answered, named.rounds) == (30, 15)
    assert routed.first_more is not None and routed.first_more.value == pytest.approx(0.5)
    assert routed.first_more.high - routed.first_more.low == pytest.approx(2 * 4.302653 * 0.5 / 3**0.5, rel=1e-4)
    assert routed.first.p50 == pytest.approx(40.5) and routed.per_second == 32.0
    assert routed.cpu_ms == {"server": 32.0}


def test_it_is_said_of_how_many_starts_and_what_failed_in_any_of_them() -> None:
    (found,) = together([[cell(0.2)], [cell(0.3, failed=4)]])
    out = StringIO()
    for table in tables(found):
        Console(file=out, width=200).print(table)
    assert "means of 2 starts' medians" in out.getvalue()
    assert ["4 of 24 failed: 503: no room" in said for said in problems(found)] == [True]
    assert "2 starts" in str(found)
