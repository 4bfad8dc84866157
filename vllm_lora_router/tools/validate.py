"""`vllm-lora-router validate`: what a configuration is understood to say, or everything that is wrong with it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.deadline import LEAST_MS
from vllm_lora_router.classifiers.labels import MEANING_THRESHOLD, Mapped, map_labels, unreached
from vllm_lora_router.config import Loaded, configured_file
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.config.warnings import methods_of, notices, ways_to
from vllm_lora_router.observability.decision_log import printable
from vllm_lora_router.routing.candidates import Arms, Candidates
from vllm_lora_router.server.preflight import Preflight, preflight
from vllm_lora_router.tools.options import adapters_of, add_base_options, load_or_report
from vllm_lora_router.tools.validate_head import print_head
from vllm_lora_router.types import Candidate


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("validate", help="say what a configuration means, or what is wrong with it")
    parser.add_argument("config", nargs="?", type=Path, default=configured_file(), help="default: %(default)s")
    parser.add_argument("--files", action="store_true", help="look at adapters and models on disk too, as serve does")
    add_base_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when the configuration can be used, else 1."""
    if (read := load_or_report(args.config, args)) is None:
        return 1
    loaded, base = read
    console = Console()
    found = _look_at_files(args, loaded, base) if args.files else None
    base_line = f"base {printable(base.alias)}, default {printable(loaded.config.default_model)}"
    console.print(Text(f"{args.config} (version {loaded.version}): {base_line}"))
    _print_methods(console, loaded)
    console.print(_categories(loaded, base))
    console.print(_adapters(args, loaded, base, found))
    problems = [*(found.problems if found else ()), *_print_labels(console, loaded, files=args.files)]
    problems += print_head(console, loaded, files=args.files)
    for notice in (*notices(loaded, base), *(found.notices if found else ())):
        level = logging.getLevelName(notice.level).lower()
        console.print(Text(f"{level}: {printable(notice.text)}", style="yellow" if level == "warning" else ""))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _look_at_files(args: argparse.Namespace, loaded: Loaded, base: ServedBase) -> Preflight:
    model = BaseModel.find(args.model) if args.model else BaseModel(base.served_name)
    return preflight(loaded, base, model, [base.served_name], adapters_of(args))


def _print_methods(console: Console, loaded: Loaded) -> None:
    said = [f"{method}{'' if on else ' (not configured)'}" for method, on in methods_of(loaded.config).items()]
    set_ms = loaded.config.router.deadline_ms
    within = f"{LEAST_MS:g} ms, or longer on a slow CPU" if set_ms is None else f"{set_ms:g} ms"
    console.print(f"methods, in this order: {', '.join(said)}; together within {within}")


def _categories(loaded: Loaded, base: ServedBase) -> Table:
    table = Table(
        "category", "chosen by", "served by", "reasoning", "system prompt", title="Categories", title_justify="left"
    )
    candidates = Candidates(loaded.config, base)
    for category in loaded.config.categories:
        own = [one for one in candidates.by_category[category.name] if one not in candidates.default]
        arms = candidates.arms.get(category.name)
        prompt = category.system_prompt if category.system_prompt_enabled else None
        table.add_row(
            Text(printable(category.name)),
            ", ".join(ways_to(category, loaded.config)) or "nothing",
            Text(_shares(arms) if arms else ", else ".join(map(_name, own)) or _default_name(candidates)),
            Text(_reasoning(own[0])) if own else "-",
            f"{category.system_prompt_mode}s {len(prompt)} characters" if prompt else "-",
        )
    return table


def _default_name(candidates: Candidates) -> str:
    return f"{_name(candidates.default[0])} (default_model)"


def _shares(arms: Arms) -> str:
    """Which part of the users each arm of an A/B test gets."""
    total = sum(arms.weights.values())
    return ", ".join(f"{printable(arm)} {weight / total:.1%}" for arm, weight in arms.weights.items())


def _name(candidate: Candidate) -> str:
    return printable(candidate.adapter or f"{candidate.model} (the base)")


def _reasoning(candidate: Candidate) -> str:
    reasoning = candidate.reasoning
    if reasoning is None:
        return "not written"
    written = [f"{name}: {str(value).lower()}" for name, value in reasoning.template_kwargs.items()]
    return ", ".join([*written, *([f"effort {reasoning.effort}"] if reasoning.effort else [])])


def _adapters(args: argparse.Namespace, loaded: Loaded, base: ServedBase, found: Preflight | None) -> Table:
    table = Table("adapter", "folder", "rank", "description", title="Adapters", title_justify="left")
    command_line = adapters_of(args)
    checked = {adapter.name: adapter for adapter in found.adapters} if found else {}
    declared = {lora.name: lora for lora in loaded.config.bases[base.alias].loras}
    for name in dict.fromkeys([*declared, *command_line]):
        lora, adapter = declared.get(name), checked.get(name)
        path = str(adapter.folder) if adapter else command_line.get(name) or (lora.path if lora else None)
        rank = str(adapter.rank) if adapter else "?" if found else "not looked at"
        table.add_row(
            Text(printable(name)),
            Text(printable(path or "on the command line")),
            rank,
            Text(printable(lora.description)) if lora else "",
        )
    return table


def _print_labels(console: Console, loaded: Loaded, *, files: bool) -> list[str]:
    """Prints what each label of the domain model stands for; gives what is wrong with the files when they count."""
    if not methods_of(loaded.config).get("domain"):
        return []
    from vllm_lora_router.classifiers.domain import check_files
    from vllm_lora_router.classifiers.models.encoder import load_encoder

    model_id = loaded.config.classifier.category_model.model_id
    if not files and loaded.locate(model_id) is None:
        console.print(Text(f"labels of the domain model: not known here, there is no folder {model_id}", style="dim"))
        return []
    try:
        labels = check_files(loaded)
    except ClassifierError as error:
        # preflight has said it already when the files count.
        return [] if files else [str(error)]
    try:
        mapped = map_labels(labels, loaded.config, lambda: load_encoder(loaded).encode_elsewhere)
    except ClassifierError as error:
        named = ", ".join(map(printable, labels))
        said = f"labels of the domain model: {named}; what they mean cannot be told: {error}"
        console.print(Text(said, style="yellow"))
        return [str(error)] if files else []
    console.print(_label_table(mapped))
    for category in unreached(mapped, loaded.config):
        console.print(Text(f"warning: no label of the domain model leads to {printable(category)}", style="yellow"))
    _print_paste(console, mapped)
    return []


def _label_table(mapped: Sequence[Mapped]) -> Table:
    table = Table("label", "category", "by", title="Labels of the domain model", title_justify="left")
    for one in mapped:
        how = f"meaning ({one.similarity:.2f})" if one.similarity is not None else one.how
        table.add_row(Text(printable(one.label)), Text(printable(one.category or "default_model")), how)
    return table


def _print_paste(console: Console, mapped: Sequence[Mapped]) -> None:
    meant: dict[str, list[str]] = {}
    for one in mapped:
        if one.how == "meaning" and one.category:
            meant.setdefault(one.category, []).append(one.label)
    if meant:
        console.print(
            f"to fix what was told by meaning (cosine of at least {MEANING_THRESHOLD:.2f}), paste into categories:"
        )
        for category, labels in meant.items():
            console.print(Text(f"  {printable(category)}: mmlu_categories: [{', '.join(map(printable, labels))}]"))
