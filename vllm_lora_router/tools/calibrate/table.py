"""Terminal table of thresholds before and after the choice, with the prompts that they accept."""

from rich.table import Table
from rich.text import Text

from vllm_lora_router.config.yaml_document import format_key_path
from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.filters import NO_VALUE
from vllm_lora_router.tools.calibrate.choose import Accepted, ThresholdChoice, count_accepted
from vllm_lora_router.tools.calibrate.scores import MethodScores


def threshold_table(scores: MethodScores, choice: ThresholdChoice) -> Table:
    """Return a table with a row for each threshold, and a row for all thresholds together."""
    table = Table("threshold", title=f"{scores.method}, {len(scores.values):,} prompts", title_justify="left")
    for column in ("old", "accepted", "precision", "new", "accepted", "precision", "95 %"):
        table.add_column(column, justify="right")
    old_values = [threshold.value for threshold in scores.thresholds]
    (before, all_before), (after, all_after) = count_accepted(scores, old_values), count_accepted(scores, choice.values)
    for index, threshold in enumerate(scores.thresholds):
        table.add_row(
            Text(printable(_label(scores, index))),
            *_cells(threshold.value, before[index]),
            *_cells(choice.values[index], after[index]),
            _interval(after[index]),
        )
    if len(scores.thresholds) > 1:
        table.add_row("all", *_cells(None, all_before), *_cells(None, all_after), _interval(all_after))
    return table


def _label(scores: MethodScores, index: int) -> str:
    threshold = scores.thresholds[index]
    path = format_key_path(threshold.path)
    return f"{path} ({scores.categories[threshold.columns[0]]})" if threshold.path[0] == "embedding_rules" else path


def _cells(value: float | None, accepted: Accepted) -> tuple[str, str, str]:
    share = f"{accepted.prompts / accepted.total:.1%} ({accepted.prompts:,})" if accepted.total else NO_VALUE
    precision = NO_VALUE if accepted.precision is None else f"{accepted.precision.value:.2%}"
    return ("" if value is None else f"{value:.4g}", share, precision)


def _interval(accepted: Accepted) -> str:
    precision = accepted.precision
    return NO_VALUE if precision is None else f"{precision.low:.2%} to {precision.high:.2%}"
