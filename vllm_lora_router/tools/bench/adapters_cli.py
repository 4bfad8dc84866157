"""`vllm-lora-router bench adapters`: what it costs to have more adapters than slots."""

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

from vllm_lora_router.tools.demo.server import Server, ServerFailed
from vllm_lora_router.tools.options import at_least_one

START_SECONDS = 900  # a large model is read first


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the kind."""
    parser = kinds.add_parser(
        "adapters",
        help="what another adapter costs, by where it is, and many of them",
        description="Starts a server with the router and writes adapters for it. Flags of vLLM may follow after --.",
    )
    parser.add_argument(
        "--base", default="demo", help="demo, a shape with random weights (Llama-3-8B, Llama-68M), a folder or a hub id"
    )
    parser.add_argument("--slots", type=at_least_one, default=4, help="--max-loras; default: %(default)s")
    parser.add_argument("--in-memory", type=at_least_one, default=12, help="--max-cpu-loras; default: %(default)s")
    parser.add_argument(
        "--counts", nargs="+", type=at_least_one, default=[4, 12, 48], help="adapters that are asked for"
    )
    parser.add_argument("--zipf", nargs="+", type=float, default=[0.0, 1.0], help="how much more some are asked for")
    parser.add_argument("--callers", type=at_least_one, default=16)
    parser.add_argument("--answer-tokens", type=at_least_one, default=8)
    parser.add_argument(
        "--switches", type=at_least_one, default=20, help="to adapters in each place; default: %(default)s"
    )
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each number and mix in a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where models are built and kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="of vLLM, after --")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when everything was measured."""
    from vllm_lora_router.tools.bench.adapters.serving import NotAnswered
    from vllm_lora_router.tools.bench.machine import machine

    about = {**machine(), "base": args.base, "command": " ".join(sys.argv[1:])}
    # Not a terminal, no width to keep to.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(Text(", ".join(f"{name} {value}" for name, value in about.items())), soft_wrap=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = _measured(args, console, Path(folder))
    except (NotAnswered, ServerFailed, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps({**about, **figures}, indent=1) + "\n")
    return 0


def _measured(args: argparse.Namespace, console: Console, folder: Path) -> dict[str, object]:
    from vllm_lora_router.tools.bench.adapters.crowding import crowding
    from vllm_lora_router.tools.bench.adapters.serving import ADMIN_KEY_ENV, configuration
    from vllm_lora_router.tools.bench.adapters.switching import switching
    from vllm_lora_router.tools.bench.adapters.tables import crowding_table, switching_table
    from vllm_lora_router.tools.bench.serve.models import RANK, served
    from vllm_lora_router.tools.bench.serve.settings import BASE

    directory = args.directory.resolve()
    base = served(args.base, directory)
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
        how = {"tokens": args.answer_tokens, "seed": args.seed}
        with console.status("asking for adapters in every place"):
            switched = asyncio.run(switching(server.url, names, args.switches, **how, admin_key=admin_key))
        console.print(switching_table(switched))
        with console.status("asking for many"):
            crowds = asyncio.run(
                crowding(
                    server.url, names, args.counts, args.zipf, args.callers, args.seconds, **how, rounds=args.rounds
                )
            )
        console.print(crowding_table(crowds))
    return {
        "switching": dataclasses.asdict(switched),
        "crowding": [{**dataclasses.asdict(one), "mix": str(one.mix)} for one in crowds],
    }
