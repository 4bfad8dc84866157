"""A proof as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.audit.filters import NONE
from vllm_lora_router.tools.prove.compare import Difference
from vllm_lora_router.tools.prove.matrix import Proof

COLUMNS = 8  # of the matrix: more models do not fit a terminal


def columns(proof: Proof) -> list[str]:
    """The models that have a column: the base, what serves, what is best, and others while there is room."""
    models, rows = proof.assigned.models, proof.rows
    best = (max(row.means, key=row.means.__getitem__) for row in rows)
    first = dict.fromkeys([models[0], *(row.served_by for row in rows), *best, *models])
    wanted = [model for model in first if model in models][:COLUMNS]
    return [model for model in models if model in wanted]


def matrix(proof: Proof, models: Sequence[str]) -> Table:
    """Mean log-likelihoods of categories under models; what serves a category is marked, the best is bold."""
    title = "Mean log-likelihood of an answer's tokens, in nats; * serves"
    table = Table("category", "pairs", title=title, title_justify="left")
    for model in models:
        table.add_column(Text(printable(model)), justify="right")
    for row in proof.rows:
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


def differences(proof: Proof) -> Table:
    """What each category's adapter gains over the base, and what the best other adapter would gain over what serves."""
    columns = ("category", "gains over the base, 95 %", "best other adapter", "would gain, 95 %", "p (Holm)")
    table = Table(*columns, title="Differences, in nats a token", title_justify="left")
    for row in proof.rows:
        other = max(row.to_served, key=lambda model: row.to_served[model].value, default=None)
        gain = None if other is None else row.to_served[other]
        p = None if gain is None else gain.p_holm
        table.add_row(
            Text(printable(row.category)),
            _cell(row.to_base.get(row.served_by)),
            Text(printable(other or NONE)),
            _cell(gain),
            NONE if p is None else "below 0.0001" if p < 0.0001 else f"{p:.4f}",
        )
    return table


def _cell(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    if difference.low is None or difference.high is None:
        return f"{difference.value:+.3f}"
    return f"{difference.value:+.3f}, {difference.low:+.3f} to {difference.high:+.3f}"
