"""The figures of `vllm-lora-router bench classify` as a picture."""

from collections.abc import Sequence
from pathlib import Path

from vllm_lora_router.tools.bench.classify import Row


def plot(rows: Sequence[Row], file: Path, title: str) -> None:
    """Latency and throughput by load, a line a model, runtime, device and length.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (latency, throughput) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    subjects = dict.fromkeys((row.model, row.runtime, row.tokens) for row in rows)
    for subject in subjects:
        own = [row for row in rows if (row.model, row.runtime, row.tokens) == subject]
        model, runtime, tokens = subject
        label = f"{Path(model).name}, {runtime}, {tokens} tokens"
        loads = [row.load.partition(" (")[0] for row in own]
        (line,) = latency.plot(loads, [row.p50 for row in own], marker="o", label=f"{label}, p50")
        latency.plot(loads, [row.p95 for row in own], marker=".", ls=":", color=line.get_color(), label=f"{label}, p95")
        throughput.plot(loads, [row.per_second for row in own], marker="o", color=line.get_color(), label=label)
    latency.set(ylabel="ms", yscale="log", title="latency")
    throughput.set(ylabel="texts a second", yscale="log", title="throughput")
    for axes in (latency, throughput):
        axes.tick_params(axis="x", rotation=30)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
