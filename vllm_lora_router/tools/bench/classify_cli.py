"""The command `vllm-lora-router bench classify`: measure classification on this machine, without a server."""

import argparse
import dataclasses
import json
from contextlib import nullcontext
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vllm_lora_router.tools.options import at_least_one


def add(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the benchmark to the parser."""
    parser = kinds.add_parser("classify", help="measure a domain model or an encoder, without a server")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["MiniLM"],
        help="MiniLM or ModernBERT-base with random weights, the folder of a sequence classifier, or the folder or "
        "hub id of an encoder (default: MiniLM)",
    )
    parser.add_argument("--device", nargs="+", default=["auto"], help="cpu, cuda, cuda:1 or auto (default: auto)")
    parser.add_argument(
        "--runtime", nargs="+", default=["torch"], choices=("torch", "onnx", "onnx-int8"), help="default: torch"
    )
    parser.add_argument("--threads", type=at_least_one, default=1, help="CPU cores (default: %(default)s)")
    parser.add_argument("--tokens", nargs="+", type=at_least_one, default=[16], help="tokens per text (default: 16)")
    parser.add_argument("--callers", nargs="+", type=at_least_one, default=[1, 8, 32], help="clients (default: 1 8 32)")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement (default: %(default)s)")
    parser.add_argument(
        "--batch-ms",
        type=float,
        default=25.0,
        help="maximum time of a batch; a server uses a quarter of deadline_ms (default: 25)",
    )
    parser.add_argument("--beside-load", action="store_true", help="keep the device busy with another process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also plot the figures to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and return 0 if everything was measured."""
    from vllm_lora_router.classifiers.models.source import torch_device
    from vllm_lora_router.tools.bench.busy import beside_load
    from vllm_lora_router.tools.bench.classify import ModelSetup, Row, measure
    from vllm_lora_router.tools.bench.machine import machine

    console = Console()
    about = {**machine(), "threads": str(args.threads)}
    if args.beside_load:
        about["beside"] = "a process that keeps the device busy"
    description = ", ".join(f"{name} {value}" for name, value in about.items())
    console.print(description, highlight=False)
    rows: list[Row] = []
    for device, model, runtime, tokens in product(args.device, args.model, args.runtime, args.tokens):
        setup = ModelSetup(model, device, runtime, tokens, args.threads)
        columns = ("p50", "p95", "p99", "texts/s", "texts/batch", "GIL ms/text", "loop late p99", "failed")
        table = Table("load", *columns, title=f"{setup}; times in ms")
        with console.status(str(table.title)), beside_load(torch_device(device)) if args.beside_load else nullcontext():
            for row in measure(setup, args.callers, seconds=args.seconds, batch_ms=args.batch_ms):
                rows.append(row)
                values = (row.p50, row.p95, row.p99, row.per_second, row.batch, row.gil_ms, row.lag_p99, row.failed)
                table.add_row(row.load, *("-" if value is None else f"{value:g}" for value in values))
        console.print(table)
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
    if args.plot:
        from vllm_lora_router.tools.bench.plot import plot

        plot(rows, args.plot, description)
    return 0
