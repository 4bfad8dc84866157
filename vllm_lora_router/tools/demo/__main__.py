"""The demo: small models on a real vLLM server, asked questions that name no adapter."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from vllm_lora_router.tools.demo.ask import QUESTIONS, Answer, ask, greet
from vllm_lora_router.tools.demo.build import DemoModels, build
from vllm_lora_router.tools.demo.server import FLAGS, Server, ServerFailed

SERVED_NAME = "demo-base"
START_SECONDS = 420  # a server takes 1 to 2 minutes on two cores


def main() -> int:
    """0 when every question reached the adapter that a person would choose, else 1."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.demo", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the routing configuration")
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where the models are built and kept")
    parser.add_argument("--port", type=int, help="of the server (default: a free one)")
    parser.add_argument("--keep", action="store_true", help="leave the server up until it is interrupted")
    args = parser.parse_args()
    # Not a terminal, no width to keep to.
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
            greet(server.url)
            answers = [ask(server.url, question) for question in QUESTIONS]
            console.print(_table(answers))
            wrong = [answer for answer in answers if not answer.right]
            for answer in wrong:
                expected = answer.question.adapter or "the base"
                console.print(Text(f"wrong: {answer.question.text!r} went to {answer.adapter}, not {expected}", "red"))
            right = len(answers) - len(wrong)
            console.print(f"{right} of {len(answers)} questions reached the adapter that a person would choose")
            if args.keep:
                _keep(console, server)
    except ServerFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if wrong else 0


def arguments(models: DemoModels, config: Path) -> list[str]:
    """The guide's command line over the demo's models."""
    modules = [f"{name}={folder}" for name, folder in models.adapters.items()]
    named = ["--served-model-name", SERVED_NAME, "--router-config", str(config), "--lora-modules", *modules]
    return [str(models.base), *named, *FLAGS]


def _wait(console: Console, server: Server) -> None:
    columns = (SpinnerColumn(), TextColumn("starting the server: {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")

        def tick() -> None:
            last = server.tail(1).partition("] ")[2]
            progress.update(task, description=Text(last[: max(console.width - 40, 20)]).plain)

        server.wait(START_SECONDS, tick)


def _table(answers: list[Answer]) -> Table:
    table = Table("question", "category", "method", "confidence", "adapter", "answer", "ms added", title="model=MoM")
    for answer in answers:
        table.add_row(
            Text(answer.question.text),
            Text(answer.category or "-"),
            answer.method or answer.reason,
            answer.confidence or "-",
            Text(answer.adapter, style="green" if answer.right else "red"),
            Text(answer.text),
            f"{answer.overhead_ms:.1f}",
        )
    return table


def _keep(console: Console, server: Server) -> None:
    body = json.dumps(
        {"model": "MoM", "messages": [{"role": "user", "content": "Is it legal to record a phone call?"}]}
    )
    console.print(f"\nThe server stays up at {server.url} until you press Ctrl-C. Try:\n")
    for line in (
        f"curl -i {server.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        f"""curl {server.url}/v1/router/classify -d '{{"text": "What is a stroke?"}}'""",
        f"curl {server.url}/v1/models",
    ):
        print(f"  {line}")
    if server.process is not None:
        server.process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
