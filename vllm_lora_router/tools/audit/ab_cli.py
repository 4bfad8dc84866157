"""`vllm-lora-router ab`: what the audit record says of A/B tests."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.audit.ab_report import Arm, Comparison, Experiment, experiments
from vllm_lora_router.tools.audit.cli import add_record
from vllm_lora_router.tools.audit.filters import NONE, Filter
from vllm_lora_router.tools.audit.join import joined
from vllm_lora_router.tools.audit.reader import Record, RecordError
from vllm_lora_router.tools.statistics import RATIO_ALPHA, Interval


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("ab", help="compare the arms of A/B tests by the record of decisions")
    add_record(parser)
    parser.add_argument("--category", help="default: every one with an A/B test")
    parser.add_argument(
        "--difference",
        type=_positive,
        help="of mean scores, to be found; default: 0.05 where scores are 0 or 1, else a fifth of their deviation",
    )
    parser.add_argument(
        "--power", type=_probability, default=0.8, help="how probably it is to be found; default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when there are A/B tests to show, else 1."""
    try:
        record = Record.of(*args.record)
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    wanted = Filter(since=args.since, until=args.until, category=args.category)
    found = experiments(joined(record, wanted.takes), difference=args.difference, power=args.power)
    if not found:
        what = "decision of an A/B test" if args.category is None else f"A/B decision of {printable(args.category)}"
        print(f"no {what} here; a category has one with selection: weighted", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([{**dataclasses.asdict(one), "is_trusted": one.is_trusted} for one in found]))
    else:
        console = Console()
        for experiment in found:
            _print(console, experiment, [one for one in found if one.category == experiment.category], args.power)
    for sentence in record.missing.sentences():
        print(f"warning: {printable(sentence)}", file=sys.stderr)
    return 0


def _print(console: Console, experiment: Experiment, of_category: list[Experiment], power: float) -> None:
    def say(sentence: str) -> None:
        console.print(Text(printable(sentence)), soft_wrap=True)

    configs = f"configuration{'s' * (len(experiment.configs) != 1)} {', '.join(experiment.configs)}"
    say(f"{experiment.category}, {experiment.first} to {experiment.last}, {configs}")
    if len(of_category) > 1:
        number = of_category.index(experiment) + 1
        say(f"The weights changed: this is part {number} of {len(of_category)}, by itself. Some users changed arms.")
    console.print(_arms(experiment.arms))
    if experiment.comparisons:
        console.print(_comparisons(experiment.comparisons))
    for sentence in (*_trust(experiment), *map(_verdict, experiment.comparisons), *_cautions(experiment, power)):
        say(sentence)
    console.print()


def _arms(arms: list[Arm]) -> Table:
    columns = ("requests", "served otherwise", "keys", "finish reasons", "aborted", "errors", "first byte p50, p95")
    table = Table("arm", "weight", *columns, "ratings", "keys rating", "mean", "95 %")
    for arm in arms:
        sample, times = arm.sample, arm.first_byte_ms
        table.add_row(
            Text(printable(arm.name)),
            f"{arm.weight:g}",
            f"{arm.requests:,}",
            f"{arm.otherwise:,}",
            f"{arm.keys:,}",
            Text(printable(", ".join(f"{name} {count:,}" for name, count in arm.finish.items()) or NONE)),
            f"{arm.aborted:,} ({arm.aborted / arm.requests:.1%})" if arm.requests else NONE,
            f"{arm.errors:,}",
            NONE if times.p50 is None else f"{times.p50:.1f}, {times.p95:.1f} ms",
            f"{arm.ratings:,}",
            f"{sample.keys if sample else 0:,}",
            f"{sample.mean:.4f}" if sample else NONE,
            _interval(arm.interval),
        )
    return table


def _comparisons(comparisons: list[Comparison]) -> Table:
    table = Table("arm", "against", "difference", "95 %", "p", "p (Holm)", "to find", "keys needed", "days in all")
    for one in comparisons:
        table.add_row(
            Text(printable(one.arm)),
            Text(printable(one.against)),
            f"{one.difference:+.4f}",
            _interval(one.interval),
            _probable(one.p),
            _probable(one.p_holm),
            NONE if one.sought is None else f"{one.sought:.4g}",
            NONE if one.needed is None else f"{one.needed:,} and {one.needed_against:,}",
            NONE if one.days is None else f"{one.days:,.1f}",
        )
    return table


def _verdict(one: Comparison) -> str:
    if one.p_holm is None:
        return f"{one.arm} against {one.against}: too little feedback to compare, or all of it the same."
    if one.is_found:
        way = "better" if one.difference > 0 else "worse"
        return f"{one.arm} is {way} than {one.against} (p {_probable(one.p_holm)})."
    return f"{one.arm} and {one.against}: no difference is shown (p {_probable(one.p_holm)})."


def _trust(experiment: Experiment) -> Iterator[str]:
    p = experiment.sample_ratio_p
    if not experiment.is_trusted:
        keys = ", ".join(f"{arm.name} {arm.keys:,}" for arm in experiment.arms)
        yield (
            f"NOT TO BE TRUSTED: keys did not fall on the arms by their weights ({keys}; p {_probable(p)}, and below "
            f"{RATIO_ALPHA:g} it is no chance), so the arms have different users, or lines are missing."
        )
    elif p is None and sum(arm.weight > 0 for arm in experiment.arms) > 1:
        yield "Too few keys to tell whether they fell on the arms by their weights."


def _cautions(experiment: Experiment, power: float) -> list[str]:
    said: list[str] = []
    if changed := [arm.name for arm in experiment.arms if arm.contents > 1]:
        said.append(f"In this time the content changed of {', '.join(changed)}: several versions are counted as one.")
    alone = experiment.drawn_by.get("request", 0)
    if alone:
        of = f"{alone:,} of {sum(experiment.drawn_by.values()):,}"
        said.append(
            f"{of} requests named nobody and were drawn each by itself: one user of theirs may see several arms."
        )
    if any(one.needed is not None for one in experiment.comparisons):
        said.append(
            f"`keys needed` (of the arm, and of the other) find a difference as large as `to find` with a probability "
            f"of {power:g}, at 95 % confidence, looked at once: whoever looks until one shows finds too many."
        )
    return said


def _interval(interval: Interval | None) -> str:
    return NONE if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _probable(p: float | None) -> str:
    return NONE if p is None else "below 0.0001" if p < 0.0001 else f"{p:.4f}"


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value
