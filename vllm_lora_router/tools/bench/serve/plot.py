"""A comparison as a picture: each way beside naming the adapter without a router."""

from collections.abc import Sequence
from pathlib import Path

from vllm_lora_router.tools.bench.serve.tables import Cell


def plot(cells: Sequence[Cell], file: Path, title: str) -> None:
    """Differences in time to first token, and ratios of throughput, each with its interval.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [(cell, row) for cell in cells for row in cell.rows if row.first_more is not None]
    ways = list(dict.fromkeys(row.way for _, row in lines))
    figure, (later, slower) = pyplot.subplots(
        1, 2, figsize=(13, 2 + 0.28 * len(lines)), layout="constrained", sharey=True
    )
    labels = []
    for place, (cell, row) in enumerate(lines):
        labels.append(f"{cell.method}, {cell.prompt_tokens or 'short'}, {cell.mix}, {row.load}: {row.way}")
        colour = f"C{ways.index(row.way)}"
        for axes, found in ((later, row.first_more), (slower, row.rate_ratio)):
            if found is not None:
                error = [[found.value - found.low], [found.high - found.value]]
                axes.errorbar([found.value], [place], xerr=error, fmt="o", color=colour, capsize=3)
    later.set_yticks(range(len(labels)), labels, fontsize=7)
    later.invert_yaxis()
    later.set(xlabel="time to first token, more than without a router, ms", xscale="symlog")
    slower.set(xlabel="requests a second, of those without a router")
    later.axvline(0, color="grey", lw=0.8)
    slower.axvline(1, color="grey", lw=0.8)
    for axes in (later, slower):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
