"""The command `vllm-lora-router ab`: compare the arms of A/B tests from the audit record."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.ab_report import Arm, Comparison, Experiment, ab_experiments
from vllm_lora_router.tools.audit.cli import add_record_arguments
from vllm_lora_router.tools.audit.filters import NO_VALUE, DecisionFilter
from vllm_lora_router.tools.audit.join import join_decisions
from vllm_lora_router.tools.audit.reader import AuditRecord, AuditRecordError
from vllm_lora_router.tools.options import report_missing
from vllm_lora_router.tools.statistics import RATIO_ALPHA, Estimate


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("ab", help="compare the arms of A/B tests from the audit record")
    add_record_arguments(parser)
    parser.add_argument("--category", help="Only this category (default: every category with an A/B test).")
    parser.add_argument(
        "--difference",
        type=_positive,
        help=(
            "Difference of mean scores to detect (default: 0.05 if all scores are 0 or 1, otherwise a fifth of their "
            "standard deviation)."
        ),
    )
    parser.add_argument(
        "--power",
        type=_probability,
        default=0.8,
        help="Probability of detecting that difference (default: %(default)s).",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables and text.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 if there is no record or no A/B test to show, or if scipy is not installed.
    """
    if report_missing("ab", "evaluate", "scipy"):
        return 1
    selection = DecisionFilter(since=args.since, until=args.until, category=args.category)
    try:
        record = AuditRecord.open(*args.record)
        experiments = ab_experiments(
            join_decisions(record, selection.matches), target_difference=args.difference, power=args.power
        )
    except AuditRecordError as error:
        print(error, file=sys.stderr)
        return 1
    if not experiments:
        category = "" if args.category is None else f" for category {printable(args.category)}"
        print(
            f"no decision with an A/B test{category} in this record; a category has an A/B test if its selection is "
            "weighted",
            file=sys.stderr,
        )
        return 1
    if args.json:
        print(json.dumps([{**dataclasses.asdict(e), "is_trusted": e.is_trusted} for e in experiments]))
    else:
        console = Console()
        for experiment in experiments:
            parts = [part for part in experiments if part.category == experiment.category]
            _print(console, experiment, parts, args.power)
    for sentence in record.missing.sentences():
        print(f"warning: {printable(sentence)}", file=sys.stderr)
    return 0


def _print(console: Console, experiment: Experiment, parts: list[Experiment], power: float) -> None:
    def print_sentence(sentence: str) -> None:
        console.print(Text(printable(sentence)), soft_wrap=True)

    configs = f"configuration{'s' * (len(experiment.configs) != 1)} {', '.join(experiment.configs)}"
    print_sentence(f"{experiment.category}, {experiment.first} to {experiment.last}, {configs}")
    if len(parts) > 1:
        number = parts.index(experiment) + 1
        print_sentence(
            f"The weights changed: this is part {number} of {len(parts)}. Each part is evaluated separately, because "
            "the change moved some users to other arms."
        )
    console.print(_arm_table(experiment.arms))
    if experiment.comparisons:
        console.print(_comparison_table(experiment.comparisons))
    verdicts = map(_verdict, experiment.comparisons)
    for sentence in (*_sample_ratio(experiment), *verdicts, *_notes(experiment, power)):
        print_sentence(sentence)
    console.print()


def _arm_table(arms: list[Arm]) -> Table:
    columns = ("requests", "served by other", "keys", "finish reasons", "aborted", "errors", "first byte p50, p95")
    table = Table("arm", "weight", *columns, "ratings", "rating keys", "mean", "95 % interval")
    for arm in arms:
        sample, times = arm.sample, arm.first_byte_ms
        finish_reasons = ", ".join(f"{name} {count:,}" for name, count in arm.finish_reasons.items())
        table.add_row(
            Text(printable(arm.name)),
            f"{arm.weight:g}",
            f"{arm.requests:,}",
            f"{arm.served_by_other:,}",
            f"{arm.keys:,}",
            Text(printable(finish_reasons or NO_VALUE)),
            f"{arm.aborted:,} ({arm.aborted / arm.requests:.1%})" if arm.requests else NO_VALUE,
            f"{arm.errors:,}",
            NO_VALUE if times.p50 is None else f"{times.p50:.1f}, {times.p95:.1f} ms",
            f"{arm.ratings:,}",
            f"{sample.keys if sample else 0:,}",
            f"{sample.mean:.4f}" if sample else NO_VALUE,
            _interval(arm.mean),
        )
    return table


def _comparison_table(comparisons: list[Comparison]) -> Table:
    columns = ("difference", "95 % interval", "p", "p (Holm)", "target", "keys needed", "days needed")
    table = Table("arm", "baseline", *columns)
    for comparison in comparisons:
        target, arm_keys, baseline_keys = (
            comparison.target_difference,
            comparison.keys_needed,
            comparison.baseline_keys_needed,
        )
        table.add_row(
            Text(printable(comparison.arm)),
            Text(printable(comparison.baseline)),
            f"{comparison.difference:+.4f}",
            _interval(comparison.interval),
            _p_value(comparison.p),
            _p_value(comparison.p_holm),
            NO_VALUE if target is None else f"{target:.4g}",
            NO_VALUE if arm_keys is None else f"{arm_keys:,} and {baseline_keys:,}",
            NO_VALUE if comparison.days is None else f"{comparison.days:,.1f}",
        )
    return table


def _verdict(comparison: Comparison) -> str:
    arm, baseline, p = comparison.arm, comparison.baseline, comparison.p_holm
    if p is None:
        return f"{arm} and {baseline}: too few ratings to compare, or all ratings are equal."
    if comparison.is_significant:
        return f"{arm} is {'better' if comparison.difference > 0 else 'worse'} than {baseline} (p {_p_value(p)})."
    return f"{arm} and {baseline}: no significant difference (p {_p_value(p)})."


def _sample_ratio(experiment: Experiment) -> Iterator[str]:
    p = experiment.sample_ratio_p
    if not experiment.is_trusted:
        keys = ", ".join(f"{arm.name} {arm.keys:,}" for arm in experiment.arms)
        yield (
            f"SAMPLE RATIO MISMATCH: the numbers of keys do not match the weights ({keys}; p {_p_value(p)}, below "
            f"{RATIO_ALPHA:g}). The arms have different kinds of users, or lines are missing: do not trust this result."
        )
    elif p is None and sum(arm.weight > 0 for arm in experiment.arms) > 1:
        yield "Too few keys to test whether their numbers match the weights."


def _notes(experiment: Experiment, power: float) -> list[str]:
    notes: list[str] = []
    if changed := [arm.name for arm in experiment.arms if arm.content_versions > 1]:
        notes.append(
            f"The adapter files of {', '.join(changed)} changed in this period: their versions are counted together."
        )
    scores = [score for arm in experiment.arms for score in arm.scores or ()]
    if scores and not 0 <= min(scores) <= max(scores) <= 1:
        notes.append(
            f"The scores are from {min(scores):g} to {max(scores):g}: means can be compared only if all clients used "
            "the same scale (`router.feedback`)."
        )
    without_user = experiment.key_sources.get("request", 0)
    if without_user:
        total = sum(experiment.key_sources.values())
        notes.append(
            f"{without_user:,} of {total:,} requests did not identify a user and were assigned separately: one user "
            "can get several arms."
        )
    if any(comparison.keys_needed is not None for comparison in experiment.comparisons):
        notes.append(
            "`keys needed` (of the arm, and of the baseline) detect a difference as large as `target` with a "
            f"probability of {power:g} at 95 % confidence, if you look at the result once. Repeated looks find too "
            "many differences."
        )
    return notes


def _interval(estimate: Estimate | None) -> str:
    return NO_VALUE if estimate is None else f"{estimate.low:.4f} to {estimate.high:.4f}"


def _p_value(p: float | None) -> str:
    return NO_VALUE if p is None else "below 0.0001" if p < 0.0001 else f"{p:.4f}"


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
