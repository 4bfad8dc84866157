"""`vllm-lora-router validate`: print the interpretation of a configuration, or all its problems."""

import argparse
import logging
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.deadline import MIN_DEADLINE_MS
from vllm_lora_router.classifiers.labels import SIMILARITY_THRESHOLD, LabelMapping, map_labels, unreachable_categories
from vllm_lora_router.config import LoadedConfig
from vllm_lora_router.config.methods import configured_methods, methods_by_category
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.config.warnings import config_warnings
from vllm_lora_router.routing.candidates import Arms, Candidates
from vllm_lora_router.server.preflight import Preflight, preflight
from vllm_lora_router.text import printable
from vllm_lora_router.tools.options import adapters_of, add_base_options, add_config_argument, load_or_report
from vllm_lora_router.tools.validate_head import print_head
from vllm_lora_router.types import Candidate


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `validate` subcommand."""
    parser = subparsers.add_parser("validate", help="check a configuration and show how it is interpreted")
    add_config_argument(parser)
    parser.add_argument(
        "--files",
        action="store_true",
        help="Also check the adapters and models on disk, as the server does at startup (default: check the "
        "configuration only).",
    )
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if the configuration can be used, else 1."""
    if (result := load_or_report(args.config, args)) is None:
        return 1
    loaded, base = result
    console = Console()
    files = _check_files(args, loaded, base) if args.files else None
    names = f"base {printable(base.alias)}, default {printable(loaded.config.default_model)}"
    console.print(Text(f"{args.config} (version {loaded.version}): {names}"))
    _print_methods(console, loaded)
    console.print(_category_table(loaded, base))
    console.print(_adapter_table(args, loaded, base, files))
    problems = [*(files.problems if files else ()), *_print_labels(console, loaded, files=args.files)]
    problems += print_head(console, loaded, files=args.files)
    for notice in (*config_warnings(loaded, base), *(files.notices if files else ())):
        level = logging.getLevelName(notice.level).lower()
        console.print(Text(f"{level}: {printable(notice.text)}", style="yellow" if level == "warning" else ""))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _check_files(args: argparse.Namespace, loaded: LoadedConfig, base: ServedBase) -> Preflight:
    model = BaseModel.find(args.model) if args.model else BaseModel(base.served_name)
    return preflight(loaded, base, model, [base.served_name], adapters_of(args))


def _print_methods(console: Console, loaded: LoadedConfig) -> None:
    methods = configured_methods(loaded.config).items()
    names = ", ".join(f"{method}{'' if configured else ' (not configured)'}" for method, configured in methods)
    deadline_ms = loaded.config.router.deadline_ms
    deadline = f"{MIN_DEADLINE_MS:g} ms, or longer on a slow CPU" if deadline_ms is None else f"{deadline_ms:g} ms"
    console.print(f"methods, in order: {names}; deadline for all methods together: {deadline}")


def _category_table(loaded: LoadedConfig, base: ServedBase) -> Table:
    table = Table(
        "category", "methods", "served by", "reasoning", "system prompt", title="Categories", title_justify="left"
    )
    candidates = Candidates(loaded.config, base)
    methods = methods_by_category(loaded.config)
    for category in loaded.config.categories:
        entries = [entry for entry in candidates.by_category[category.name] if entry not in candidates.default]
        arms = candidates.arms.get(category.name)
        prompt = category.system_prompt if category.system_prompt_enabled else None
        default = f"{_candidate_name(candidates.default[0])} (default_model)"
        served_by = _arm_shares(arms) if arms else ", then ".join(map(_candidate_name, entries)) or default
        table.add_row(
            Text(printable(category.name)),
            ", ".join(methods[category.name]) or "none",
            Text(served_by),
            Text(_reasoning(entries[0])) if entries else "-",
            f"{category.system_prompt_mode}, {len(prompt)} characters" if prompt else "-",
        )
    return table


def _arm_shares(arms: Arms) -> str:
    """Return the share of users that each arm of an A/B test is assigned."""
    total = sum(arms.weights.values())
    return ", ".join(f"{printable(arm)} {weight / total:.1%}" for arm, weight in arms.weights.items())


def _candidate_name(candidate: Candidate) -> str:
    return printable(candidate.adapter or f"{candidate.model} (the base)")


def _reasoning(candidate: Candidate) -> str:
    reasoning = candidate.reasoning
    if reasoning is None:
        return "unchanged"
    kwargs = [f"{name}: {str(value).lower()}" for name, value in reasoning.template_kwargs.items()]
    return ", ".join([*kwargs, *([f"effort {reasoning.effort}"] if reasoning.effort else [])])


def _adapter_table(args: argparse.Namespace, loaded: LoadedConfig, base: ServedBase, files: Preflight | None) -> Table:
    table = Table("adapter", "folder", "rank", "description", title="Adapters", title_justify="left")
    command_line = adapters_of(args)
    checked = {adapter.name: adapter for adapter in files.adapters} if files else {}
    declared = {lora.name: lora for lora in loaded.config.bases[base.alias].loras}
    for name in dict.fromkeys([*declared, *command_line]):
        lora, adapter = declared.get(name), checked.get(name)
        path = str(adapter.folder) if adapter else command_line.get(name) or (lora.path if lora else None)
        rank = str(adapter.rank) if adapter else "unknown" if files else "not checked"
        table.add_row(
            Text(printable(name)),
            Text(printable(path or "on the command line")),
            rank,
            Text(printable(lora.description)) if lora else "",
        )
    return table


def _print_labels(console: Console, loaded: LoadedConfig, *, files: bool) -> list[str]:
    """Print the category of each label of the domain model; return the problems of the model's files.

    Args:
        files: Whether the model's files must be valid.
    """
    if not configured_methods(loaded.config).get("domain"):
        return []
    from vllm_lora_router.classifiers.labels import check_files
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    model_id = loaded.config.classifier.category_model.model_id
    if not files and loaded.locate(model_id) is None:
        console.print(Text(f"domain model labels: unknown; there is no folder {model_id}", style="dim"))
        return []
    try:
        labels = check_files(loaded)
    except ClassifierError as error:
        # With --files, preflight has reported the error already.
        return [] if files else [str(error)]
    try:
        mappings = map_labels(labels, loaded.config, lambda: load_encoder(loaded).encode_blocking)
    except ClassifierError as error:
        names = ", ".join(map(printable, labels))
        text = f"domain model labels: {names}; they cannot be mapped to categories: {error}"
        console.print(Text(text, style="yellow"))
        return [str(error)] if files else []
    console.print(_label_table(mappings))
    for category in unreachable_categories(mappings, loaded.config):
        console.print(Text(f"warning: no domain model label maps to {printable(category)}", style="yellow"))
    _print_mmlu_categories(console, mappings)
    return []


def _label_table(mappings: Sequence[LabelMapping]) -> Table:
    table = Table("label", "category", "mapped by", title="Domain model labels", title_justify="left")
    for mapping in mappings:
        source = f"meaning ({mapping.similarity:.2f})" if mapping.similarity is not None else mapping.source
        table.add_row(Text(printable(mapping.label)), Text(printable(mapping.category or "default_model")), source)
    return table


def _print_mmlu_categories(console: Console, mappings: Sequence[LabelMapping]) -> None:
    """Print the YAML that makes the mappings by meaning explicit."""
    labels_of: dict[str, list[str]] = {}
    for mapping in mappings:
        if mapping.source == "similarity" and mapping.category:
            labels_of.setdefault(mapping.category, []).append(mapping.label)
    if labels_of:
        console.print(
            f"to make mappings by meaning (cosine at least {SIMILARITY_THRESHOLD:.2f}) explicit, add to categories:"
        )
        for category, labels in labels_of.items():
            console.print(Text(f"  {printable(category)}: mmlu_categories: [{', '.join(map(printable, labels))}]"))
