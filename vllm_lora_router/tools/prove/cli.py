"""`vllm-lora-router prove`: test whether each category's adapter helps, by the likelihood of reference answers."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from vllm_lora_router.config import ConfigError, LoadedConfig, load
from vllm_lora_router.config.served_base import ServedBase, served_base
from vllm_lora_router.text import printable
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.options import add_config_argument, at_least_one, report_missing
from vllm_lora_router.tools.prove.assignments import read_assignments
from vllm_lora_router.tools.prove.endpoint import Endpoint, ProveError, ServedModels
from vllm_lora_router.tools.prove.matrix import Matrix, build_matrix
from vllm_lora_router.tools.prove.pairs import PairSet, read_pairs
from vllm_lora_router.tools.prove.tables import gain_table, likelihood_table, shown_models

EXIT_WRONG_ASSIGNMENT = 3

DESCRIPTION = """
Scores reference answers on a running server under the base model and every adapter that the configuration's categories
name. For each category, reports whether its adapter helps, whether the base is better, or whether another adapter is
better.
"""
EPILOG = """
Exit status: 0 if no assignment is wrong, 3 if one is wrong, 1 if the answers cannot be scored.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `prove` subcommand."""
    summary = "test on a running server whether each category's adapter helps"
    parser = subparsers.add_parser("prove", help=summary, description=DESCRIPTION, epilog=EPILOG)
    add_config_argument(parser)
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL or CSV files with the fields prompt (or text), answer and category.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server (default: %(default)s).")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key (default: no key)."
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="ADAPTER",
        help="Adapters to score (default: every adapter that a category names).",
    )
    parser.add_argument(
        "--tokens",
        type=at_least_one,
        default=32,
        metavar="N",
        help="Maximum number of scored tokens per answer, evenly spaced; each is one request per model "
        "(default: %(default)s).",
    )
    parser.add_argument(
        "--at-once",
        type=at_least_one,
        default=16,
        metavar="N",
        help="Maximum number of concurrent requests (default: %(default)s).",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="Timeout of each request in seconds (default: %(default)g).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the bootstrap (default: %(default)s).")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="Also write all results to this file (default: none)."
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if no assignment is wrong, 3 if one is wrong, 1 if the answers cannot be scored."""
    if report_missing("prove", "evaluate", "scipy"):
        return 1
    try:
        if args.json and not args.json.parent.is_dir():
            raise ProveError(f"{args.json}: the folder {args.json.parent} does not exist; create it first")
        pairs, matrix = asyncio.run(_prove(args, _api_key(args.api_key_env)))
    except (ConfigError, DataError, ProveError) as error:
        problems = error.problems if isinstance(error, ConfigError | DataError) else [error]
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1
    for warning in (*pairs.warnings, *matrix.scores.left_out):
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(matrix.as_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    _print_matrix(Console(), matrix)
    return EXIT_WRONG_ASSIGNMENT if matrix.is_wrong else 0


async def _prove(args: argparse.Namespace, api_key: str | None) -> tuple[PairSet, Matrix]:
    async with Endpoint(args.url, api_key=api_key, timeout_s=args.timeout) as endpoint:
        served = await endpoint.models()
        loaded, base = _load_config(args.config, served)
        pairs = read_pairs(args.data, [category.name for category in loaded.config.categories])
        if not pairs.pairs:
            raise DataError([*pairs.warnings, f"{', '.join(map(str, args.data))}: no pair can be scored"])
        assignments = read_assignments(loaded, base, served, args.models)
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            description = f"scoring {len(pairs.pairs):,} answers under {len(assignments.models)} models"
            task = progress.add_task(description, total=None)
            matrix = await build_matrix(
                endpoint,
                assignments,
                served,
                pairs.pairs,
                tokens=args.tokens,
                concurrency=args.at_once,
                seed=args.seed,
                on_planned=lambda requests: progress.update(task, total=requests),
                on_request=lambda: progress.advance(task),
            )
    return pairs, matrix


def _load_config(file: Path, served: ServedModels) -> tuple[LoadedConfig, ServedBase]:
    """Load the configuration for the server's base; adapters may be declared on the server only."""
    loaded = load(file, adapters=served.adapters)
    return loaded, served_base(loaded, served.bases)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise ProveError(f"--api-key-env: the environment variable {variable} is not set")
    return key


def _print_matrix(console: Console, matrix: Matrix) -> None:
    def print_line(sentence: str, style: str = "") -> None:
        console.print(Text(printable(sentence), style=style), soft_wrap=True)

    models = shown_models(matrix)
    console.print(likelihood_table(matrix, models))
    if hidden := len(matrix.assignments.models) - len(models):
        print_line(f"{hidden} more adapter{'s' * (hidden != 1)} not shown; --json has all.")
    console.print(gain_table(matrix))
    for note in matrix.scores.notes:
        print_line(f"{note}.")
    styles = {"use_base": "red", "use_other": "red", "helps": "green", "inconclusive": "yellow"}
    for row in matrix.rows:
        print_line(f"{row.verdict.text}.", styles.get(row.verdict.kind, ""))
    judged = {row.category for row in matrix.rows}
    if without_pairs := [name for name in matrix.assignments.served_by if name not in judged]:
        print_line(f"No pairs, and so no verdict: {', '.join(without_pairs)}.")


def _seconds(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value
