"""Plots of an evaluation: the confusion matrix, the reliability diagram, and coverage against precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_lora_router.tools.audit.filters import NO_VALUE
from vllm_lora_router.tools.evaluate.calibration_error import Reliability
from vllm_lora_router.tools.evaluate.confusion import Confusion
from vllm_lora_router.tools.evaluate.evaluate import Evaluation
from vllm_lora_router.tools.evaluate.outcome import Outcome

MAX_NUMBERED = 30  # a larger confusion matrix has no room for numbers


@dataclass(frozen=True, slots=True)
class Sweep:
    """Coverage and precision of one method for every threshold, highest threshold first."""

    method: str
    thresholds: np.ndarray  # every score that occurs, float [points]
    coverage: np.ndarray  # share of the method's in-scope prompts that reach the threshold, float [points]
    precision: np.ndarray  # share of correct guesses among prompts that reach the threshold, float [points]


def plot(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write confusion.png, and, if the scores allow it, reliability.png and thresholds.png.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The folder is not writable.
    """
    import matplotlib

    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{evaluation.target}, {len(evaluation.outcomes):,} prompts"
    files = [_save(_plot_confusion(evaluation.metrics.confusion, title), folder / "confusion.png")]
    if evaluation.metrics.reliability is not None:
        figure = _plot_reliability(evaluation.metrics.reliability, title)
        files.append(_save(figure, folder / "reliability.png"))
    if sweeps := sweep_thresholds(evaluation.outcomes):
        files.append(_save(_plot_thresholds(sweeps, title), folder / "thresholds.png"))
    return files


def sweep_thresholds(outcomes: Sequence[Outcome]) -> list[Sweep]:
    """Return a sweep for each method whose guesses have scores; keyword rules have no threshold."""
    scored = [outcome for outcome in outcomes if outcome.scale in ("similarity", "probability")]
    methods = dict.fromkeys(outcome.guess_method for outcome in scored if outcome.guess_method is not None)
    return [_sweep(method, [outcome for outcome in scored if outcome.guess_method == method]) for method in methods]


def _sweep(method: str, outcomes: Sequence[Outcome]) -> Sweep:
    scores = np.array([outcome.score for outcome in outcomes])
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    in_scope = np.cumsum([outcomes[place].in_scope for place in order])
    correct = np.cumsum([outcomes[place].guess_correct for place in order])
    # Prompts with equal scores reach a threshold together.
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True])
    return Sweep(method, scores[last], in_scope[last] / max(int(in_scope[-1]), 1), correct[last] / (last + 1))


def _plot_confusion(confusion: Confusion, title: str) -> Any:
    from matplotlib import pyplot

    names = [NO_VALUE if name is None else name for name in confusion.names]
    size = min(4 + 0.4 * len(names), 30)
    figure, axes = pyplot.subplots(figsize=(size + 1, size), layout="constrained")
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion.counts]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the label's prompts")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"chosen ({NO_VALUE}: none)", ylabel=f"label ({NO_VALUE}: out of scope)", title=title)
    for row, counts in enumerate(confusion.counts if len(names) <= MAX_NUMBERED else ()):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=colour)
    return figure


def _plot_reliability(reliability: Reliability, title: str) -> Any:
    from matplotlib import pyplot

    figure, (accuracy, counts) = pyplot.subplots(
        2, 1, figsize=(6, 7), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    bins = reliability.bins
    lows, widths = [one_bin.low for one_bin in bins], [one_bin.high - one_bin.low for one_bin in bins]
    accuracies = [one_bin.accuracy for one_bin in bins]
    accuracy.plot([0, 1], [0, 1], color="grey", ls=":", label="perfect calibration")
    accuracy.bar(lows, accuracies, widths, align="edge", alpha=0.5, edgecolor="black")
    accuracy.plot([one_bin.probability for one_bin in bins], accuracies, "o", label="measured")
    error = reliability.error
    accuracy.set(
        ylabel="accuracy", title=f"{title}\ncalibration error {error.value:.4f} ({error.low:.4f} to {error.high:.4f})"
    )
    accuracy.legend()
    counts.bar(lows, [one_bin.prompts for one_bin in bins], widths, align="edge", alpha=0.5, edgecolor="black")
    counts.set(xlabel="probability of the best guess", ylabel="prompts", yscale="log", xlim=(0, 1))
    return figure


def _plot_thresholds(sweeps: Sequence[Sweep], title: str) -> Any:
    from matplotlib import pyplot

    figure, (by_coverage, by_threshold) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for sweep in sweeps:
        (line,) = by_coverage.plot(sweep.coverage, sweep.precision, label=sweep.method)
        colour = line.get_color()
        by_threshold.plot(sweep.thresholds, sweep.precision, color=colour, label=f"{sweep.method}: precision")
        by_threshold.plot(sweep.thresholds, sweep.coverage, color=colour, ls=":", label=f"{sweep.method}: coverage")
    by_coverage.set(xlabel="coverage: share of in-scope prompts that reach the threshold", ylabel="precision")
    by_threshold.set(xlabel="threshold of all categories")
    for axes in (by_coverage, by_threshold):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def _save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
