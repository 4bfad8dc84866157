"""The command `vllm-lora-router audit`: summarize, search, explain and check the audit record."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.observability.audit_schema import AuditLine
from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.counterfactual import smallest_change
from vllm_lora_router.tools.audit.explain import explain
from vllm_lora_router.tools.audit.filters import NO_VALUE, DecisionFilter, TextMatch, parse_time
from vllm_lora_router.tools.audit.join import JoinedDecision, join_decisions
from vllm_lora_router.tools.audit.reader import AuditRecord, AuditRecordError
from vllm_lora_router.tools.audit.replay import differences, replay
from vllm_lora_router.tools.audit.summary import Quantiles, Summary, summarize

MAX_SHOWN = 20  # problems of one kind that are printed


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("audit", help="summarize, search, explain and check the audit record")
    add_record_arguments(parser)
    for name, description in (
        (
            "category",
            "Only decisions for this category (default: all). - selects decisions without one, here and below.",
        ),
        ("adapter", "Only requests that this adapter or base model served (default: all)."),
        ("method", "Only decisions by this method: keyword, embedding, domain or mcp (default: all)."),
        ("reason", "Only decisions with this reason, such as routed, affinity or below_threshold (default: all)."),
        ("tenant", "Only requests of this tenant (default: all)."),
        ("client", "Only requests with this API key fingerprint (default: all)."),
        ("path", "Only requests to this path, such as /v1/chat/completions (default: all)."),
    ):
        parser.add_argument(f"--{name}", help=description)
    parser.add_argument("--text", help="List the decisions on exactly this text, also if the record contains hashes.")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--lines", action="store_true", help="Print each decision with its outcome and feedback as one line of JSON."
    )
    actions.add_argument("--explain", metavar="ID", help="Explain the decision with this id in plain English.")
    actions.add_argument(
        "--check", action="store_true", help="Report missing lines, and replay every decision from its line."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables and text.")
    parser.set_defaults(run=run)


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a record and a period."""
    parser.add_argument(
        "record",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="Audit record: the folder of router.audit.path, or files in it.",
    )
    parser.add_argument(
        "--since",
        type=parse_time,
        metavar="TIME",
        help="Only decisions from this time on: 2026-01-31T12:00:00Z, 2026-01-31, or 90s, 2h, 7d ago (default: all).",
    )
    parser.add_argument(
        "--until",
        type=parse_time,
        metavar="TIME",
        help="Only decisions before this time, in the same form (default: all).",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if there is no such record or decision, or if --check finds a problem.
    """
    try:
        return _run(args)
    except AuditRecordError as error:
        print(error, file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    record, selection = AuditRecord.open(*args.record), _Selection.of(args)
    if args.check:
        return _check(record, selection, as_json=args.json)
    decisions = join_decisions(record, selection.matches)
    if args.explain is not None:
        return _explain(decisions, args.explain, as_json=args.json)
    if args.lines:
        for joined in decisions:
            print(json.dumps(joined.line))
        _warn(record)
    elif args.text is not None:
        return _list(record, decisions, as_json=args.json)
    else:
        _summarize(record, summarize(decisions), as_json=args.json)
    return 0


@dataclasses.dataclass(frozen=True)
class _Selection:
    filter: DecisionFilter
    texts: tuple[TextMatch, ...]  # one for each folder; empty: any text

    @classmethod
    def of(cls, args: argparse.Namespace) -> "_Selection":
        conditions = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(DecisionFilter)}
        folders = dict.fromkeys(path if path.is_dir() else path.parent for path in args.record)
        texts = () if args.text is None else tuple(TextMatch.in_record(args.text, folder) for folder in folders)
        return cls(DecisionFilter(**{**conditions, "id": args.explain}), texts)

    def matches(self, decision: AuditLine) -> bool:
        return self.filter.matches(decision) and (not self.texts or any(text.matches(decision) for text in self.texts))


def _summarize(record: AuditRecord, summary: Summary, *, as_json: bool) -> None:
    if as_json:
        by = {name: summary.by(name) for name in ("category", "served", "method", "reason")}
        print(json.dumps({**dataclasses.asdict(summary), "by": by, "missing": dataclasses.asdict(record.missing)}))
        return
    console = Console()
    table = Table("category", "served by", "method", "reason")
    table.add_column("decisions", justify="right")
    table.add_column("share", justify="right")
    for group in summary.groups:
        names = (group.category, group.served, group.method, group.reason)
        table.add_row(*map(_text, names), f"{group.decisions:,}", f"{group.decisions / summary.decisions:.1%}")
    processes = f"{summary.processes} process{'es' * (summary.processes != 1)}"
    period = f", {summary.first} to {summary.last}" if summary.decisions else ""
    console.print(f"{summary.decisions:,} decisions of {processes}{period}", highlight=False, soft_wrap=True)
    if summary.decisions:
        console.print(table)
        console.print(_responses(summary, record))
    missing = record.missing
    gaps = sum(gap.lines for gap in missing.gaps)
    print(f"missing lines: {len(missing.invalid):,} invalid, {gaps:,} not in the record, {missing.lost:,} lost")
    _warn(record)


def _responses(summary: Summary, record: AuditRecord) -> Table:
    table = Table("responses", "")
    for name, counts in (("status", summary.status), ("finish reason", summary.finish_reasons)):
        table.add_row(name, _text(", ".join(f"{value} {count:,}" for value, count in counts.items()) or NO_VALUE))
    table.add_row("aborted", f"{summary.aborted:,}")
    table.add_row("without outcome", f"{summary.without_outcome:,}")
    table.add_row("overhead", _format_times(summary.overhead_ms))
    table.add_row("first byte", _format_times(summary.first_byte_ms))
    mean, low, high = summary.mean_score, summary.min_score, summary.max_score
    scores = "" if mean is None else f", mean {mean:.4g}, from {low:g} to {high:g}"
    table.add_row("feedback", f"{summary.feedback:,}{scores}")
    table.add_row("feedback on unknown ids", f"{record.unmatched_feedback:,}")
    return table


def _explain(decisions: Iterable[JoinedDecision], id: str, *, as_json: bool) -> int:
    # A client may use one id for several requests.
    explained = 0
    for joined in decisions:
        sentences = explain(joined)
        if as_json:
            change = smallest_change(joined.decision)
            replayed = dataclasses.asdict(replay(joined.decision))
            change = change and {**dataclasses.asdict(change), "amount": change.amount}
            print(json.dumps({"id": id, "explanation": sentences, "replayed": replayed, "change": change}))
        else:
            print(*sentences, sep="\n", end="\n" if explained == 0 else "\n\n")
        explained += 1
    if not explained:
        print(f"no decision with the id {printable(id)} in this record", file=sys.stderr)
    return 0 if explained else 1


def _list(record: AuditRecord, decisions: Iterator[JoinedDecision], *, as_json: bool) -> int:
    table = Table("at", "id", "category", "served by", "method", "reason")
    lines = [joined.line for joined in decisions]
    for line in lines:
        plan, served = line["plan"], line["served"]
        values = (line["at"], line["id"], plan["category"], served["model"], plan["method"], line["reason"])
        table.add_row(*(_text(value or NO_VALUE) for value in values))
    if not lines:
        print(
            "no decision on exactly this text; the record may contain no texts, or hashes with another key",
            file=sys.stderr,
        )
        return 1
    if as_json:
        print(*map(json.dumps, lines), sep="\n")
    else:
        Console().print(table)
    _warn(record)
    return 0


def _check(record: AuditRecord, selection: _Selection, *, as_json: bool) -> int:
    decisions, changed = 0, dict[str, list[str]]()
    for line in record.lines():
        if line["type"] == "decision" and selection.matches(line):
            decisions += 1
            if problems := _differences(line):
                changed[f"{line['run']} seq {line['seq']}: {line['id']}"] = problems
    missing, identical = record.missing, decisions - len(changed)
    if as_json:
        result = {"decisions": decisions, "identical": identical, "differences": changed}
        print(json.dumps({**result, "missing": dataclasses.asdict(missing)}))
    else:
        print(f"{identical:,} of {decisions:,} decisions are identical when replayed from their lines")
        for sentences in ([f"{place}: {'; '.join(p)}" for place, p in changed.items()], missing.sentences()):
            print(*map(printable, sentences[:MAX_SHOWN]), sep="\n", end="\n" if sentences else "")
            if len(sentences) > MAX_SHOWN:
                print(f"and {len(sentences) - MAX_SHOWN:,} more")
        if not missing:
            print("no line is invalid, missing or lost")
    return 1 if changed or missing else 0


def _differences(line: AuditLine) -> list[str]:
    try:
        return differences(line)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"not a complete decision line ({type(error).__name__}: {error})"]


def _warn(record: AuditRecord) -> None:
    sentences = record.missing.sentences()
    for sentence in sentences[:MAX_SHOWN]:
        print(f"warning: {printable(sentence)}", file=sys.stderr)
    if len(sentences) > MAX_SHOWN:
        print(f"warning: and {len(sentences) - MAX_SHOWN:,} more; list them with --check --json", file=sys.stderr)


def _format_times(times: Quantiles) -> str:
    return NO_VALUE if times.p50 is None else f"p50 {times.p50:.1f} ms, p95 {times.p95:.1f} ms"


def _text(text: str) -> Text:
    return Text(printable(text))
