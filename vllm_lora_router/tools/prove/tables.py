"""Terminal tables of a matrix."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.filters import NO_VALUE
from vllm_lora_router.tools.prove.compare import Gain
from vllm_lora_router.tools.prove.matrix import Matrix

MAX_MODELS = 8  # columns that fit a terminal


def shown_models(matrix: Matrix) -> list[str]:
    """Return the models to show: the base, assigned models, best models, and others if there is room."""
    models, rows = matrix.assignments.models, matrix.rows
    best = (max(row.means, key=row.means.__getitem__) for row in rows)
    by_priority = dict.fromkeys([models[0], *(row.served_by for row in rows), *best, *models])
    shown = [model for model in by_priority if model in models][:MAX_MODELS]
    return [model for model in models if model in shown]


def likelihood_table(matrix: Matrix, models: Sequence[str]) -> Table:
    """Show mean log-likelihoods; the model that serves a category is marked with *, and the best model is bold."""
    title = "Mean log-likelihood of an answer's tokens, in nats; * serves"
    table = Table("category", "pairs", title=title, title_justify="left")
    for model in models:
        table.add_column(Text(printable(model)), justify="right")
    for row in matrix.rows:
        best = max(row.means.values())
        cells = [
            Text(
                f"{row.means[model]:.3f}{' *' if model == row.served_by else '  '}",
                style="bold" if row.means[model] == best else "",
            )
            for model in models
        ]
        table.add_row(Text(printable(row.category)), f"{row.pairs:,}", *cells)
    return table


def gain_table(matrix: Matrix) -> Table:
    """Show each assigned adapter's gain over the base, and the best other adapter's gain over the assigned model."""
    columns = ("category", "gain over the base, 95 %", "best other adapter", "its gain, 95 %", "p (Holm)")
    table = Table(*columns, title="Gains, in nats per token", title_justify="left")
    for row in matrix.rows:
        other = max(row.to_served, key=lambda model: row.to_served[model].value, default=None)
        gain = None if other is None else row.to_served[other]
        p = None if gain is None else gain.p_holm
        table.add_row(
            Text(printable(row.category)),
            _cell(row.to_base.get(row.served_by)),
            Text(printable(other or NO_VALUE)),
            _cell(gain),
            NO_VALUE if p is None else "below 0.0001" if p < 0.0001 else f"{p:.4f}",
        )
    return table


def _cell(gain: Gain | None) -> str:
    if gain is None:
        return NO_VALUE
    if gain.interval is None:
        return f"{gain.value:+.3f}"
    return f"{gain.value:+.3f}, {gain.interval.low:+.3f} to {gain.interval.high:+.3f}"
