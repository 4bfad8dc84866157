"""`vllm-lora-router fit`: a head, or a fine-tuned encoder, from examples of your categories."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.heads import storage
from vllm_lora_router.classifiers.models.worker import limit_cores
from vllm_lora_router.config import Loaded, configured_file
from vllm_lora_router.config.head_source import texts_of
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.tools.data.examples import Example, once_each, read_examples
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.figures import Figure
from vllm_lora_router.tools.evaluate.metrics import Figures
from vllm_lora_router.tools.fit.fit import Fitted, Goal, fit
from vllm_lora_router.tools.options import add_base_options, load_or_report, share
from vllm_lora_router.tools.progress import bars

CONFUSED = 3  # categories that one is taken for


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("fit", help="make a head that tells your categories apart, of examples")
    parser.add_argument("config", nargs="?", type=Path, default=configured_file(), help="default: %(default)s")
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="JSONL or CSV with text, category (null: out of scope) and, if you like, intent; beside the examples and "
        "descriptions of the configuration",
    )
    parser.add_argument("--output", type=Path, default=Path("head"), help="a folder; default: %(default)s")
    parser.add_argument("--finetune", action="store_true", help="train the encoder itself, as a category_model")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--precision", type=share, metavar="P", help="of what each category's threshold lets through")
    wanted.add_argument("--share", type=share, metavar="S", help="of the prompts that are to be answered")
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is written, 1 when the configuration, the data or the folder cannot be used."""
    if (read := load_or_report(args.config, args)) is None:
        return 1
    loaded, _ = read
    console = Console()
    try:
        _check_folder(args.output)
        examples, warnings = gather(loaded, args.data)
        for warning in warnings:
            console.print(Text(f"warning: {printable(warning)}", style="yellow"), soft_wrap=True)
        if args.finetune:
            return _finetune(console, args, loaded, examples)
        return _fit(console, args, loaded, examples)
    except (ClassifierError, DataError) as error:
        print(error, file=sys.stderr)
        return 1


def gather(loaded: Loaded, data: Sequence[Path]) -> tuple[list[Example], list[str]]:
    """What the configuration and files say of the categories, each text once; and what to say of it.

    Raises:
        DataError: a file cannot be used.
    """
    categories = [category.name for category in loaded.config.categories]
    found = read_examples(data, categories)
    own = [
        Example(text.text, name, place=str(loaded.file))
        for name, texts in texts_of(loaded.config).items()
        for text in texts
    ]
    kept, repeated = once_each([*found.examples, *own])
    unseen = [name for name in categories if all(example.category != name for example in kept)]
    warnings = [*found.warnings, *repeated]
    if unseen:
        warnings.append(f"no examples and no description of {', '.join(unseen)}: the head will not know them")
    return kept, warnings


def _fit(console: Console, args: argparse.Namespace, loaded: Loaded, examples: Sequence[Example]) -> int:
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    with console.status("loading the encoder"):
        encoder = load_encoder(loaded)
    # Nobody else needs the cores that an engine would.
    encoder.worker.run_blocking(_all_cores)
    model_id = loaded.config.classifier.embedding_model.model_id
    goal = Goal(args.precision, args.share)
    with bars() as told:
        fitted = fit(examples, encoder.encode_elsewhere, model_id, goal=goal, seed=args.seed, told=told)
    storage.write(args.output, fitted.stored)
    for table in tables(fitted):
        console.print(table)
    for name, why in fitted.unmet.items():
        console.print(Text(f"warning: {printable(name)} keeps a threshold of 0.5: {why}", style="yellow"))
    console.print(Text(f"{args.output}: written; in {args.config}:"), soft_wrap=True)
    print(f"classifier:\n  embedding_model: {{head: {json.dumps(str(args.output), ensure_ascii=False)}}}")
    return 0


def tables(fitted: Fitted) -> list[Table]:
    """What was tried, and how good the chosen head is on prompts that it did not see."""
    tried = Table("head, held out", "accuracy", "macro F1", title=f"{fitted.chosen} was chosen", title_justify="left")
    for one in sorted(fitted.tried, key=lambda one: -one.accuracy):
        tried.add_row(one.way.name, f"{one.accuracy:.4f}", f"{one.macro_f1:.4f}")
    found, stored = fitted.figures, fitted.stored
    held_out = Table("held-out prompts", "figure", "95 %", title_justify="left")
    rows: list[tuple[str, Figure | None]] = [
        ("the best category is right", found.guess),
        ("a category reaches its threshold", found.coverage),
        ("and is right then", found.precision),
        ("macro F1", found.macro_f1),
        ("expected calibration error", found.reliability and found.reliability.error),
        ("AUROC of out of scope", found.out_of_scope and found.out_of_scope.auroc),
    ]
    for name, figure in rows:
        if figure is not None:
            held_out.add_row(name, f"{figure.value:.4f}", f"{figure.low:.4f} to {figure.high:.4f}")
    categories = Table("category", "examples", "found", "threshold", "taken for", title_justify="left")
    for one in found.categories:
        threshold = stored.thresholds.get(one.name or "")
        categories.add_row(
            Text(printable(one.name or "(out of scope)")),
            str(one.prompts),
            f"{one.recall:.1%}" if one.prompts else "-",
            "-" if threshold is None else f"{threshold:.2f}",
            Text(_taken_for(found, one.name)),
        )
    return [tried, held_out, categories]


def _taken_for(found: Figures, name: str | None) -> str:
    names, counts = found.confusion.names, found.confusion.counts
    place = names.index(name)
    wrong = [(count, other) for count, other in zip(counts[place], names, strict=True) if count and other != name]
    worst = sorted(wrong, key=lambda one: -one[0])[:CONFUSED]
    return ", ".join(f"{printable(other or 'none')} {count}" for count, other in worst)


def _finetune(console: Console, args: argparse.Namespace, loaded: Loaded, examples: Sequence[Example]) -> int:
    from vllm_lora_router.classifiers.models.encoder import packaged
    from vllm_lora_router.tools.fit.finetune.finetune import finetune

    model_id = loaded.config.classifier.embedding_model.model_id
    folder = loaded.locate(model_id)
    with bars() as told:
        made = finetune(
            examples,
            str(folder or packaged(model_id) or model_id),
            args.output,
            seed=args.seed,
            told=lambda done, of: told("training", done, of),
        )
    seen = f"accuracy {made.accuracy:.4f}, macro F1 {made.macro_f1:.4f}"
    seen += f", expected calibration error {made.calibration_error:.4f}"
    console.print(Text(f"{args.output}: {made.steps} steps in {made.seconds:.0f} s; {made.held_out} held out: {seen}"))
    print(f"classifier:\n  category_model: {{model_id: {json.dumps(str(args.output), ensure_ascii=False)}}}")
    return 0


def _check_folder(folder: Path) -> None:
    """A folder that holds something else is not written into."""
    others = {file.name for file in folder.iterdir()} - {"head.json", "head.safetensors"} if folder.is_dir() else set()
    if others or (folder.exists() and not folder.is_dir()):
        raise DataError([f"{folder}: holds something else than a head; name another --output"])


def _all_cores() -> None:
    limit_cores(len(os.sched_getaffinity(0)))
