"""Terminal tables of an evaluation."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.filters import NO_VALUE
from vllm_lora_router.tools.evaluate.compare import MAX_EXAMPLES, Comparison
from vllm_lora_router.tools.evaluate.confusion import Confusion
from vllm_lora_router.tools.evaluate.evaluate import Evaluation
from vllm_lora_router.tools.evaluate.latency import Latency
from vllm_lora_router.tools.evaluate.regret import Regret
from vllm_lora_router.tools.evaluate.robustness import Robustness
from vllm_lora_router.tools.statistics import Estimate

Renderable = Table | Text
MAX_CONFUSED = 3  # categories shown in "confused with"


def summary_table(evaluation: Evaluation) -> Renderable:
    """Show the metrics over all prompts."""
    metrics = evaluation.metrics
    reliability, detection = metrics.reliability, metrics.detection
    versions = f"version{'s' * (len(evaluation.versions) != 1)} {', '.join(evaluation.versions)}"
    table = _table(f"{evaluation.target} ({versions})", "", "figure", "95 %", "prompts")
    rows: list[tuple[str, Estimate | None]] = [
        ("accuracy", metrics.accuracy),
        ("  in scope: correct category", metrics.in_scope),
        ("  out of scope: not accepted", metrics.out_of_scope),
        ("best guess is correct, accepted or not", metrics.best_guess),
        ("coverage: in scope and accepted", metrics.coverage),
        ("precision: correct among accepted", metrics.precision),
    ]
    for name, estimate in rows:
        _add_estimate(table, name, estimate, "{:.2%}")
    _add_estimate(table, "macro F1", metrics.macro_f1, "{:.4f}")
    _add_estimate(table, "expected calibration error", reliability and reliability.error, "{:.4f}")
    _add_estimate(table, "AUROC of out of scope", detection and detection.auroc, "{:.4f}")
    if detection is not None:
        chance = f"chance {detection.prevalence:.4f}"
        table.add_row("average precision of out of scope", f"{detection.average_precision:.4f}", chance, "")
    return table


def detail_tables(evaluation: Evaluation) -> Iterator[Renderable]:
    """Show the metrics of subsets: by category, method, length and script; robustness, latency and failures."""
    yield _category_table(evaluation)
    methods = _table("Deciding methods", "method", "prompts", "accuracy")
    for result in evaluation.metrics.methods:
        methods.add_row(result.method or "none accepted", f"{result.prompts:,}", _percent(result.accuracy))
    yield methods
    for title, slices in (("By length", evaluation.lengths), ("By script", evaluation.scripts)):
        table = _table(title, "", "prompts", "accuracy", "95 %", "best guess")
        for subset in slices:
            accuracy = subset.accuracy
            shares = (_percent(accuracy), _interval(accuracy, "{:.2%}"), _percent(subset.best_guess))
            table.add_row(subset.name, f"{accuracy.n:,}", *shares)
        yield table
    if evaluation.robustness is not None:
        yield _robustness_table(evaluation.robustness)
    yield Text(_latency_line(evaluation.latency))
    if evaluation.failures:
        failures = ", ".join(f"{reason} {count:,}" for reason, count in evaluation.failures.items())
        yield Text(f"prompts for which a method failed: {failures}", style="yellow")


def regret_tables(regret: Regret) -> Iterator[Renderable]:
    """Show the cost of wrong routes."""
    table = _table("Cost of wrong routes, in nats per token", "label", "served by", "prompts", "each", "total")
    for route in regret.routes:
        cost = (f"{route.nats:.4f}", f"{route.nats * route.prompts:.4f}")
        table.add_row(_name(route.label), _name(route.served_by), f"{route.prompts:,}", *cost)
    if regret.routes:
        yield table
    mean = f"{regret.mean.value:.4f} ({_interval(regret.mean, '{:.4f}')}) over {regret.mean.n:,} in-scope prompts"
    yield Text(
        f"mean regret per prompt: {mean}; wrong routes: {regret.wrong:,}, without cost: {_percent(regret.harmless)}"
    )
    if regret.left_out:
        counts = ", ".join(f"{printable(subject)} ({count:,} prompts)" for subject, count in regret.left_out.items())
        yield Text(f"not in the matrix, left out: {counts}", style="yellow")


def comparison_tables(comparison: Comparison, first: str, second: str) -> Iterator[Renderable]:
    """Show whether the second target is better than the first, and on which prompts."""
    difference = comparison.difference
    yield Text(
        f"accuracy of {printable(second)} minus that of {printable(first)}: {difference.value:+.2%} "
        f"({difference.low:+.2%} to {difference.high:+.2%}); prompts that only the second routes correctly: "
        f"{comparison.only_second_correct:,}, only the first: {comparison.only_first_correct:,}; McNemar's p "
        f"{'below 0.0001' if comparison.p < 0.0001 else f'{comparison.p:.4f}'}"
    )
    if comparison.categories:
        table = _table("Categories that changed", "category", "prompts", "first correct", "second correct", "change")
        for row in comparison.categories:
            change = f"{row.second_correct - row.first_correct:+,}"
            counts = (f"{row.prompts:,}", f"{row.first_correct:,}", f"{row.second_correct:,}", change)
            table.add_row(_name(row.name), *counts)
        yield table
    if comparison.examples:
        limit = f", {MAX_EXAMPLES} of {comparison.differing:,}" if comparison.differing > MAX_EXAMPLES else ""
        table = Table("prompt", "label", "first", "second", title=f"Routed differently{limit}")
        table.title_justify = "left"
        for prompt in comparison.examples:
            names = map(_name, (prompt.label, prompt.first_chosen, prompt.second_chosen))
            table.add_row(Text(printable(prompt.text[:100])), *names)
        yield table


def _category_table(evaluation: Evaluation) -> Table:
    table = _table("Categories", "category", "prompts", "precision", "recall", "F1", "confused with")
    confusion = evaluation.metrics.confusion
    for row, category in enumerate(evaluation.metrics.categories):
        scores = (f"{score:.4f}" for score in (category.precision, category.recall, category.f1))
        table.add_row(_name(category.name), f"{category.prompts:,}", *scores, Text(_confused_with(confusion, row)))
    table.columns[-1].justify = "left"
    return table


def _confused_with(confusion: Confusion, row: int) -> str:
    counts = confusion.counts[row]
    others = [column for column in range(len(counts)) if column != row and counts[column]]
    others.sort(key=lambda column: -counts[column])
    return ", ".join(
        f"{printable(confusion.names[column] or NO_VALUE)} {counts[column]:,}" for column in others[:MAX_CONFUSED]
    )


def _robustness_table(robustness: Robustness) -> Table:
    table = _table("Unchanged after a small change", "change", "prompts", "best guess", "95 %", "chosen", "95 %")
    rows = [*((kind.kind, kind.guess, kind.chosen) for kind in robustness.kinds)]
    rows.append(("all", robustness.guess, robustness.chosen))
    if robustness.in_scope is not None:
        rows.append(("all in scope", robustness.in_scope.guess, robustness.in_scope.chosen))
    for kind, guess, chosen in rows:
        cells = (cell for share in (guess, chosen) for cell in (_percent(share), _interval(share, "{:.2%}")))
        table.add_row(kind, f"{guess.n:,}", *cells)
    return table


def _latency_line(latency: Latency) -> str:
    if latency.p50_ms is None:
        return "latency: not measured; all sampled prompts had cached results"
    text = (
        f"latency, one at a time: p50 {latency.p50_ms:.1f} ms, p95 {latency.p95_ms:.1f} ms over {latency.prompts:,} "
        "prompts"
    )
    if latency.cached:
        text += f" ({latency.cached:,} cached results left out)"
    if latency.late:
        text += f"; {latency.late:,} exceeded router.deadline_ms ({latency.deadline_ms:g} ms)"
    return text


def _add_estimate(table: Table, name: str, estimate: Estimate | None, form: str) -> None:
    if estimate is not None:
        table.add_row(name, form.format(estimate.value), _interval(estimate, form), f"{estimate.n:,}")


def _percent(estimate: Estimate | None) -> str:
    return NO_VALUE if estimate is None else f"{estimate.value:.2%}"


def _interval(estimate: Estimate, form: str) -> str:
    return f"{form.format(estimate.low)} to {form.format(estimate.high)}"


def _table(title: str, first_column: str, *columns: str) -> Table:
    table = Table(first_column, title=Text(printable(title)), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _name(name: str | None) -> Text:
    return Text(printable(NO_VALUE if name is None else name))
