"""`vllm-lora-router bench serve`: a server with the router, against one without, and against a proxy in front."""

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
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.bench.serve import settings
from vllm_lora_router.tools.bench.serve.measure import Extent, measure
from vllm_lora_router.tools.bench.serve.processes import peak_mib
from vllm_lora_router.tools.bench.serve.questions import Mix, decided
from vllm_lora_router.tools.bench.serve.servers import PLAIN, ROUTED, Fleet, fleet
from vllm_lora_router.tools.bench.serve.starts import together
from vllm_lora_router.tools.bench.serve.tables import Cell, memory, problems, tables
from vllm_lora_router.tools.demo.server import ServerFailed
from vllm_lora_router.tools.evaluate.targets import SubjectError
from vllm_lora_router.tools.fit.distill import DistillError
from vllm_lora_router.tools.options import at_least_one
from vllm_lora_router.tools.progress import bars


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the kind."""
    parser = kinds.add_parser(
        "serve",
        help="what routing adds to a request, and what a proxy in front would add",
        description="Starts vLLM twice, with the router and without, a lean proxy that classifies alike, and LiteLLM's "
        "proxy where it is installed; asks all of them the same questions in turns. Flags of vLLM may follow after --.",
    )
    what = parser.add_argument_group("what is served")
    what.add_argument(
        "--base", default="demo", help="demo, a shape with random weights (Llama-3-8B, Llama-68M), a folder or a hub id"
    )
    what.add_argument(
        "--classifier",
        choices=("static", "MiniLM", "domain"),
        default="static",
        help="beside keywords: a static encoder, all-MiniLM-L6-v2, or the demo's domain model; default: %(default)s",
    )
    what.add_argument("--no-proxy", action="store_true", help="without the lean proxy")
    what.add_argument(
        "--litellm", type=Path, metavar="PYTHON", help="the interpreter of an environment with "
        "semantic-router, whose pins do not go with vLLM's",
    )  # fmt: skip
    what.add_argument("--directory", type=Path, default=Path(".demo"), help="where models are built and kept")
    given = parser.add_argument_group("or servers that are up")
    given.add_argument("--url", help="of one with the router")
    given.add_argument("--plain-url", help="of one without it, with the same base and adapters")
    given.add_argument("--questions", type=Path, metavar="FILE", help="a question a line, that go to adapters there")
    load = parser.add_argument_group("load")
    load.add_argument(
        "--callers", nargs="+", type=at_least_one, default=[1, 16], help="1: pairs, one request at a time"
    )
    load.add_argument(
        "--open", nargs="*", type=float, default=[], metavar="SHARE", help="of the most callers' requests"
    )
    load.add_argument("--prompt-tokens", nargs="+", type=int, default=[0], help="at least; 0: the questions alone")
    load.add_argument("--answer-tokens", type=at_least_one, default=8)
    load.add_argument("--zipf", nargs="+", type=float, default=[0.0], help="how much more some adapters are asked for")
    load.add_argument("--pairs", type=at_least_one, default=100)
    load.add_argument("--rounds", type=at_least_one, default=6)
    load.add_argument("--seconds", type=float, default=2.0, help="of each way in a round")
    load.add_argument("--seed", type=int, default=0)
    load.add_argument(
        "--starts",
        type=at_least_one,
        default=1,
        help="of the servers; of two processes of one vLLM one is faster by itself",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="and a picture of them there")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="of vLLM, after --")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when everything was measured and answered as it should be, else 1; starts before one that fails are kept."""
    from vllm_lora_router.tools.bench.machine import machine
    from vllm_lora_router.tools.bench.serve import litellm

    if (args.url is None) != (args.questions is None):
        print("--url and --questions go together: what there is to be asked there is not known", file=sys.stderr)
        return 1
    if args.url is not None and args.starts > 1:
        print("--starts: servers that are up are not started again; leave out --url, or --starts", file=sys.stderr)
        return 1
    about = {**machine(), "base": args.url or args.base, "command": " ".join(sys.argv[1:])}
    if args.litellm is not None:
        if (found := litellm.version(args.litellm)) is None:
            print(
                f"{args.litellm}: has no LiteLLM; pip install 'litellm[proxy,semantic-router]' there", file=sys.stderr
            )
            return 1
        about["litellm"] = found
    # Not a terminal, no width to keep to.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    said = ", ".join(f"{name} {value}" for name, value in about.items())
    console.print(Text(said), soft_wrap=True)
    starts: list[list[Cell]] = []
    peaks: dict[str, float] = {}
    whole = True
    try:
        for start in range(args.starts):
            with (
                tempfile.TemporaryDirectory() as folder,
                _given(args) if args.url else _started(args, Path(folder), seed=args.seed + start) as up,
            ):
                starts.append(asyncio.run(_measured(args, console, up, seed=args.seed + start)))
                peaks = {name: max(mib, peaks.get(name, 0.0)) for name, mib in _peaks(up.fleet)}
    except (ServerFailed, SubjectError, ClassifierError, DistillError, OSError, KeyboardInterrupt) as error:
        print(str(error) or "interrupted", file=sys.stderr)
        whole = False
    if not starts:
        return 1
    cells = starts[0]
    if len(starts) > 1:
        cells = together(starts)
        for table in (table for cell in cells for table in tables(cell)):
            console.print(table)
    if peaks:
        console.print(memory(peaks))
    wrong = [problem for cell in cells for problem in problems(cell)]
    for problem in wrong:
        console.print(Text(printable(problem), style="yellow"), soft_wrap=True)
    if args.json:
        content = {**about, "cells": _plain(cells), "starts": [_plain(own) for own in starts], "memory_mib": peaks}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.plot:
        from vllm_lora_router.tools.bench.serve.plot import plot

        plot(cells, args.plot, said)
    return 0 if whole and not any(row.failed for cell in cells for row in cell.rows) else 1


@dataclass(frozen=True)
class _Up:
    """Servers that are up, and what to ask them."""

    fleet: Fleet
    texts: Sequence[str]
    methods: Sequence[str]  # whose questions are asked


@contextmanager
def _given(args: argparse.Namespace) -> Iterator[_Up]:
    urls = {ROUTED: args.url.rstrip("/")}
    if args.plain_url:
        urls = {PLAIN: args.plain_url.rstrip("/"), **urls}
    lines = [line.strip() for line in args.questions.read_text("utf-8").splitlines()]
    yield _Up(Fleet(urls, {}), [line for line in lines if line], ("keyword", "embedding", "domain"))


@contextmanager
def _started(args: argparse.Namespace, folder: Path, *, seed: int) -> Iterator[_Up]:
    from vllm_lora_router.tools.bench.serve.models import classifier_folder, served

    directory = args.directory.resolve()
    base = served(args.base, directory)
    config = folder / "config.yaml"
    config.write_text(settings.configuration(args.classifier, classifier_folder(args.classifier, directory)))
    with (
        Console(stderr=True).status("starting the servers"),
        contextlib.ExitStack() as running,
    ):
        up = running.enter_context(
            fleet(base, config, directory, args.flags, proxy=not args.no_proxy, litellm_python=args.litellm, seed=seed)
        )
        stop = running.pop_all()
    with stop:
        yield _Up(up, settings.asked(), ("keyword", settings.method_of(args.classifier)))


def _plain(cells: Sequence[Cell]) -> list[dict[str, object]]:
    return [dataclasses.asdict(cell) for cell in cells]


def _peaks(up: Fleet) -> Iterator[tuple[str, float]]:
    for own in up.processes.values():
        yield from ((name, round(peak_mib(process), 1)) for name, process in own.items() if process.is_running())


async def _measured(args: argparse.Namespace, console: Console, up: _Up, *, seed: int) -> list[Cell]:
    questions = await decided(up.fleet.urls[ROUTED], up.texts, up.methods)
    if not questions:
        raise SubjectError(f"{up.fleet.urls[ROUTED]}: none of the questions goes to an adapter by {up.methods}")
    extent = Extent(
        callers=args.callers,
        open=args.open,
        prompt_tokens=args.prompt_tokens,
        answer_tokens=args.answer_tokens,
        mixes=[Mix(exponent) for exponent in args.zipf],
        pairs=args.pairs,
        rounds=args.rounds,
        seconds=args.seconds,
        seed=seed,
    )
    methods = [method for method in up.methods if any(one.method == method for one in questions)]
    cells = []
    with bars() as told:
        async for cell in measure(up.fleet, questions, methods, extent, told):
            for table in tables(cell):
                console.print(table)
            cells.append(cell)
    return cells
