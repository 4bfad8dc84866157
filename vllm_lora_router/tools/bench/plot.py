"""Plot the figures of `vllm-lora-router bench classify`."""

from collections.abc import Sequence
from pathlib import Path

from vllm_lora_router.tools.bench.classify import Row


def plot(rows: Sequence[Row], file: Path, title: str) -> None:
    """Plot latency and throughput by load, one line for each model, runtime and length.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (latency, throughput) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    setups = dict.fromkeys((row.model, row.runtime, row.tokens) for row in rows)
    for setup in setups:
        lines = [row for row in rows if (row.model, row.runtime, row.tokens) == setup]
        model, runtime, tokens = setup
        label = f"{Path(model).name}, {runtime}, {tokens} tokens"
        loads = [row.load.partition(" (")[0] for row in lines]
        (line,) = latency.plot(loads, [row.p50 for row in lines], marker="o", label=f"{label}, p50")
        latency.plot(
            loads, [row.p95 for row in lines], marker=".", ls=":", color=line.get_color(), label=f"{label}, p95"
        )
        throughput.plot(loads, [row.per_second for row in lines], marker="o", color=line.get_color(), label=label)
    latency.set(ylabel="ms", yscale="log", title="latency")
    throughput.set(ylabel="texts per second", yscale="log", title="throughput")
    for axes in (latency, throughput):
        axes.tick_params(axis="x", rotation=30)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
