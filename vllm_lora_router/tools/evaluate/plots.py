"""An evaluation as pictures: what is confused, whether probabilities are what they say, what thresholds would give."""

from pathlib import Path
from typing import Any

from vllm_lora_router.tools.audit.filters import NONE
from vllm_lora_router.tools.evaluate.calibration_error import Reliability
from vllm_lora_router.tools.evaluate.confusion import Confusion
from vllm_lora_router.tools.evaluate.evaluate import Evaluation
from vllm_lora_router.tools.evaluate.sweep import Sweep, sweeps

WRITTEN_IN = 30  # a larger matrix has no room for numbers


def plot(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes confusion.png, and reliability.png and thresholds.png where there are probabilities and scores.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the folder cannot be written to.
    """
    import matplotlib

    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{evaluation.subject}, {len(evaluation.answers):,} prompts"
    files = [_save(_confusion(evaluation.figures.confusion, title), folder / "confusion.png")]
    if evaluation.figures.reliability is not None:
        files.append(_save(_reliability(evaluation.figures.reliability, title), folder / "reliability.png"))
    if swept := sweeps(evaluation.answers):
        files.append(_save(_thresholds(swept, title), folder / "thresholds.png"))
    return files


def _confusion(confusion: Confusion, title: str) -> Any:
    from matplotlib import pyplot

    names = [NONE if name is None else name for name in confusion.names]
    size = min(4 + 0.4 * len(names), 30)
    figure, axes = pyplot.subplots(figsize=(size + 1, size), layout="constrained")
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion.counts]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the label's prompts")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="chosen (- is none)", ylabel="label (- is out of scope)", title=title)
    for row, counts in enumerate(confusion.counts if len(names) <= WRITTEN_IN else ()):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=colour)
    return figure


def _reliability(found: Reliability, title: str) -> Any:
    from matplotlib import pyplot

    figure, (right, counts) = pyplot.subplots(
        2, 1, figsize=(6, 7), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    lows, widths = [one.low for one in found.bins], [one.high - one.low for one in found.bins]
    right.plot([0, 1], [0, 1], color="grey", ls=":", label="as they say")
    right.bar(lows, [one.right for one in found.bins], widths, align="edge", alpha=0.5, edgecolor="black")
    right.plot([one.probability for one in found.bins], [one.right for one in found.bins], "o", label="as they are")
    error = found.error
    right.set(
        ylabel="right", title=f"{title}\ncalibration error {error.value:.4f} ({error.low:.4f} to {error.high:.4f})"
    )
    right.legend()
    counts.bar(lows, [one.prompts for one in found.bins], widths, align="edge", alpha=0.5, edgecolor="black")
    counts.set(xlabel="probability of the best guess", ylabel="prompts", yscale="log", xlim=(0, 1))
    return figure


def _thresholds(swept: list[Sweep], title: str) -> Any:
    from matplotlib import pyplot

    figure, (against, by) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for one in swept:
        (line,) = against.plot(one.coverage, one.precision, label=one.method)
        by.plot(one.thresholds, one.precision, color=line.get_color(), label=f"{one.method}: precision")
        by.plot(one.thresholds, one.coverage, color=line.get_color(), ls=":", label=f"{one.method}: coverage")
    against.set(xlabel="coverage: prompts in scope that reach the threshold", ylabel="precision of all that reach it")
    by.set(xlabel="one threshold for all guesses")
    for axes in (against, by):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def _save(figure: Any, file: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return file
