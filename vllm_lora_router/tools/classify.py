"""`vllm-lora-router classify`: show the routing plan of one text."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config import configured_file
from vllm_lora_router.routing.router import Router
from vllm_lora_router.text import printable
from vllm_lora_router.tools.options import add_base_options, load_or_report
from vllm_lora_router.types import Plan, Query, Step


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `classify` subcommand."""
    parser = subparsers.add_parser("classify", help="show how a text would be routed, and why")
    parser.add_argument("text", help="User text to route; - reads it from standard input.")
    parser.add_argument(
        "--config", type=Path, default=configured_file(), help="Configuration file (default: %(default)s)."
    )
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON (default: a table).")
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if the text was planned, 1 if the configuration or a model cannot be used."""
    if (result := load_or_report(args.config, args)) is None:
        return 1
    loaded, base = result
    console = Console()
    try:
        with console.status("loading models"):
            router = Router.build(loaded, base)
    except ClassifierError as error:
        print(error, file=sys.stderr)
        return 1
    text = sys.stdin.read() if args.text == "-" else args.text
    start = time.perf_counter()
    plan = asyncio.run(router.plan([Query(text, (text,))]))
    duration_ms = (time.perf_counter() - start) * 1000
    if args.json:
        print(json.dumps(msgspec.to_builtins(plan), ensure_ascii=False))
    else:
        _print_plan(console, plan, duration_ms)
    return 0


def _print_plan(console: Console, plan: Plan, duration_ms: float) -> None:
    table = Table("method", "best category", "score", "threshold", "accepted", "ms", "evidence", "all scores")
    for step in plan.steps:
        table.add_row(*_row(step))
    if plan.steps:
        console.print(table)
    first = plan.candidates[0]
    reason = f"{plan.method}" if plan.reason == "routed" else plan.reason
    route = printable(f"{plan.category or '-'} -> {first.model} ({reason}; {first.source})")
    console.print(Text(f"{route} in {duration_ms:.1f} ms", style="bold"))
    for candidate in plan.candidates[1:]:
        console.print(Text(printable(f"  fallback: {candidate.model} ({candidate.source})")))
    if first.system_prompt:
        console.print(Text(f"  system prompt ({first.system_prompt_mode}): {printable(first.system_prompt)}"))
    if first.reasoning:
        console.print(Text(f"  reasoning: {dict(first.reasoning.template_kwargs) or first.reasoning.effort}"))


def _row(step: Step) -> list[str | Text]:
    classification = step.classification
    if classification is None:
        error = Text(printable(step.error or ""))
        return [step.method, "-", "-", "-", step.failure or "", f"{step.duration_ms:.1f}", error, ""]
    evidence = "; ".join(f"{key}: {value}" for key, value in classification.evidence.items())
    highest_first = sorted(classification.scores.items(), key=lambda item: -item[1])
    scores = ", ".join(f"{name} {score:.2f}" for name, score in highest_first)
    return [
        step.method,
        Text(printable(classification.category or "-")),
        f"{classification.score:.2f}",
        f"{classification.threshold:.2f}",
        "yes" if classification.accepted else "no",
        f"{step.duration_ms:.1f}",
        Text(printable(evidence)),
        Text(printable(scores)),
    ]
