"""What adapters cost, as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from vllm_lora_router.tools.bench.adapters.crowding import Crowd
from vllm_lora_router.tools.bench.adapters.switching import Switching
from vllm_lora_router.tools.bench.estimates import Estimate

PLACES = {
    "slot": "in a slot",
    "memory": "in host memory",
    "page cache": "on disk, in the page cache",
    "disk": "on disk",
}


def switching_table(found: Switching) -> Table:
    """Time to first token by where the adapter is, and how long another stream paused meanwhile."""
    columns = ("the adapter is", "first token", "more than in a slot", "another stream's pause", "longest")
    table = Table(*columns, title=f"ms, medians of {found.rounds} rounds with 95 % intervals", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for state, cost in found.costs.items():
        more = "" if state == "slot" else _cell(cost.more)
        table.add_row(PLACES[state], _cell(cost.first), more, _cell(cost.pause), f"{cost.longest_pause:.1f}")
    said = [f"The other stream alone pauses {_cell(found.usual_gap)} ms."]
    if found.kept_share >= 0.01:
        said.append(f"Of the files on disk up to {found.kept_share:.0%} could not be dropped from the page cache.")
    if found.astray:
        said.append(f"{found.astray} more rounds do not count: an adapter was not where it should be.")
    table.caption = " ".join(said)
    table.caption_justify = "left"
    return table


def crowding_table(found: Sequence[Crowd]) -> Table:
    """Time to first token and throughput by how many adapters are asked for."""
    columns = ("adapters", "asked for", "first token p50", "p95", "answers/s", "answers", "errors")
    table = Table(*columns, title="ms, medians of the rounds, least to greatest", title_justify="left")
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for crowd in found:
        figures = (_cell(figure) for figure in (crowd.first_p50, crowd.first_p95, crowd.per_second))
        table.add_row(str(crowd.adapters), str(crowd.mix), *figures, f"{crowd.answers:,}", str(crowd.errors))
    return table


def _cell(figure: Estimate) -> str:
    return f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"
