"""Print the cost of adapters as tables."""

from collections.abc import Sequence

from rich.table import Table

from vllm_lora_router.tools.bench.adapters.many_adapters import ManyAdaptersResult
from vllm_lora_router.tools.bench.adapters.switching import SwitchingResult
from vllm_lora_router.tools.statistics import Estimate

STATE_LABELS = {
    "slot": "in a slot",
    "memory": "in host memory",
    "page cache": "on disk, in the page cache",
    "disk": "on disk",
}


def switching_table(result: SwitchingResult) -> Table:
    """Return a table of the time to first token by adapter location and of the pause of another stream."""
    columns = ("adapter location", "first token", "more than in a slot", "another stream's pause", "longest")
    table = Table(*columns, title=f"ms, medians of {result.rounds} rounds with 95 % intervals", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for state, cost in result.costs.items():
        more = "" if state == "slot" else _cell(cost.more)
        table.add_row(STATE_LABELS[state], _cell(cost.first), more, _cell(cost.pause), f"{cost.longest_pause:.1f}")
    notes = [f"Without other requests, the gap between chunks is {_cell(result.usual_gap)} ms."]
    if result.cached_share >= 0.01:
        notes.append(f"Of the files on disk, up to {result.cached_share:.0%} could not be dropped from the page cache.")
    if result.discarded:
        notes.append(f"{result.discarded} more rounds were discarded: an adapter was not in its expected state.")
    table.caption = " ".join(notes)
    table.caption_justify = "left"
    return table


def many_adapters_table(results: Sequence[ManyAdaptersResult]) -> Table:
    """Return a table of time to first token and throughput by the number of requested adapters."""
    columns = ("adapters", "distribution", "first token p50", "p95", "answers/s", "answers", "errors")
    table = Table(*columns, title="ms, medians of the rounds with smallest and largest value", title_justify="left")
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for result in results:
        figures = (_cell(figure) for figure in (result.first_p50, result.first_p95, result.per_second))
        table.add_row(str(result.adapters), str(result.mix), *figures, f"{result.answers:,}", str(result.errors))
    return table


def _cell(figure: Estimate) -> str:
    return f"{figure.value:.1f} [{figure.low:.1f}, {figure.high:.1f}]"
