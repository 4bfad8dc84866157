"""Plot a comparison with naming the adapter without a router."""

from collections.abc import Sequence
from pathlib import Path

from vllm_lora_router.tools.bench.serve.tables import Cell


def plot(cells: Sequence[Cell], file: Path, title: str) -> None:
    """Plot differences in time to first token and ratios of throughput with their intervals.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [(cell, row) for cell in cells for row in cell.rows if row.first_more is not None]
    setups = list(dict.fromkeys(row.setup for _, row in lines))
    figure, (latency, rate) = pyplot.subplots(
        1, 2, figsize=(13, 2 + 0.28 * len(lines)), layout="constrained", sharey=True
    )
    labels = []
    for position, (cell, row) in enumerate(lines):
        labels.append(f"{cell.method}, {cell.prompt_tokens or 'short'}, {cell.mix}, {row.load}: {row.setup}")
        colour = f"C{setups.index(row.setup)}"
        for axes, estimate in ((latency, row.first_more), (rate, row.rate_ratio)):
            if estimate is not None:
                error = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
                axes.errorbar([estimate.value], [position], xerr=error, fmt="o", color=colour, capsize=3)
    latency.set_yticks(range(len(labels)), labels, fontsize=7)
    latency.invert_yaxis()
    latency.set(xlabel="time to first token, difference from no router, ms", xscale="symlog")
    rate.set(xlabel="requests per second, relative to no router")
    latency.axvline(0, color="grey", lw=0.8)
    rate.axvline(1, color="grey", lw=0.8)
    for axes in (latency, rate):
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
