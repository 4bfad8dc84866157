"""`vllm-lora-router fit`: fit a head, or fine-tune an encoder, on labelled prompts."""

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
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.head_source import head_texts
from vllm_lora_router.text import printable
from vllm_lora_router.tools.data.examples import Example, deduplicate, read_examples
from vllm_lora_router.tools.data.rows import DataError
from vllm_lora_router.tools.evaluate.metrics import Metrics
from vllm_lora_router.tools.fit.fit import DEFAULT_THRESHOLD, FitResult, ThresholdGoal, fit
from vllm_lora_router.tools.options import add_base_options, add_config_argument, load_or_report, report_missing, share
from vllm_lora_router.tools.progress import progress_bars
from vllm_lora_router.tools.statistics import Estimate

MAX_CONFUSED = 3  # categories shown in "confused with"


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `fit` subcommand."""
    parser = subparsers.add_parser("fit", help="fit a head, or fine-tune an encoder, on labelled prompts")
    add_config_argument(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="Labelled prompts in addition to the examples and descriptions in the configuration: JSONL or CSV with "
        "text, category (null: out of scope) and, optionally, intent (default: none).",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("head"), help="Folder to write the result to (default: %(default)s)."
    )
    parser.add_argument(
        "--finetune",
        action="store_true",
        help="Fine-tune the encoder into a model for category_model (default: fit a head on the unchanged encoder).",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of folds and training (default: %(default)s).")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument(
        "--precision",
        type=share,
        metavar="P",
        help=f"Choose each category's threshold for this minimum precision among accepted requests (default: "
        f"thresholds of {DEFAULT_THRESHOLD:g}).",
    )
    goal.add_argument(
        "--share",
        type=share,
        metavar="S",
        help=f"Choose each category's threshold to accept this share of its requests (default: thresholds of "
        f"{DEFAULT_THRESHOLD:g}).",
    )
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if the result was written, 1 if the configuration, the data or the folder cannot be used."""
    if report_missing("fit", "train", "scipy", "sklearn"):
        return 1
    if (result := load_or_report(args.config, args)) is None:
        return 1
    loaded, _ = result
    console = Console()
    try:
        _check_output(args.output)
        examples, warnings = collect_examples(loaded, args.data)
        for warning in warnings:
            console.print(Text(f"warning: {printable(warning)}", style="yellow"), soft_wrap=True)
        if args.finetune:
            return _finetune(console, args, loaded, examples)
        return _fit(console, args, loaded, examples)
    except (ClassifierError, DataError) as error:
        print(error, file=sys.stderr)
        return 1


def collect_examples(loaded: LoadedConfig, data: Sequence[Path]) -> tuple[list[Example], list[str]]:
    """Return the examples of files and of the configuration without duplicates, and warnings.

    Raises:
        DataError: A file cannot be used.
    """
    categories = [category.name for category in loaded.config.categories]
    read = read_examples(data, categories)
    configured = [
        Example(text.text, name, location=str(loaded.file))
        for name, texts in head_texts(loaded.config).items()
        for text in texts
    ]
    examples, duplicates = deduplicate([*read.examples, *configured])
    labelled = {example.category for example in examples}
    missing = [name for name in categories if name not in labelled]
    warnings = [*read.warnings, *duplicates]
    if missing:
        warnings.append(f"no examples and no description of {', '.join(missing)}: the head has no output for them")
    return examples, warnings


def _fit(console: Console, args: argparse.Namespace, loaded: LoadedConfig, examples: Sequence[Example]) -> int:
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    with console.status("loading the encoder"):
        encoder = load_encoder(loaded)
    # No engine runs beside this command, so the encoder uses all cores.
    encoder.worker.run_blocking(_use_all_cores)
    model_id = loaded.config.classifier.embedding_model.model_id
    goal = ThresholdGoal(args.precision, args.share)
    with progress_bars() as report_progress:
        result = fit(
            examples, encoder.encode_blocking, model_id, goal=goal, seed=args.seed, report_progress=report_progress
        )
    storage.write_head(args.output, result.stored)
    for table in result_tables(result):
        console.print(table)
    for name, reason in result.unreached.items():
        text = f"warning: {printable(name)} keeps the threshold {DEFAULT_THRESHOLD:g}: {reason}"
        console.print(Text(text, style="yellow"))
    console.print(Text(f"{args.output}: head written; add to {args.config}:"), soft_wrap=True)
    print(f"classifier:\n  embedding_model: {{head: {json.dumps(str(args.output), ensure_ascii=False)}}}")
    return 0


def result_tables(result: FitResult) -> list[Table]:
    """Return the tables of all candidates, of the chosen head's held-out metrics, and of its categories."""
    candidates = Table(
        "head", "accuracy", "macro F1", title=f"Held out; {result.chosen} is chosen", title_justify="left"
    )
    for validation in sorted(result.candidates, key=lambda validation: -validation.accuracy):
        candidates.add_row(validation.candidate.name, f"{validation.accuracy:.4f}", f"{validation.macro_f1:.4f}")
    metrics = result.metrics
    held_out = Table("held-out prompts", "figure", "95 %", title_justify="left")
    rows: list[tuple[str, Estimate | None]] = [
        ("best category is correct", metrics.best_guess),
        ("coverage: in scope and accepted", metrics.coverage),
        ("precision: correct among accepted", metrics.precision),
        ("macro F1", metrics.macro_f1),
        ("expected calibration error", metrics.reliability and metrics.reliability.error),
        ("AUROC of out of scope", metrics.detection and metrics.detection.auroc),
    ]
    for name, estimate in rows:
        if estimate is not None:
            held_out.add_row(name, f"{estimate.value:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}")
    categories = Table("category", "examples", "recall", "threshold", "confused with", title_justify="left")
    for category in metrics.categories:
        threshold = result.stored.thresholds.get(category.name or "")
        categories.add_row(
            Text(printable(category.name or "(out of scope)")),
            str(category.prompts),
            f"{category.recall:.1%}" if category.prompts else "-",
            "-" if threshold is None else f"{threshold:.2f}",
            Text(_confused_with(metrics, category.name)),
        )
    return [candidates, held_out, categories]


def _confused_with(metrics: Metrics, name: str | None) -> str:
    names, counts = metrics.confusion.names, metrics.confusion.counts
    row = counts[names.index(name)]
    errors = [(count, other) for count, other in zip(row, names, strict=True) if count and other != name]
    errors.sort(key=lambda error: -error[0])
    return ", ".join(f"{printable(other or 'none')} {count}" for count, other in errors[:MAX_CONFUSED])


def _finetune(console: Console, args: argparse.Namespace, loaded: LoadedConfig, examples: Sequence[Example]) -> int:
    from vllm_lora_router.classifiers.models.source import packaged
    from vllm_lora_router.tools.fit.finetune.finetune import finetune

    model_id = loaded.config.classifier.embedding_model.model_id
    folder = loaded.locate(model_id)
    with progress_bars() as report_progress:
        result = finetune(
            examples,
            str(folder or packaged(model_id) or model_id),
            args.output,
            seed=args.seed,
            on_step=lambda done, total: report_progress("training", done, total),
        )
    metrics = (
        f"accuracy {result.accuracy:.4f}, macro F1 {result.macro_f1:.4f}, expected calibration error "
        f"{result.calibration_error:.4f}"
    )
    training = f"{result.steps} steps in {result.seconds:.0f} s"
    console.print(Text(f"{args.output}: {training}; {result.held_out} held-out examples: {metrics}"))
    print(f"classifier:\n  category_model: {{model_id: {json.dumps(str(args.output), ensure_ascii=False)}}}")
    return 0


def _check_output(folder: Path) -> None:
    """Check that the folder contains nothing but a head."""
    others = {file.name for file in folder.iterdir()} - {"head.json", "head.safetensors"} if folder.is_dir() else set()
    if others or (folder.exists() and not folder.is_dir()):
        raise DataError([f"{folder}: contains other files than a head; choose another --output"])


def _use_all_cores() -> None:
    limit_cores(len(os.sched_getaffinity(0)))
