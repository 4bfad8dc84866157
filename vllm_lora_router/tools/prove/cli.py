"""`vllm-lora-router prove`: whether each category's adapter helps, by the likelihood of reference answers."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from vllm_lora_router.config import ConfigError, Loaded, configured_file, load
from vllm_lora_router.config.served_base import ServedBase, served_base
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.options import at_least_one
from vllm_lora_router.tools.prove.assignments import assigned
from vllm_lora_router.tools.prove.endpoint import Endpoint, ProofError, Served
from vllm_lora_router.tools.prove.matrix import Proof, prove
from vllm_lora_router.tools.prove.pairs import Read, read_pairs
from vllm_lora_router.tools.prove.tables import columns, differences, matrix

WRONG = 3  # exit status

DESCRIPTION = """
Asks a running server's base, and every adapter that the configuration's categories name, how likely they find reference
answers, and says of each category whether its adapter helps, should be the base, or another one would do better.
"""
EPILOG = """
Exit status: 0 when no assignment is found wrong, 3 when one is, 1 when the proof could not be done.
"""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    said = "say whether each category's adapter helps, by a running server"
    parser = subparsers.add_parser("prove", help=said, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("config", nargs="?", type=Path, default=configured_file(), help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSONL or CSV with the fields prompt (or text), answer and category",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server; default: %(default)s")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds its API key")
    parser.add_argument(
        "--models", nargs="+", metavar="ADAPTER", help="adapters to ask; default: all that categories name"
    )
    parser.add_argument(
        "--tokens",
        type=at_least_one,
        default=32,
        metavar="N",
        help="of an answer that are asked about, evenly spread, each by a request to every model; default: %(default)s",
    )
    parser.add_argument(
        "--at-once",
        type=at_least_one,
        default=16,
        metavar="N",
        help="requests under way at a time; default: %(default)s",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=120.0, metavar="S", help="seconds for each request; default: %(default)g"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when no assignment is found wrong, 3 when one is, 1 when the proof could not be done."""
    try:
        if args.json and not args.json.parent.is_dir():
            raise ProofError(f"{args.json}: there is no folder {args.json.parent}; make it first")
        read, proof = asyncio.run(_prove(args, _key(args.api_key_env)))
    except (ConfigError, DataError, ProofError) as error:
        problems = error.problems if isinstance(error, ConfigError | DataError) else [error]
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1
    for warning in (*read.warnings, *proof.measurements.left_out):
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(proof.as_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    _print(Console(), proof)
    return WRONG if proof.is_wrong else 0


async def _prove(args: argparse.Namespace, api_key: str | None) -> tuple[Read, Proof]:
    async with Endpoint(args.url, api_key=api_key, timeout_s=args.timeout) as endpoint:
        served = await endpoint.served()
        loaded, base = _configuration(args.config, served)
        read = read_pairs(args.data, [category.name for category in loaded.config.categories])
        if not read.pairs:
            raise DataError([*read.warnings, f"{', '.join(map(str, args.data))}: no pair to ask"])
        asked = assigned(loaded, base, served, args.models)
        shown = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as progress:
            what = f"asking {len(asked.models)} models {len(read.pairs):,} answers"
            task = progress.add_task(what, total=None)
            proof = await prove(
                endpoint,
                asked,
                served,
                read.pairs,
                tokens=args.tokens,
                at_once=args.at_once,
                seed=args.seed,
                planned=lambda requests: progress.update(task, total=requests),
                advance=lambda: progress.advance(task),
            )
    return read, proof


def _configuration(file: Path, served: Served) -> tuple[Loaded, ServedBase]:
    """The configuration for the base that the server serves; adapters may be declared by the server alone."""
    loaded = load(file, adapters=served.adapters)
    return loaded, served_base(loaded, served.bases)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise ProofError(f"the environment variable {variable} is not set, and --api-key-env names it")
    return key


def _print(console: Console, proof: Proof) -> None:
    def say(sentence: str, style: str = "") -> None:
        console.print(Text(printable(sentence), style=style), soft_wrap=True)

    shown = columns(proof)
    console.print(matrix(proof, shown))
    if more := len(proof.assigned.models) - len(shown):
        say(f"{more} more adapter{'s' * (more != 1)} did not fit here; --json has all.")
    console.print(differences(proof))
    for note in proof.measurements.notes:
        say(f"{note}.")
    styles = {"base": "red", "other": "red", "helps": "green", "untold": "yellow"}
    for row in proof.rows:
        say(f"{row.verdict.text}.", styles.get(row.verdict.kind, ""))
    if without := [name for name in proof.assigned.served_by if name not in {row.category for row in proof.rows}]:
        say(f"Not judged, for want of pairs: {', '.join(without)}.")


def _seconds(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value
