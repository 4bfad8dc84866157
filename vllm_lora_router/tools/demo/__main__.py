"""Run the demo: serve small models with a real vLLM server and send questions that name no adapter."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vllm_lora_router.tools.demo.ask import QUESTIONS, Answer, ask, warm_up
from vllm_lora_router.tools.demo.build import DemoModels, build
from vllm_lora_router.tools.demo.server import FLAGS, Server, ServerFailedError

SERVED_NAME = "demo-base"
START_SECONDS = 420  # a server takes 1 to 2 minutes on two cores


def main() -> int:
    """Run the demo and return 0 if every question reached its expected adapter, else 1."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.demo", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the routing configuration")
    parser.add_argument(
        "--directory", type=Path, default=Path(".demo"), help="folder for the models (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, help="port of the server (default: a free port, 8000 with --keep)")
    parser.add_argument("--keep", action="store_true", help="keep the server running until it is interrupted")
    args = parser.parse_args()
    # Output that is not a terminal has no width limit.
    console = Console() if sys.stdout.isatty() else Console(width=170)
    models = build(args.directory.resolve())
    server = Server(
        arguments(models, args.config.resolve()),
        log=models.directory / "server.log",
        directory=models.directory,
        port=args.port or (8000 if args.keep else None),
    )
    try:
        with server:
            _wait(console, server)
            warm_up(server.url)
            answers = [ask(server.url, question) for question in QUESTIONS]
            console.print(_table(answers))
            wrong = [answer for answer in answers if not answer.is_correct]
            for answer in wrong:
                expected = answer.question.adapter or "the base model"
                console.print(
                    Text(
                        f"wrong: {answer.question.text!r} was answered by {answer.adapter}, expected {expected}", "red"
                    )
                )
            correct = len(answers) - len(wrong)
            console.print(f"{correct} of {len(answers)} questions reached the expected adapter")
            if args.keep:
                _keep(console, server)
    except ServerFailedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


def arguments(models: DemoModels, config: Path) -> list[str]:
    """Return the guide's command line for the demo's models."""
    modules = [f"{name}={folder}" for name, folder in models.adapters.items()]
    routing = ["--served-model-name", SERVED_NAME, "--router-config", str(config), "--lora-modules", *modules]
    return [str(models.base), *routing, *FLAGS]


def _wait(console: Console, server: Server) -> None:
    columns = (SpinnerColumn(), TextColumn("starting the server: {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")

        def tick() -> None:
            last_line = server.tail(1).partition("] ")[2]
            progress.update(task, description=Text(last_line[: max(console.width - 40, 20)]).plain)

        server.wait(START_SECONDS, tick)


def _table(answers: list[Answer]) -> Table:
    table = Table("question", "category", "method", "confidence", "adapter", "answer", "ms added", title="model=MoM")
    for answer in answers:
        table.add_row(
            Text(answer.question.text),
            Text(answer.category or "-"),
            answer.method or answer.reason,
            answer.confidence or "-",
            Text(answer.adapter, style="green" if answer.is_correct else "red"),
            Text(answer.text),
            f"{answer.overhead_ms:.1f}",
        )
    return table


def _keep(console: Console, server: Server) -> None:
    body = json.dumps(
        {"model": "MoM", "messages": [{"role": "user", "content": "Is it legal to record a phone call?"}]}
    )
    console.print(f"\nThe server keeps running at {server.url} until you press Ctrl-C. Try:\n")
    for line in (
        f"curl -i {server.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        f"curl {server.url}/v1/router/classify -H 'content-type: application/json' "
        """-d '{"text": "What is a stroke?"}'""",
        f"curl {server.url}/v1/models",
    ):
        print(f"  {line}")
    if server.process is not None:
        server.process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
