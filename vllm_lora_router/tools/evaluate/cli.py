"""`vllm-lora-router evaluate`: labelled prompts through a configuration or a server, and how well they are routed."""

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
from vllm_lora_router.config import Loaded, configured_file
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.data.examples import Example, read_examples
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.compare import Comparison, compare
from vllm_lora_router.tools.evaluate.evaluate import SMALL_CHANGES, Evaluation, evaluate
from vllm_lora_router.tools.evaluate.plots import plot
from vllm_lora_router.tools.evaluate.regret import Matrix, MatrixError, Regret, read_matrix, regret
from vllm_lora_router.tools.evaluate.tables import comparison_tables, details, headline, regret_table
from vllm_lora_router.tools.evaluate.targets import Configuration, Server, Subject, SubjectError
from vllm_lora_router.tools.options import add_base_options, load_or_report
from vllm_lora_router.tools.progress import bars


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("evaluate", help="measure how well labelled prompts are routed")
    parser.add_argument("config", nargs="?", type=Path, help=f"default: {configured_file()}")
    add_data(parser, required=True)
    parser.add_argument("--url", help="measure this server instead, such as http://localhost:8000; it calls no tool")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable with the server's API key")
    parser.add_argument("--compare", type=Path, metavar="OTHER.yaml", help="whether this configuration is better")
    parser.add_argument(
        "--small-changes",
        type=_count,
        metavar="N",
        default=SMALL_CHANGES,
        help="prompts that are asked again with another case, typos, politeness, ...; 0: none; default: %(default)s",
    )
    parser.add_argument(
        "--regret", type=Path, metavar="MATRIX.json", help="what wrong routes cost, by what prove wrote"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, each prompt too")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="write confusion, reliability, thresholds .png there"
    )
    add_base_options(parser)
    parser.set_defaults(run=run)


def add_data(parser: "argparse._ActionsContainer", *, required: bool) -> None:
    """The labelled prompts."""
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        metavar="FILE",
        required=required,
        help='prompts in lines of {"text": ..., "category": ...}, or CSV; category null: out of scope',
    )


class Refused(Exception):
    """What is asked for cannot be done; the message says why, and has been said already where it is empty."""


def run(args: argparse.Namespace) -> int:
    """0 when it was measured, 1 when the configuration, the server or the data cannot be used."""
    try:
        _check(args)
        return asyncio.run(_run(args))
    except (Refused, ClassifierError, DataError, MatrixError, SubjectError) as error:
        if str(error):
            print(error, file=sys.stderr)
        return 1


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Everything that is printed or written."""

    evaluation: Evaluation
    regret: Regret | None = None
    other: Evaluation | None = None
    comparison: Comparison | None = None


async def _run(args: argparse.Namespace) -> int:
    matrix = read_matrix(args.regret) if args.regret else None
    files = [*([] if args.url else [args.config or configured_file()]), *([args.compare] if args.compare else [])]
    read = [_read(args, file) for file in files]
    categories = {str(loaded.file): [one.name for one in loaded.config.categories] for loaded, _ in read}
    async with AsyncExitStack() as stack:
        subjects: list[Subject] = []
        if args.url:
            server = await stack.enter_async_context(Server(args.url, _api_key(args.api_key_env)))
            categories[server.name] = list(server.categories)
            subjects.append(server)
        examples = _examples(args, categories, matrix)
        for loaded, _ in read:
            warn_of_own(loaded, examples)
        # All that can be wrong was looked for before a model is loaded.
        subjects += await _open(read)
        found = await _measure(args, subjects, examples, matrix)
    _print(Console(), found)
    _write(args, found)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.url and args.config:
        raise Refused(f"--url measures a server and {args.config} would be measured here; leave one of them out")
    if find_spec("sklearn") is None:
        raise Refused("evaluate needs scikit-learn; install it with pip install 'vllm-lora-router[train]'")
    if args.url and find_spec("httpx") is None:
        raise Refused("--url needs httpx, which vLLM brings; install it with pip install httpx")
    if args.plots and find_spec("matplotlib") is None:
        raise Refused("--plots needs matplotlib; install it with pip install 'vllm-lora-router[bench]'")
    if args.json and not args.json.absolute().parent.is_dir():
        raise Refused(f"--json: there is no folder {args.json.parent}")


def _read(args: argparse.Namespace, file: Path) -> tuple[Loaded, ServedBase]:
    if (read := load_or_report(file, args)) is None:
        raise Refused
    return read


async def _open(read: Sequence[tuple[Loaded, ServedBase]]) -> list[Configuration]:
    found: list[Configuration] = []
    for loaded, base in read:
        with Console().status("loading models"):
            found.append(await asyncio.to_thread(Configuration, loaded, base, found[-1] if found else None))
    return found


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise Refused(f"--api-key-env: the environment variable {variable} is empty")
    return key


def _examples(
    args: argparse.Namespace, categories: Mapping[str, Sequence[str]], matrix: Matrix | None
) -> tuple[Example, ...]:
    """The labelled prompts, each of a category that one of the subjects has."""
    read = read_examples(args.data, dict.fromkeys(name for own in categories.values() for name in own))
    for warning in read.warnings:
        _warn(warning)
    if not read.examples:
        raise Refused(f"{', '.join(map(str, args.data))}: there is no prompt in it that can be used")
    labels = Counter(one.category for one in read.examples if one.category is not None)
    for subject, own in categories.items():
        for name in [label for label in labels if label not in own]:
            _warn(f"{subject} has no category {name!r}: none of its {labels[name]:,} prompts can be right there")
    if matrix is not None and not labels.keys() & matrix.loglik.keys():
        raise Refused(f"{args.regret}: has none of the categories that the prompts are of; run prove for them")
    return read.examples


def warn_of_own(loaded: Loaded, examples: Sequence[Example]) -> None:
    """Says on standard error how many of the prompts stand in the configuration itself."""
    config = loaded.config
    own = {text for rule in config.embedding_rules for text in rule.examples}
    own |= {text for category in config.categories for text in category.examples}
    known = {" ".join(text.casefold().split()) for text in own}
    count = sum(" ".join(one.text.casefold().split()) in known for one in examples)
    if count:
        _warn(f"{count:,} of the prompts are examples of {loaded.file} itself, which flatters; use others")


def _warn(text: str) -> None:
    print(f"warning: {printable(text)}", file=sys.stderr)


async def _measure(
    args: argparse.Namespace, subjects: Sequence[Subject], examples: Sequence[Example], matrix: Matrix | None
) -> _Measured:
    found: list[Evaluation] = []
    for subject in subjects:
        with bars() as told:
            measured = await evaluate(subject, examples, small_changes=args.small_changes, seed=args.seed, told=told)
        found.append(measured)
    one = found[0]
    cost = None if matrix is None else regret(one.answers, matrix, args.seed)
    if matrix is not None and cost is None:
        _warn(f"{args.regret}: has nothing of what should serve these prompts, so nothing is said of wrong routes")
    if len(found) == 1:
        return _Measured(one, cost)
    return _Measured(one, cost, found[1], compare(one.answers, found[1].answers, args.seed))


def _print(console: Console, found: _Measured) -> None:
    shown = [headline(found.evaluation), *details(found.evaluation)]
    if found.regret is not None:
        shown += regret_table(found.regret)
    if found.other is not None and found.comparison is not None:
        shown.append(headline(found.other))
        shown += comparison_tables(found.comparison, found.evaluation.subject, found.other.subject)
    for one in shown:
        console.print(one, soft_wrap=True)


def _write(args: argparse.Namespace, found: _Measured) -> None:
    try:
        if args.json:
            args.json.write_text(json.dumps(dataclasses.asdict(found), ensure_ascii=False, indent=1), "utf-8")
        for file in plot(found.evaluation, args.plots) if args.plots else ():
            print(file)
    except OSError as error:
        raise Refused(f"{error.filename}: cannot be written: {error.strerror or error}") from None


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be below 0")
    return value
