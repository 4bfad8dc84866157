"""`vllm-lora-router calibrate`: choose thresholds for a minimum precision or for a share of the traffic."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.config.yaml_document import KeyPath, format_key_path
from vllm_lora_router.text import printable
from vllm_lora_router.tools.audit.filters import DecisionFilter, parse_time
from vllm_lora_router.tools.audit.join import join_decisions
from vllm_lora_router.tools.audit.reader import AuditRecord, AuditRecordError
from vllm_lora_router.tools.calibrate.choose import (
    ThresholdChoice,
    choose_for_precision,
    choose_for_share,
    observed_precision,
    precision_lower_bound,
)
from vllm_lora_router.tools.calibrate.labelled import score_examples
from vllm_lora_router.tools.calibrate.recorded import (
    FeedbackError,
    Traffic,
    all_scores,
    labelled_scores,
    read_traffic,
)
from vllm_lora_router.tools.calibrate.scores import MIN_LABELLED, MethodScores, rarely_labelled
from vllm_lora_router.tools.calibrate.table import threshold_table
from vllm_lora_router.tools.calibrate.yaml_patch import yaml_patch
from vllm_lora_router.tools.data.examples import read_examples
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.cli import CommandError, add_data_option, warn_about_configured_examples
from vllm_lora_router.tools.options import add_base_options, add_config_argument, load_or_report, report_missing, share
from vllm_lora_router.tools.progress import progress_bars

DEFAULT_PRECISION = 0.95


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `calibrate` subcommand."""
    parser = subparsers.add_parser("calibrate", help="choose thresholds from labelled prompts or recorded requests")
    add_config_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    add_data_option(source, required=False)
    source.add_argument(
        "--record",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="Audit record to use instead of --data: the folder of router.audit.path, or files in it.",
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--precision",
        type=share,
        metavar="P",
        help=f"Minimum precision among accepted requests (default: {DEFAULT_PRECISION}).",
    )
    goal.add_argument(
        "--share", type=share, metavar="S", help="Share of the requests to accept, instead of a minimum precision."
    )
    parser.add_argument(
        "--confident",
        action="store_true",
        help="Require the minimum of the lower end of the precision's 95 %% interval (default: of the precision "
        "itself).",
    )
    parser.add_argument(
        "--since",
        type=parse_time,
        metavar="TIME",
        help="Use decisions of the record from this time on: 2026-01-31T12:00:00Z, or 2h, 7d ago (default: all).",
    )
    parser.add_argument(
        "--until",
        type=parse_time,
        metavar="TIME",
        help="Use decisions of the record before this time, in the same form (default: all).",
    )
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if a threshold was chosen, 1 if none was, or the configuration or the data cannot be used."""
    if report_missing("calibrate", "evaluate", "scipy"):
        return 1
    if args.confident and args.share is not None:
        print("--confident applies to --precision, not to --share; leave one of them out", file=sys.stderr)
        return 1
    if (result := load_or_report(args.config, args)) is None:
        return 1
    loaded, base = result
    try:
        scores = _scores_of_data(args, loaded) if args.data else _scores_of_record(args, loaded, base)
    except (CommandError, ClassifierError, DataError, AuditRecordError, FeedbackError) as error:
        print(error, file=sys.stderr)
        return 1
    return _choose(args, loaded, scores)


def _scores_of_data(args: argparse.Namespace, loaded: LoadedConfig) -> list[MethodScores]:
    data = read_examples(args.data, [category.name for category in loaded.config.categories])
    for warning in data.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if not data.examples:
        raise CommandError(f"{', '.join(map(str, args.data))}: no usable prompt")
    warn_about_configured_examples(loaded, data.examples)
    with progress_bars() as report_progress:
        scores = score_examples(loaded, data.examples, report_progress)
    if not scores:
        raise CommandError(
            f"{loaded.file}: has no threshold to choose; configure embedding rules, a head or a domain model"
        )
    return scores


def _scores_of_record(args: argparse.Namespace, loaded: LoadedConfig, base: ServedBase) -> list[MethodScores]:
    record = AuditRecord.open(*args.record)
    decisions = join_decisions(record, DecisionFilter(since=args.since, until=args.until).matches)
    traffic = read_traffic(decisions, loaded, base)
    for sentence in record.missing.sentences():
        print(f"warning: {printable(sentence)}", file=sys.stderr)
    _print_traffic(traffic, loaded)
    if not traffic.rows:
        raise CommandError(f"{args.record[0]}: no decision has scores of embedding rules, a head or a domain model")
    if args.share is not None:
        return all_scores(traffic, loaded)
    if scores := labelled_scores(traffic, loaded):
        return scores
    raise CommandError(
        f"{args.record[0]}: contains no labels, so precision is unknown. Choose thresholds for a share of the traffic "
        "(--share 0.8), label prompts for --data, or collect labels: models that clients request under router.mode: "
        "observe, or feedback (POST /v1/router/feedback)"
    )


def _print_traffic(traffic: Traffic, loaded: LoadedConfig) -> None:
    methods = ", ".join(f"{method} {len(rows):,}" for method, rows in traffic.rows.items()) or "none"
    labels = ", ".join(f"{source} {count:,}" for source, count in traffic.labels.items()) or "none"
    print(f"{traffic.decisions:,} decisions; scored prompts: {methods}; labels: {labels}")
    others = {version: count for version, count in traffic.configs.items() if version != loaded.version}
    if others:
        versions = ", ".join(f"{version} ({count:,})" for version, count in others.items())
        print(
            f"warning: some decisions are by other configurations than {loaded.version}: {versions}; their scores "
            "apply only if models, rules and examples are the same",
            file=sys.stderr,
        )
    if traffic.unknown:
        models = ", ".join(f"{printable(str(name))} ({count:,})" for name, count in traffic.unknown.items())
        print(f"warning: requested models that serve no category are ignored as labels: {models}", file=sys.stderr)


def _choose(args: argparse.Namespace, loaded: LoadedConfig, all_methods: Sequence[MethodScores]) -> int:
    console = Console()
    changes: dict[KeyPath, float] = {}
    any_chosen = False
    choose = _chooser(args)
    for scores in all_methods:
        choice = choose(scores)
        console.print(threshold_table(scores, choice), soft_wrap=True)
        for threshold, value, reason in zip(scores.thresholds, choice.values, choice.unchanged, strict=True):
            any_chosen |= reason is None
            if value != threshold.value:
                changes[threshold.path] = value
            if reason is not None:
                path = format_key_path(threshold.path)
                print(f"{printable(path)} stays unchanged: {printable(reason)}", file=sys.stderr)
        rare = rarely_labelled(scores) if scores.correct is not None and len(scores.thresholds) == 1 else []
        if rare:
            names = printable(", ".join(rare))
            print(f"warning: {scores.method}: fewer than {MIN_LABELLED} prompts are labelled {names}", file=sys.stderr)
    _print_notes(loaded)
    if not any_chosen:
        print("no threshold could be chosen", file=sys.stderr)
        return 1
    patch = yaml_patch(loaded, changes)
    print(f"\npaste into {loaded.file.name}:\n\n{patch}" if patch else "\nall thresholds stay unchanged")
    return 0


def _chooser(args: argparse.Namespace) -> Callable[[MethodScores], ThresholdChoice]:
    if args.share is not None:
        return lambda scores: choose_for_share(scores, args.share)
    minimum = DEFAULT_PRECISION if args.precision is None else args.precision
    precision = precision_lower_bound if args.confident else observed_precision
    return lambda scores: choose_for_precision(scores, minimum, precision)


def _print_notes(loaded: LoadedConfig) -> None:
    print(
        "These figures are of the prompts that the thresholds were chosen on, so they are too high; measure other "
        "prompts with vllm-lora-router evaluate."
    )
    if loaded.config.classifier.mcp_category_model.enabled:
        print("The MCP threshold (classifier.mcp_category_model.threshold) stays unchanged: no MCP server is called.")
