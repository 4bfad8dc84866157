"""`vllm-lora-router bench classify`: what classifying costs on this machine, without a server."""

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
    """Adds the kind."""
    parser = kinds.add_parser("classify", help="a domain model or an encoder, alone and under load; without a server")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["MiniLM"],
        help="MiniLM or ModernBERT-base with random weights, a sequence classifier's folder, or an encoder's folder or "
        "hub id",
    )
    parser.add_argument("--device", nargs="+", default=["auto"], help="cpu, cuda, cuda:1, auto")
    parser.add_argument("--runtime", nargs="+", default=["torch"], choices=("torch", "onnx", "onnx-int8"))
    parser.add_argument("--threads", type=at_least_one, default=1, help="cores of a CPU that a model may use")
    parser.add_argument("--tokens", nargs="+", type=at_least_one, default=[16], help="of each text")
    parser.add_argument("--callers", nargs="+", type=at_least_one, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0, help="each measurement takes")
    parser.add_argument(
        "--batch-ms", type=float, default=25.0, help="what a batch may take; the server's is half of router.deadline_ms"
    )
    parser.add_argument(
        "--beside-load", action="store_true", help="with another process that keeps the same device busy"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="and a picture of them there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when everything was measured."""
    from vllm_lora_router.classifiers.models.encoder import torch_device
    from vllm_lora_router.tools.bench.busy import beside_load
    from vllm_lora_router.tools.bench.classify import Row, Subject, measure
    from vllm_lora_router.tools.bench.machine import machine

    console = Console()
    about = {**machine(), "threads": str(args.threads)}
    if args.beside_load:
        about["beside"] = "a process that keeps the device busy"
    said = ", ".join(f"{name} {value}" for name, value in about.items())
    console.print(said, highlight=False)
    rows: list[Row] = []
    for device, model, runtime, tokens in product(args.device, args.model, args.runtime, args.tokens):
        subject = Subject(model, device, runtime, tokens, args.threads)
        columns = ("p50", "p95", "p99", "texts/s", "texts a batch", "GIL ms a text", "loop late p99", "lost")
        table = Table("load", *columns, title=f"{subject}; times in ms")
        with console.status(str(table.title)), beside_load(torch_device(device)) if args.beside_load else nullcontext():
            for row in measure(subject, args.callers, seconds=args.seconds, batch_ms=args.batch_ms):
                rows.append(row)
                shown = (row.p50, row.p95, row.p99, row.per_second, row.batch, row.gil_ms, row.lag_p99, row.unanswered)
                table.add_row(row.load, *("-" if value is None else f"{value:g}" for value in shown))
        console.print(table)
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
    if args.plot:
        from vllm_lora_router.tools.bench.plot import plot

        plot(rows, args.plot, said)
    return 0
