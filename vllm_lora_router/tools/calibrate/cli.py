"""`vllm-lora-router calibrate`: thresholds for a wanted precision or share of the traffic, as YAML to paste."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config import Loaded, configured_file
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.config.yaml_document import Path_, dotted
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.audit.filters import Filter, moment
from vllm_lora_router.tools.audit.join import joined
from vllm_lora_router.tools.audit.reader import Record, RecordError
from vllm_lora_router.tools.calibrate.choose import Chosen, confident, for_precision, for_share, plain
from vllm_lora_router.tools.calibrate.labelled import score
from vllm_lora_router.tools.calibrate.recorded import FeedbackError, Traffic, labelled_of, read_traffic, scored_of
from vllm_lora_router.tools.calibrate.scored import FEWEST, Scored, too_few
from vllm_lora_router.tools.calibrate.table import table
from vllm_lora_router.tools.calibrate.yaml_patch import to_paste
from vllm_lora_router.tools.data.examples import read_examples
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.cli import Refused, add_data, warn_of_own
from vllm_lora_router.tools.options import add_base_options, load_or_report, share
from vllm_lora_router.tools.progress import bars

Choose = Callable[[Scored], Chosen]


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("calibrate", help="choose thresholds by labelled prompts or recorded requests")
    parser.add_argument("config", nargs="?", type=Path, default=configured_file(), help="default: %(default)s")
    source = parser.add_mutually_exclusive_group(required=True)
    add_data(source, required=False)
    source.add_argument(
        "--record", nargs="+", type=Path, metavar="FOLDER", help="the folder of router.audit.path, or files of it"
    )
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument(
        "--precision", type=share, metavar="P", help="of what each threshold lets through; default: 0.95"
    )
    wanted.add_argument("--share", type=share, metavar="S", help="of the prompts that are to be answered")
    parser.add_argument(
        "--confident", action="store_true", help="the lower end of the precision's 95 %% interval must reach it"
    )
    parser.add_argument("--since", type=moment, metavar="WHEN", help="of the record: 2026-01-31T12:00:00Z, or 2h, 7d")
    parser.add_argument("--until", type=moment, metavar="WHEN", help="likewise")
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when a threshold could be chosen, 1 when none could, or the configuration or the data cannot be used."""
    if args.confident and args.share is not None:
        print("--confident is of a precision, and --share asks for none; leave one of them out", file=sys.stderr)
        return 1
    if (read := load_or_report(args.config, args)) is None:
        return 1
    loaded, base = read
    try:
        found = _of_data(args, loaded) if args.data else _of_record(args, loaded, base)
    except (Refused, ClassifierError, DataError, RecordError, FeedbackError) as error:
        print(error, file=sys.stderr)
        return 1
    return _choose(args, loaded, found)


def _of_data(args: argparse.Namespace, loaded: Loaded) -> list[Scored]:
    read = read_examples(args.data, [category.name for category in loaded.config.categories])
    for warning in read.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if not read.examples:
        raise Refused(f"{', '.join(map(str, args.data))}: there is no prompt in it that can be used")
    warn_of_own(loaded, read.examples)
    with bars() as told:
        found = score(loaded, read.examples, told)
    if not found:
        raise Refused(f"{loaded.file}: has no threshold to choose: embedding rules, a head and a domain model have one")
    return found


def _of_record(args: argparse.Namespace, loaded: Loaded, base: ServedBase) -> list[Scored]:
    record = Record.of(*args.record)
    traffic = read_traffic(joined(record, Filter(since=args.since, until=args.until).takes), loaded, base)
    for sentence in record.missing.sentences():
        print(f"warning: {printable(sentence)}", file=sys.stderr)
    _print_traffic(traffic, loaded)
    if not traffic.rows:
        raise Refused(f"{args.record[0]}: no decision in it has scores of embedding rules, a head or a domain model")
    if args.share is not None:
        return scored_of(traffic, loaded)
    if found := labelled_of(traffic, loaded):
        return found
    raise Refused(
        f"{args.record[0]}: nothing in it says which category would have been right, so no precision can be had. "
        "Thresholds for a share of the traffic can: --share 0.8. Labels are the adapters that clients name under "
        "router.mode: observe, and feedback (POST /v1/router/feedback); or label some prompts for --data"
    )


def _print_traffic(traffic: Traffic, loaded: Loaded) -> None:
    methods = ", ".join(f"{method} {len(rows):,}" for method, rows in traffic.rows.items()) or "none"
    labels = ", ".join(f"{what} {count:,}" for what, count in traffic.labels.items()) or "none"
    print(f"{traffic.decisions:,} decisions; scored by {methods}; labelled by {labels}")
    others = {version: count for version, count in traffic.configs.items() if version != loaded.version}
    if others:
        said = ", ".join(f"{version} ({count:,})" for version, count in others.items())
        print(
            f"warning: decisions by other configurations than {loaded.version}: {said}; their scores are these only "
            "where models, rules and examples are the same",
            file=sys.stderr,
        )
    if traffic.unknown:
        said = ", ".join(f"{printable(str(name))} ({count:,})" for name, count in traffic.unknown.items())
        print(f"warning: what clients name serves no category, and is no label: {said}", file=sys.stderr)


def _choose(args: argparse.Namespace, loaded: Loaded, found: Sequence[Scored]) -> int:
    console = Console()
    changed: dict[Path_, float] = {}
    chosen_any = False
    for scored in found:
        chosen = _chooser(args)(scored)
        console.print(table(scored, chosen), soft_wrap=True)
        for knob, value, why in zip(scored.knobs, chosen.thresholds, chosen.why_not, strict=True):
            chosen_any |= why is None
            if value != knob.threshold:
                changed[knob.path] = value
            if why is not None:
                print(f"{printable(dotted(knob.path))} is left as it is: {printable(why)}", file=sys.stderr)
        few = too_few(scored) if scored.right is not None and len(scored.knobs) == 1 else []
        if few:
            said = printable(", ".join(few))
            print(f"warning: {scored.method}: fewer than {FEWEST} prompts are labelled {said}", file=sys.stderr)
    _print_notes(args, loaded)
    if not chosen_any:
        print("no threshold could be chosen", file=sys.stderr)
        return 1
    text = to_paste(loaded, changed)
    print(f"\nto paste into {loaded.file.name}:\n\n{text}" if text else "\nevery threshold stays as it is", end="\n")
    return 0


def _chooser(args: argparse.Namespace) -> Choose:
    if args.share is not None:
        return lambda scored: for_share(scored, args.share)
    least = 0.95 if args.precision is None else args.precision
    return lambda scored: for_precision(scored, least, confident if args.confident else plain)


def _print_notes(args: argparse.Namespace, loaded: Loaded) -> None:
    print(
        "These figures are of the prompts that the thresholds were chosen on, which flatters: measure others with "
        "vllm-lora-router evaluate."
    )
    if loaded.config.classifier.mcp_category_model.enabled:
        print("The tool's threshold (classifier.mcp_category_model.threshold) is left alone: no tool is asked here.")
