"""An evaluation as it is printed."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.audit.filters import NONE
from vllm_lora_router.tools.evaluate.compare import SHOWN, Comparison
from vllm_lora_router.tools.evaluate.confusion import Confusion
from vllm_lora_router.tools.evaluate.evaluate import Evaluation
from vllm_lora_router.tools.evaluate.figures import Figure
from vllm_lora_router.tools.evaluate.regret import Regret

Printed = Table | Text
CONFUSED = 3  # categories that one is taken for


def headline(evaluation: Evaluation) -> Printed:
    """The figures over all prompts."""
    found = evaluation.figures
    reliability, outside = found.reliability, found.out_of_scope
    versions = f"version{'s' * (len(evaluation.versions) != 1)} {', '.join(evaluation.versions)}"
    table = _table(f"{evaluation.subject} ({versions})", "", "figure", "95 %", "prompts")
    rows: list[tuple[str, Figure | None]] = [
        ("accuracy", found.accuracy),
        ("  in scope: the right category", found.in_scope),
        ("  out of scope: none was sure", found.left_alone),
        ("best guess is right, sure of it or not", found.guess),
        ("coverage: in scope, and a method was sure", found.coverage),
        ("precision: right where a method was sure", found.precision),
    ]
    for name, figure in rows:
        _figure_row(table, name, figure, "{:.2%}")
    _figure_row(table, "macro F1", found.macro_f1, "{:.4f}")
    _figure_row(table, "expected calibration error", reliability and reliability.error, "{:.4f}")
    _figure_row(table, "AUROC of out of scope", outside and outside.auroc, "{:.4f}")
    if outside is not None:
        chance = f"chance {outside.share:.4f}"
        table.add_row("average precision of out of scope", f"{outside.average_precision:.4f}", chance, "")
    return table


def details(evaluation: Evaluation) -> Iterator[Printed]:
    """What the figures are made of."""
    yield _categories(evaluation)
    decided = _table("Decided by", "method", "prompts", "right")
    for one in evaluation.figures.decided:
        decided.add_row(one.method or "none was sure", f"{one.prompts:,}", _share(one.right))
    yield decided
    for title, slices in (("By length", evaluation.lengths), ("By script", evaluation.scripts)):
        table = _table(title, "", "prompts", "accuracy", "95 %", "best guess")
        for one in slices:
            accuracy = one.accuracy
            table.add_row(
                one.name, f"{accuracy.of:,}", _share(accuracy), _interval(accuracy, "{:.2%}"), _share(one.guess)
            )
        yield table
    if evaluation.agreement is not None:
        yield _agreement(evaluation)
    yield Text(_latency(evaluation))
    if evaluation.failures:
        failed = ", ".join(f"{reason} {count:,}" for reason, count in evaluation.failures.items())
        yield Text(f"methods failed for some prompts: {failed}", style="yellow")


def regret_table(found: Regret) -> Iterator[Printed]:
    """What wrong routes cost."""
    table = _table("What wrong routes cost, in nats a token", "label", "served by", "prompts", "each", "together")
    for way in found.ways:
        table.add_row(
            _name(way.label), _name(way.taken), f"{way.prompts:,}", f"{way.nats:.4f}", f"{way.nats * way.prompts:.4f}"
        )
    if found.ways:
        yield table
    mean = f"{found.mean.value:.4f} ({_interval(found.mean, '{:.4f}')}) over {found.mean.of:,} prompts in scope"
    yield Text(
        f"mean regret a prompt: {mean}; wrong routes: {found.wrong:,}, that cost nothing: {_share(found.harmless)}"
    )
    if found.unknown:
        left_out = ", ".join(f"{printable(what)} ({count:,} prompts)" for what, count in found.unknown.items())
        yield Text(f"left out, for the matrix does not have it: {left_out}", style="yellow")


def comparison_tables(found: Comparison, one: str, other: str) -> Iterator[Printed]:
    """Whether the other is better, and where."""
    difference = found.difference
    yield Text(
        f"accuracy of {printable(other)} less that of {printable(one)}: {difference.value:+.2%} "
        f"({difference.low:+.2%} to {difference.high:+.2%}); prompts that are right there alone: "
        f"{found.only_other_right:,}, here alone: {found.only_right:,}, McNemar's p "
        f"{'below 0.0001' if found.p < 0.0001 else f'{found.p:.4f}'}"
    )
    if found.categories:
        table = _table("Categories that changed", "category", "prompts", "right", "right in the other", "change")
        for row in found.categories:
            change = f"{row.right_other - row.right:+,}"
            table.add_row(_name(row.name), f"{row.prompts:,}", f"{row.right:,}", f"{row.right_other:,}", change)
        yield table
    if found.examples:
        shown = f", {SHOWN} of {found.differing:,}" if found.differing > SHOWN else ""
        table = Table("prompt", "label", "chosen", "by the other", title=f"Routed differently{shown}")
        table.title_justify = "left"
        for prompt in found.examples:
            names = map(_name, (prompt.label, prompt.chosen, prompt.chosen_other))
            table.add_row(Text(printable(prompt.text[:100])), *names)
        yield table


def _categories(evaluation: Evaluation) -> Table:
    table = _table("Categories", "category", "prompts", "precision", "recall", "F1", "taken for")
    confusion = evaluation.figures.confusion
    for place, one in enumerate(evaluation.figures.categories):
        scores = (f"{score:.4f}" for score in (one.precision, one.recall, one.f1))
        table.add_row(_name(one.name), f"{one.prompts:,}", *scores, Text(_taken_for(confusion, place)))
    table.columns[-1].justify = "left"
    return table


def _taken_for(confusion: Confusion, place: int) -> str:
    row = confusion.counts[place]
    others = sorted(
        (other for other in range(len(row)) if other != place and row[other]), key=lambda other: -row[other]
    )
    return ", ".join(f"{printable(confusion.names[other] or NONE)} {row[other]:,}" for other in others[:CONFUSED])


def _agreement(evaluation: Evaluation) -> Table:
    table = _table("The same after a small change", "change", "prompts", "best guess", "95 %", "chosen", "95 %")
    found = evaluation.agreement
    assert found is not None
    rows = [*((one.kind, one.guess, one.chosen) for one in found.kinds), ("all", found.guess, found.chosen)]
    if found.in_scope is not None:
        rows.append(("all in scope", found.in_scope.guess, found.in_scope.chosen))
    for kind, guess, chosen in rows:
        shown = (figure for one in (guess, chosen) for figure in (_share(one), _interval(one, "{:.2%}")))
        table.add_row(kind, f"{guess.of:,}", *shown)
    return table


def _latency(evaluation: Evaluation) -> str:
    found = evaluation.latency
    if found.p50_ms is None:
        return "latency: every prompt that was timed had been answered before"
    text = (
        f"latency, one at a time: p50 {found.p50_ms:.1f} ms, p95 {found.p95_ms:.1f} ms over {found.prompts:,} prompts"
    )
    if found.cached:
        text += f" ({found.cached:,} more had been answered before)"
    if found.late:
        text += f"; {found.late:,} took longer than router.deadline_ms ({found.deadline_ms:g} ms)"
    return text


def _figure_row(table: Table, name: str, figure: Figure | None, form: str) -> None:
    if figure is not None:
        table.add_row(name, form.format(figure.value), _interval(figure, form), f"{figure.of:,}")


def _share(figure: Figure | None) -> str:
    return NONE if figure is None else f"{figure.value:.2%}"


def _interval(figure: Figure, form: str) -> str:
    return f"{form.format(figure.low)} to {form.format(figure.high)}"


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(first, title=Text(printable(title)), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _name(name: str | None) -> Text:
    return Text(printable(NONE if name is None else name))
