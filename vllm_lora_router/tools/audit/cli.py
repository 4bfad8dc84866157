"""`vllm-lora-router audit`: what the audit record says, of all decisions or of one."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.audit.explain import decide_again, explain, smallest_change
from vllm_lora_router.tools.audit.filters import NONE, Filter, Said, moment
from vllm_lora_router.tools.audit.join import Recorded, joined
from vllm_lora_router.tools.audit.reader import Line, Record, RecordError
from vllm_lora_router.tools.audit.replay import differences
from vllm_lora_router.tools.audit.summary import Quantiles, Summary, summary

SHOWN = 20  # of what is wrong, and of a kind


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("audit", help="read the record of decisions: count, find, explain and check them")
    add_record(parser)
    for name, what in (
        ("category", "that was found, as --category legal; - for none, here and below"),
        ("adapter", "that served; the base by its name"),
        ("method", "that was sure: keyword, embedding, domain or mcp"),
        ("reason", "such as routed, affinity, below_threshold or not_loadable"),
        ("tenant", "that asked"),
        ("client", "by the fingerprint of its API key"),
        ("path", "such as /v1/chat/completions"),
    ):
        parser.add_argument(f"--{name}", help=what)
    parser.add_argument("--text", help="find the decisions on this very text, which the record may hold as a hash")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--lines", action="store_true", help="print decisions as lines of JSON, outcome and feedback in")
    shown.add_argument("--explain", metavar="ID", help="say in plain English how a decision came about")
    shown.add_argument(
        "--check", action="store_true", help="look for what is missing, and make every decision again from its line"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.set_defaults(run=run)


def add_record(parser: argparse.ArgumentParser) -> None:
    """Which record is read, and of what time."""
    parser.add_argument(
        "record", nargs="+", type=Path, metavar="FOLDER", help="the folder of router.audit.path, or files of it"
    )
    parser.add_argument(
        "--since", type=moment, metavar="WHEN", help="2026-01-31T12:00:00Z, or how long ago: 90s, 15m, 2h, 7d"
    )
    parser.add_argument("--until", type=moment, metavar="WHEN", help="likewise")


def run(args: argparse.Namespace) -> int:
    """0 when it is shown, 1 when there is no such record or decision, or when --check finds something wrong."""
    try:
        record = Record.of(*args.record)
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    wanted = _Wanted.of(args)
    if args.check:
        return _check(record, wanted, as_json=args.json)
    found = joined(record, wanted.takes)
    if args.explain is not None:
        return _explain(found, args.explain, as_json=args.json)
    if args.lines:
        for one in found:
            print(json.dumps(one.line))
        _warn(record)
    elif args.text is not None:
        return _list(record, found, as_json=args.json)
    else:
        _summarise(record, summary(found), as_json=args.json)
    return 0


@dataclasses.dataclass(frozen=True)
class _Wanted:
    filter: Filter
    said: tuple[Said, ...]  # of any of these texts; none: of any text

    @classmethod
    def of(cls, args: argparse.Namespace) -> "_Wanted":
        asked = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(Filter)}
        folders = dict.fromkeys(path if path.is_dir() else path.parent for path in args.record)
        said = () if args.text is None else tuple(Said.of(args.text, folder) for folder in folders)
        return cls(Filter(**{**asked, "id": args.explain}), said)

    def takes(self, decision: Line) -> bool:
        return self.filter.takes(decision) and (not self.said or any(one.by(decision) for one in self.said))


def _summarise(record: Record, found: Summary, *, as_json: bool) -> None:
    if as_json:
        by = {name: found.by(name) for name in ("category", "served", "method", "reason")}
        print(json.dumps({**dataclasses.asdict(found), "by": by, "missing": dataclasses.asdict(record.missing)}))
        return
    console = Console()
    table = Table("category", "served by", "method", "reason")
    table.add_column("decisions", justify="right")
    table.add_column("share", justify="right")
    for way in found.ways:
        names = (way.category, way.served, way.method, way.reason)
        table.add_row(*map(_text, names), f"{way.decisions:,}", f"{way.decisions / found.decisions:.1%}")
    processes = f"{found.processes} process{'es' * (found.processes != 1)}"
    when = f", {found.first} to {found.last}" if found.decisions else ""
    console.print(f"{found.decisions:,} decisions of {processes}{when}", highlight=False, soft_wrap=True)
    if found.decisions:
        console.print(table)
        console.print(_responses(found))
    missing = record.missing
    gaps = sum(gap.lines for gap in missing.gaps)
    print(f"missing: {len(missing.broken):,} broken lines, {gaps:,} in gaps of the numbering, {missing.lost:,} lost")
    _warn(record)


def _responses(found: Summary) -> Table:
    table = Table("responses", "")
    for name, counts in (("status", found.status), ("finish reason", found.finish)):
        table.add_row(name, _text(", ".join(f"{what} {count:,}" for what, count in counts.items()) or NONE))
    table.add_row("aborted", f"{found.aborted:,}")
    table.add_row("without outcome", f"{found.without_outcome:,}")
    table.add_row("overhead", _times(found.overhead_ms))
    table.add_row("first byte", _times(found.first_byte_ms))
    mean = "" if found.mean_score is None else f", mean {found.mean_score:.4g}"
    table.add_row("feedback", f"{found.feedback:,}{mean}")
    return table


def _explain(found: Iterator[Recorded], id: str, *, as_json: bool) -> int:
    # A client may give several requests the same id.
    explained = 0
    for one in found:
        sentences = explain(one)
        if as_json:
            change = smallest_change(one.decision)
            told = {"id": id, "said": sentences, "again": dataclasses.asdict(decide_again(one.decision))}
            print(json.dumps({**told, "change": change and {**dataclasses.asdict(change), "amount": change.amount}}))
        else:
            print(*sentences, sep="\n", end="\n" if explained == 0 else "\n\n")
        explained += 1
    if not explained:
        print(f"no decision has the id {printable(id)} here", file=sys.stderr)
    return 0 if explained else 1


def _list(record: Record, found: Iterator[Recorded], *, as_json: bool) -> int:
    table = Table("at", "id", "category", "served by", "method", "reason")
    lines = [one.line for one in found]
    for line in lines:
        plan, served = line["plan"], line["served"]
        shown = (line["at"], line["id"], plan["category"], served["model"], plan["method"], line["reason"])
        table.add_row(*(_text(value or NONE) for value in shown))
    if not lines:
        print("no decision on this very text; the record may hold no text, or be of another key", file=sys.stderr)
        return 1
    if as_json:
        print(*map(json.dumps, lines), sep="\n")
    else:
        Console().print(table)
    _warn(record)
    return 0


def _check(record: Record, wanted: _Wanted, *, as_json: bool) -> int:
    decisions, wrong = 0, dict[str, list[str]]()
    for line in record.lines():
        if line["type"] == "decision" and wanted.takes(line):
            decisions += 1
            if found := _differences(line):
                wrong[f"{line['run']} seq {line['seq']}: {line['id']}"] = found
    missing = record.missing
    if as_json:
        about = {"decisions": decisions, "agree": decisions - len(wrong), "differences": wrong}
        print(json.dumps({**about, "missing": dataclasses.asdict(missing)}))
    else:
        print(
            f"{decisions - len(wrong):,} of {decisions:,} decisions are the same when made again from their line alone"
        )
        said = [f"{where}: {'; '.join(found)}" for where, found in wrong.items()]
        for found in (said, missing.sentences()):
            print(*map(printable, found[:SHOWN]), sep="\n", end="\n" if found else "")
            if len(found) > SHOWN:
                print(f"and {len(found) - SHOWN:,} more")
        if not missing:
            print("no line is broken, missing or lost")
    return 1 if wrong or missing else 0


def _differences(line: Line) -> list[str]:
    try:
        return differences(line)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"not a decision's line ({type(error).__name__}: {error})"]


def _warn(record: Record) -> None:
    found = record.missing.sentences()
    for sentence in found[:SHOWN]:
        print(f"warning: {printable(sentence)}", file=sys.stderr)
    if len(found) > SHOWN:
        print(f"warning: and {len(found) - SHOWN:,} more; --check --json lists them", file=sys.stderr)


def _times(times: Quantiles) -> str:
    return NONE if times.p50 is None else f"p50 {times.p50:.1f} ms, p95 {times.p95:.1f} ms"


def _text(text: str) -> Text:
    return Text(printable(text))
