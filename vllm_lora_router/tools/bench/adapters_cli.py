"""The command `vllm-lora-router bench adapters`: measure the cost of more adapters than slots."""

import argparse
import asyncio
import dataclasses
import json
import secrets
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vllm_lora_router.tools.demo.server import Server, ServerFailedError
from vllm_lora_router.tools.options import at_least_one, report_missing

START_SECONDS = 900  # includes reading a large model


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the benchmark to the parser."""
    parser = kinds.add_parser(
        "adapters",
        help="measure switching to adapters by their location, and many adapters at once",
        description="Start a server with the router and write adapters for it. vLLM flags may follow after --.",
    )
    parser.add_argument(
        "--base",
        default="demo",
        help="base model: demo, a shape with random weights (Llama-3-8B, Llama-68M), a folder or a hub id "
        "(default: %(default)s)",
    )
    parser.add_argument("--slots", type=at_least_one, default=4, help="--max-loras (default: %(default)s)")
    parser.add_argument("--in-memory", type=at_least_one, default=12, help="--max-cpu-loras (default: %(default)s)")
    parser.add_argument(
        "--counts",
        nargs="+",
        type=at_least_one,
        default=[4, 12, 48],
        help="requested adapters (default: 4 12 48)",
    )
    parser.add_argument(
        "--zipf",
        nargs="+",
        type=float,
        default=[0.0, 1.0],
        help="exponents of Zipf's law (default: 0 1)",
    )
    parser.add_argument("--callers", type=at_least_one, default=16, help="concurrent clients (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=at_least_one, default=8, help="answer length (default: %(default)s)")
    parser.add_argument(
        "--switches",
        type=at_least_one,
        default=20,
        help="requests per location (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=at_least_one, default=3, help="rounds of many adapters (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per combination (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="folder for the models (default: .demo)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="vLLM flags, after --")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and return 0 if everything was measured."""
    from vllm_lora_router.tools.bench.adapters.serving import RequestFailedError
    from vllm_lora_router.tools.bench.machine import machine

    if report_missing("bench adapters", "bench", "scipy"):
        return 1
    about = {**machine(), "base": args.base, "command": " ".join(sys.argv[1:])}
    # Output that is not a terminal has no width limit.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(Text(", ".join(f"{name} {value}" for name, value in about.items())), soft_wrap=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = _measure(args, console, Path(folder))
    except (RequestFailedError, ServerFailedError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps({**about, **figures}, indent=1) + "\n")
    return 0


def _measure(args: argparse.Namespace, console: Console, folder: Path) -> dict[str, object]:
    from vllm_lora_router.tools.bench.adapters.many_adapters import measure_many_adapters
    from vllm_lora_router.tools.bench.adapters.serving import ADMIN_KEY_ENV, configuration
    from vllm_lora_router.tools.bench.adapters.switching import measure_switching
    from vllm_lora_router.tools.bench.adapters.tables import many_adapters_table, switching_table
    from vllm_lora_router.tools.bench.serve.models import RANK, base_with_adapters
    from vllm_lora_router.tools.bench.serve.settings import BASE

    directory = args.directory.resolve()
    base = base_with_adapters(args.base, directory)
    names = [f"adapter-{number:03d}" for number in range(max(*args.counts, args.in_memory + 2))]
    with console.status(f"writing {len(names)} adapters"):
        for number, name in enumerate(names):
            base.write(number, folder / "adapters" / name)
    config = folder / "config.yaml"
    config.write_text(configuration(folder / "adapters"))
    admin_key = secrets.token_hex(8)
    loras = ["--max-loras", str(args.slots), "--max-cpu-loras", str(args.in_memory), "--max-lora-rank", str(RANK)]
    server = Server(
        [base.base, "--served-model-name", BASE, "--router-config", str(config), *loras, *base.flags, *args.flags],
        log=directory / "adapters.log",
        environment={ADMIN_KEY_ENV: admin_key},
    )
    with server:
        with console.status("starting the server"):
            server.wait(START_SECONDS)
        settings = {"tokens": args.answer_tokens, "seed": args.seed}
        with console.status("requesting adapters in every location"):
            switched = asyncio.run(measure_switching(server.url, names, args.switches, **settings, admin_key=admin_key))
        console.print(switching_table(switched))
        with console.status("requesting many adapters"):
            results = asyncio.run(
                measure_many_adapters(
                    server.url,
                    names,
                    args.counts,
                    args.zipf,
                    args.callers,
                    args.seconds,
                    **settings,
                    rounds=args.rounds,
                )
            )
        console.print(many_adapters_table(results))
    return {
        "switching": dataclasses.asdict(switched),
        "many_adapters": [{**dataclasses.asdict(result), "mix": str(result.mix)} for result in results],
    }
