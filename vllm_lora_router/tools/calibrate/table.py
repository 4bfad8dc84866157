"""Thresholds as they are and as they were chosen, with what each answers."""

from rich.table import Table
from rich.text import Text

from vllm_lora_router.config.yaml_document import dotted
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.audit.filters import NONE
from vllm_lora_router.tools.calibrate.choose import Answered, Chosen, answered
from vllm_lora_router.tools.calibrate.scored import Scored


def table(scored: Scored, chosen: Chosen) -> Table:
    """A row a threshold, and one for all together."""
    found = Table("threshold", title=f"{scored.method}, {len(scored.values):,} prompts", title_justify="left")
    for column in ("old", "answers", "right", "new", "answers", "right", "95 %"):
        found.add_column(column, justify="right")
    old = [knob.threshold for knob in scored.knobs]
    (before, all_before), (after, all_after) = answered(scored, old), answered(scored, chosen.thresholds)
    for place, knob in enumerate(scored.knobs):
        new = chosen.thresholds[place]
        found.add_row(
            Text(printable(_named(scored, place))),
            *_cells(knob.threshold, before[place]),
            *_cells(new, after[place]),
            _interval(after[place]),
        )
    if len(scored.knobs) > 1:
        found.add_row("all", *_cells(None, all_before), *_cells(None, all_after), _interval(all_after))
    return found


def _named(scored: Scored, place: int) -> str:
    knob = scored.knobs[place]
    category = scored.categories[knob.columns[0]]
    return f"{dotted(knob.path)} ({category})" if knob.path[0] == "embedding_rules" else dotted(knob.path)


def _cells(threshold: float | None, found: Answered) -> tuple[str, str, str]:
    share = f"{found.prompts / found.of:.1%} ({found.prompts:,})" if found.of else NONE
    right = NONE if found.precision is None else f"{found.precision.value:.2%}"
    return ("" if threshold is None else f"{threshold:.4g}", share, right)


def _interval(found: Answered) -> str:
    precision = found.precision
    return NONE if precision is None else f"{precision.low:.2%} to {precision.high:.2%}"
