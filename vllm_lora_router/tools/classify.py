"""`vllm-lora-router classify`: the whole plan for a text, without a server."""

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
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.options import add_base_options, load_or_report
from vllm_lora_router.types import Plan, Query, Step


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("classify", help="show how a text would be routed, and why")
    parser.add_argument("text", help="what the user says; - reads it from standard input")
    parser.add_argument("--config", type=Path, default=configured_file(), help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when there is a plan, 1 when the configuration or a model cannot be used."""
    if (read := load_or_report(args.config, args)) is None:
        return 1
    loaded, base = read
    console = Console()
    try:
        with console.status("loading models"):
            router = Router.build(loaded, base)
    except ClassifierError as error:
        print(error, file=sys.stderr)
        return 1
    text = sys.stdin.read() if args.text == "-" else args.text
    began = time.perf_counter()
    plan = asyncio.run(router.plan([Query(text, (text,))]))
    ms = (time.perf_counter() - began) * 1000
    if args.json:
        print(json.dumps(msgspec.to_builtins(plan), ensure_ascii=False))
    else:
        _print(console, plan, ms)
    return 0


def _print(console: Console, plan: Plan, ms: float) -> None:
    table = Table("method", "best category", "score", "needs", "sure", "ms", "evidence", "all scores")
    for step in plan.steps:
        table.add_row(*_row(step))
    if plan.steps:
        console.print(table)
    first = plan.candidates[0]
    why = f"{plan.method}" if plan.reason == "routed" else plan.reason
    way = printable(f"{plan.category or '-'} -> {first.model} ({why}; {first.source})")
    console.print(Text(f"{way} in {ms:.1f} ms", style="bold"))
    for candidate in plan.candidates[1:]:
        console.print(Text(printable(f"  if it cannot be served: {candidate.model} ({candidate.source})")))
    if first.system_prompt:
        console.print(Text(f"  system prompt ({first.system_prompt_mode}): {printable(first.system_prompt)}"))
    if first.reasoning:
        console.print(Text(f"  reasoning: {dict(first.reasoning.template_kwargs) or first.reasoning.effort}"))


def _row(step: Step) -> list[str | Text]:
    found = step.classification
    if found is None:
        return [
            step.method,
            "-",
            "-",
            "-",
            step.failure or "",
            f"{step.duration_ms:.1f}",
            Text(printable(step.error or "")),
            "",
        ]
    evidence = "; ".join(f"{key}: {value}" for key, value in found.evidence.items())
    scores = ", ".join(f"{name} {score:.2f}" for name, score in sorted(found.scores.items(), key=lambda item: -item[1]))
    return [
        step.method,
        Text(printable(found.category or "-")),
        f"{found.score:.2f}",
        f"{found.threshold:.2f}",
        "yes" if found.accepted else "no",
        f"{step.duration_ms:.1f}",
        Text(printable(evidence)),
        Text(printable(scores)),
    ]
