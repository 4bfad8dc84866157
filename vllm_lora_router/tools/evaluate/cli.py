"""`vllm-lora-router evaluate`: measure how well a configuration or a server routes labelled prompts."""

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.config import LoadedConfig, configured_file
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.text import printable
from vllm_lora_router.tools.data.examples import Example, read_examples
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.compare import Comparison, compare
from vllm_lora_router.tools.evaluate.evaluate import SMALL_CHANGES, Evaluation, evaluate
from vllm_lora_router.tools.evaluate.plots import plot
from vllm_lora_router.tools.evaluate.regret import LikelihoodMatrix, MatrixError, Regret, compute_regret, read_matrix
from vllm_lora_router.tools.evaluate.tables import comparison_tables, detail_tables, regret_tables, summary_table
from vllm_lora_router.tools.evaluate.targets import ConfigTarget, ServerTarget, Target, TargetError
from vllm_lora_router.tools.options import add_base_options, load_or_report, report_missing
from vllm_lora_router.tools.progress import progress_bars


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `evaluate` subcommand."""
    parser = subparsers.add_parser("evaluate", help="measure how well labelled prompts are routed")
    parser.add_argument(
        "config", nargs="?", type=Path, help=f"Configuration file (default: {configured_file()}, or none with --url)."
    )
    add_data_option(parser, required=True)
    parser.add_argument(
        "--url",
        help="Evaluate this running server instead of a configuration, such as http://localhost:8000; it calls no MCP "
        "server (default: evaluate the configuration in this process).",
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key (default: no key)."
    )
    parser.add_argument(
        "--admin-key-env",
        metavar="NAME",
        help="Environment variable that holds the router's admin key. With it, the latency leaves out results from the "
        "server's cache (default: no key).",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OTHER.yaml",
        help="Also evaluate this configuration and test whether it is better (default: none).",
    )
    parser.add_argument(
        "--small-changes",
        type=_count,
        metavar="N",
        default=SMALL_CHANGES,
        help="Number of prompts that are also routed with small changes such as another case or typos; 0: none "
        "(default: %(default)s).",
    )
    parser.add_argument(
        "--regret",
        type=Path,
        metavar="MATRIX.json",
        help="Weigh wrong routes by this matrix of `prove --json` (default: do not weigh them).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of samples and resamples (default: %(default)s).")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="Also write all results, with the outcome of each prompt, to this file (default: none).",
    )
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="Write confusion.png, reliability.png and thresholds.png to this folder (default: none).",
    )
    add_base_options(parser)
    parser.set_defaults(run=run)


def add_data_option(parser: "argparse._ActionsContainer", *, required: bool) -> None:
    """Add the option that names the files with labelled prompts."""
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        metavar="FILE",
        required=required,
        help='Labelled prompts: JSONL with {"text": ..., "category": ...} on each line, or CSV; category null means '
        "out of scope.",
    )


class CommandError(Exception):
    """A command that cannot run; the message names the reason, or is empty if the reason is printed already."""


def run(args: argparse.Namespace) -> int:
    """Return 0 if the target was evaluated, 1 if the configuration, the server or the data cannot be used."""
    if report_missing("evaluate", "evaluate", "scipy", "sklearn"):
        return 1
    try:
        _check_options(args)
        return asyncio.run(_run(args))
    except (CommandError, ClassifierError, DataError, MatrixError, TargetError) as error:
        if str(error):
            print(error, file=sys.stderr)
        return 1


@dataclasses.dataclass(frozen=True)
class _Results:
    """All results that are printed or written."""

    evaluation: Evaluation
    regret: Regret | None = None
    other: Evaluation | None = None
    comparison: Comparison | None = None


async def _run(args: argparse.Namespace) -> int:
    matrix = read_matrix(args.regret) if args.regret else None
    files = [*([] if args.url else [args.config or configured_file()]), *([args.compare] if args.compare else [])]
    configs = [_load(args, file) for file in files]
    categories = {str(loaded.file): [category.name for category in loaded.config.categories] for loaded, _ in configs}
    async with AsyncExitStack() as stack:
        targets: list[Target] = []
        if args.url:
            server = await stack.enter_async_context(ServerTarget(args.url, *_keys(args)))
            categories[server.name] = list(server.categories)
            targets.append(server)
        # Models are loaded last, after all other inputs have been checked.
        examples = _read_examples(args, categories, matrix)
        for loaded, _ in configs:
            warn_about_configured_examples(loaded, examples)
        targets += await _load_models(configs)
        results = await _evaluate(args, targets, examples, matrix)
    _print_results(Console(), results)
    _write_results(args, results)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if args.url and args.config:
        raise CommandError(f"--url evaluates a server and {args.config} a configuration; give only one of them")
    if args.url and find_spec("httpx") is None:
        raise CommandError("--url needs httpx, which vLLM installs: pip install httpx")
    if args.plots and find_spec("matplotlib") is None:
        raise CommandError("--plots needs matplotlib: pip install 'vllm-lora-router[bench]'")
    if args.json and not args.json.absolute().parent.is_dir():
        raise CommandError(f"--json: the folder {args.json.parent} does not exist; create it first")


def _load(args: argparse.Namespace, file: Path) -> tuple[LoadedConfig, ServedBase]:
    if (result := load_or_report(file, args)) is None:
        raise CommandError
    return result


async def _load_models(configs: Sequence[tuple[LoadedConfig, ServedBase]]) -> list[ConfigTarget]:
    targets: list[ConfigTarget] = []
    for loaded, base in configs:
        with Console().status("loading models"):
            target = await asyncio.to_thread(ConfigTarget, loaded, base, targets[-1] if targets else None)
        targets.append(target)
    return targets


def _keys(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """Return the API key and the admin key."""
    return _key("--api-key-env", args.api_key_env), _key("--admin-key-env", args.admin_key_env)


def _key(option: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise CommandError(f"{option}: the environment variable {variable} is not set")
    return key


def _read_examples(
    args: argparse.Namespace, categories: Mapping[str, Sequence[str]], matrix: LikelihoodMatrix | None
) -> tuple[Example, ...]:
    """Read the labelled prompts; each label must be a category of at least one target."""
    data = read_examples(args.data, dict.fromkeys(name for of_target in categories.values() for name in of_target))
    for warning in data.warnings:
        _warn(warning)
    if not data.examples:
        raise CommandError(f"{', '.join(map(str, args.data))}: no usable prompt")
    labels = Counter(example.category for example in data.examples if example.category is not None)
    for target, of_target in categories.items():
        for name in [label for label in labels if label not in of_target]:
            _warn(f"{target} has no category {name!r}: all of its {labels[name]:,} prompts count as wrong")
    if matrix is not None and not labels.keys() & matrix.loglik.keys():
        raise CommandError(f"{args.regret}: contains no category of the prompts; run prove for these categories")
    return data.examples


def warn_about_configured_examples(loaded: LoadedConfig, examples: Sequence[Example]) -> None:
    """Warn on standard error if prompts are also examples of the configuration."""
    config = loaded.config
    configured = {text for rule in config.embedding_rules for text in rule.examples}
    configured |= {text for category in config.categories for text in category.examples}
    known = {" ".join(text.casefold().split()) for text in configured}
    count = sum(" ".join(example.text.casefold().split()) in known for example in examples)
    if count:
        _warn(f"{count:,} of the prompts are examples of {loaded.file}, so figures are too high; use other prompts")


def _warn(text: str) -> None:
    print(f"warning: {printable(text)}", file=sys.stderr)


async def _evaluate(
    args: argparse.Namespace, targets: Sequence[Target], examples: Sequence[Example], matrix: LikelihoodMatrix | None
) -> _Results:
    evaluations: list[Evaluation] = []
    for target in targets:
        with progress_bars() as report_progress:
            evaluation = await evaluate(
                target, examples, small_changes=args.small_changes, seed=args.seed, report_progress=report_progress
            )
        evaluations.append(evaluation)
    first = evaluations[0]
    regret = None if matrix is None else compute_regret(first.outcomes, matrix, args.seed)
    if matrix is not None and regret is None:
        _warn(f"{args.regret}: does not contain the models of these prompts; wrong routes are not weighed")
    if len(evaluations) == 1:
        return _Results(first, regret)
    second = evaluations[1]
    return _Results(first, regret, second, compare(first.outcomes, second.outcomes, args.seed))


def _print_results(console: Console, results: _Results) -> None:
    renderables = [summary_table(results.evaluation), *detail_tables(results.evaluation)]
    if results.regret is not None:
        renderables += regret_tables(results.regret)
    if results.other is not None and results.comparison is not None:
        renderables.append(summary_table(results.other))
        renderables += comparison_tables(results.comparison, results.evaluation.target, results.other.target)
    for renderable in renderables:
        console.print(renderable, soft_wrap=True)


def _write_results(args: argparse.Namespace, results: _Results) -> None:
    try:
        if args.json:
            args.json.write_text(json.dumps(dataclasses.asdict(results), ensure_ascii=False, indent=1), "utf-8")
        for file in plot(results.evaluation, args.plots) if args.plots else ():
            print(file)
    except OSError as error:
        raise CommandError(f"{error.filename}: cannot be written: {error.strerror or error}") from None


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value
