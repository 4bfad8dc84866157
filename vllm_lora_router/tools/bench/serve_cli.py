"""The command `vllm-lora-router bench serve`: compare servers with and without the router and with a proxy."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.text import printable
from vllm_lora_router.tools.bench.serve import settings
from vllm_lora_router.tools.bench.serve.measure import BenchmarkPlan, measure
from vllm_lora_router.tools.bench.serve.questions import AdapterMix, routed_questions
from vllm_lora_router.tools.bench.serve.server_processes import peak_mib
from vllm_lora_router.tools.bench.serve.servers import PLAIN, ROUTED, RunningServers, start_servers
from vllm_lora_router.tools.bench.serve.starts import combine_starts
from vllm_lora_router.tools.bench.serve.tables import Cell, memory, problems, tables
from vllm_lora_router.tools.demo.server import ServerFailedError
from vllm_lora_router.tools.evaluate.targets import TargetError
from vllm_lora_router.tools.fit.distill import DistillError
from vllm_lora_router.tools.options import at_least_one, report_missing
from vllm_lora_router.tools.progress import progress_bars


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the benchmark to the parser."""
    parser = kinds.add_parser(
        "serve",
        help="measure what routing adds to a request, compared with a proxy",
        description="Start vLLM with and without the router, a lean proxy with the same classifiers, and LiteLLM's "
        "proxy if it is installed. Send the same questions to all of them in turn. vLLM flags may follow after --.",
    )
    served = parser.add_argument_group("served models")
    served.add_argument(
        "--base", default="demo", help="demo, a shape with random weights (Llama-3-8B, Llama-68M), a folder or a hub id"
    )
    served.add_argument(
        "--classifier",
        choices=("static", "MiniLM", "domain"),
        default="static",
        help="classifier besides keywords: a static encoder, all-MiniLM-L6-v2 or the demo's domain model "
        "(default: %(default)s)",
    )
    served.add_argument("--no-proxy", action="store_true", help="leave out the lean proxy")
    served.add_argument(
        "--litellm", type=Path, metavar="PYTHON", help="Python interpreter of a separate environment "
        "with LiteLLM and semantic-router (default: no comparison with LiteLLM)",
    )  # fmt: skip
    served.add_argument("--directory", type=Path, default=Path(".demo"), help="folder for the models (default: .demo)")
    running = parser.add_argument_group("running servers, instead of started ones")
    running.add_argument("--url", help="URL of a server with the router")
    running.add_argument(
        "--plain-url", help="URL of a server without the router, with the same base model and adapters"
    )
    running.add_argument(
        "--questions", type=Path, metavar="FILE", help="one question per line, all routed to adapters by that server"
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--callers",
        nargs="+",
        type=at_least_one,
        default=[1, 16],
        help="concurrent clients; 1: one request at a time, in pairs (default: 1 16)",
    )
    load.add_argument(
        "--open",
        nargs="*",
        type=float,
        default=[],
        metavar="SHARE",
        help="arrival rates, as shares of the highest closed-loop rate",
    )
    load.add_argument("--prompt-tokens", nargs="+", type=int, default=[0], help="minimum length (default: 0, as is)")
    load.add_argument("--answer-tokens", type=at_least_one, default=8, help="default: %(default)s")
    load.add_argument("--zipf", nargs="+", type=float, default=[0.0], help="exponents of Zipf's law (default: 0)")
    load.add_argument("--pairs", type=at_least_one, default=100, help="pairs of one client (default: %(default)s)")
    load.add_argument("--rounds", type=at_least_one, default=6, help="rounds of several clients (default: 6)")
    load.add_argument("--seconds", type=float, default=2.0, help="for each setup in a round (default: 2)")
    load.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    load.add_argument(
        "--starts",
        type=at_least_one,
        default=1,
        help="restarts of all servers, because two processes of the same server differ in speed (default: 1)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also plot the figures to this file")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="vLLM flags, after --")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; return 0 if everything was measured and answered, else 1. Completed starts are kept."""
    from vllm_lora_router.tools.bench.machine import machine
    from vllm_lora_router.tools.bench.serve import litellm

    if report_missing("bench serve", "bench", "scipy"):
        return 1
    if (args.url is None) != (args.questions is None):
        print(
            "--url and --questions must be given together: the questions depend on the server's configuration",
            file=sys.stderr,
        )
        return 1
    if args.url is not None and args.starts > 1:
        print(
            "--starts cannot be combined with --url: running servers are not restarted; leave out one of them",
            file=sys.stderr,
        )
        return 1
    about = {**machine(), "base": args.url or args.base, "command": " ".join(sys.argv[1:])}
    if args.litellm is not None:
        if (litellm_version := litellm.version(args.litellm)) is None:
            print(
                f"{args.litellm}: LiteLLM is not installed there; pip install 'litellm[proxy,semantic-router]'",
                file=sys.stderr,
            )
            return 1
        about["litellm"] = litellm_version
    # Output that is not a terminal has no width limit.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    description = ", ".join(f"{name} {value}" for name, value in about.items())
    console.print(Text(description), soft_wrap=True)
    starts: list[list[Cell]] = []
    peaks: dict[str, float] = {}
    complete = True
    try:
        for seed in range(args.seed, args.seed + args.starts):
            with (
                tempfile.TemporaryDirectory() as folder,
                _running_targets(args) if args.url else _started_targets(args, Path(folder), seed=seed) as targets,
            ):
                starts.append(asyncio.run(_measure(args, console, targets, seed=seed)))
                peaks = {name: max(mib, peaks.get(name, 0.0)) for name, mib in _peaks(targets.servers)}
    except (ServerFailedError, TargetError, ClassifierError, DistillError, OSError, KeyboardInterrupt) as error:
        print(str(error) or "interrupted", file=sys.stderr)
        complete = False
    if not starts:
        return 1
    cells = starts[0]
    if len(starts) > 1:
        cells = combine_starts(starts)
        for table in (table for cell in cells for table in tables(cell)):
            console.print(table)
    if peaks:
        console.print(memory(peaks))
    found_problems = [problem for cell in cells for problem in problems(cell)]
    for problem in found_problems:
        console.print(Text(printable(problem), style="yellow"), soft_wrap=True)
    if args.json:
        content = {
            **about,
            "cells": _as_dicts(cells),
            "starts": [_as_dicts(start) for start in starts],
            "memory_mib": peaks,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.plot:
        from vllm_lora_router.tools.bench.serve.plot import plot

        plot(cells, args.plot, description)
    return 0 if complete and not any(row.failed for cell in cells for row in cell.rows) else 1


@dataclass(frozen=True)
class _Targets:
    """Running servers and the questions for them."""

    servers: RunningServers
    texts: Sequence[str]
    methods: Sequence[str]  # methods that decide the questions


@contextmanager
def _running_targets(args: argparse.Namespace) -> Iterator[_Targets]:
    urls = {ROUTED: args.url.rstrip("/")}
    if args.plain_url:
        urls = {PLAIN: args.plain_url.rstrip("/"), **urls}
    lines = [line.strip() for line in args.questions.read_text("utf-8").splitlines()]
    yield _Targets(RunningServers(urls, {}), [line for line in lines if line], ("keyword", "embedding", "domain"))


@contextmanager
def _started_targets(args: argparse.Namespace, folder: Path, *, seed: int) -> Iterator[_Targets]:
    from vllm_lora_router.tools.bench.serve.models import base_with_adapters, classifier_folder

    directory = args.directory.resolve()
    base = base_with_adapters(args.base, directory)
    config = folder / "config.yaml"
    config.write_text(settings.configuration(args.classifier, classifier_folder(args.classifier, directory)))
    with (
        Console(stderr=True).status("starting the servers"),
        contextlib.ExitStack() as running,
    ):
        servers = running.enter_context(
            start_servers(
                base, config, directory, args.flags, proxy=not args.no_proxy, litellm_python=args.litellm, seed=seed
            )
        )
        stop = running.pop_all()
    with stop:
        yield _Targets(servers, settings.held_out_questions(), ("keyword", settings.method_of(args.classifier)))


def _as_dicts(cells: Sequence[Cell]) -> list[dict[str, object]]:
    return [dataclasses.asdict(cell) for cell in cells]


def _peaks(servers: RunningServers) -> Iterator[tuple[str, float]]:
    for processes in servers.processes.values():
        yield from ((name, round(peak_mib(process), 1)) for name, process in processes.items() if process.is_running())


async def _measure(args: argparse.Namespace, console: Console, targets: _Targets, *, seed: int) -> list[Cell]:
    questions = await routed_questions(targets.servers.urls[ROUTED], targets.texts, targets.methods)
    if not questions:
        raise TargetError(
            f"{targets.servers.urls[ROUTED]}: no question is routed to an adapter by {', '.join(targets.methods)}"
        )
    plan = BenchmarkPlan(
        clients=args.callers,
        open=args.open,
        prompt_tokens=args.prompt_tokens,
        answer_tokens=args.answer_tokens,
        mixes=[AdapterMix(exponent) for exponent in args.zipf],
        pairs=args.pairs,
        rounds=args.rounds,
        seconds=args.seconds,
        seed=seed,
    )
    methods = [method for method in targets.methods if any(question.method == method for question in questions)]
    cells = []
    with progress_bars() as report_progress:
        async for cell in measure(targets.servers, questions, methods, plan, report_progress):
            for table in tables(cell):
                console.print(table)
            cells.append(cell)
    return cells
