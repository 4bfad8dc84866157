"""Everything that can be found wrong with a configuration's files before an engine is started."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.ranks import rank_limit
from vllm_lora_router.adapters.files.validation import Adapter, AdapterError, check
from vllm_lora_router.adapters.files.vllm_limits import refuse_reason
from vllm_lora_router.adapters.runtime.factory import Limits
from vllm_lora_router.adapters.runtime.resolver import Catalogue
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.models.backend import check_runtime
from vllm_lora_router.classifiers.models.static_embeddings import check_installed, is_static
from vllm_lora_router.config.cross_checks import suggest
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.config.warnings import Notice, methods_of
from vllm_lora_router.config.yaml_document import ConfigError


@dataclass(frozen=True)
class Preflight:
    """What the disk says: adapters that fit, what to tell the user, and what is wrong."""

    adapters: tuple[Adapter, ...]
    notices: tuple[Notice, ...]
    problems: tuple[str, ...]


def preflight(
    loaded: Loaded,
    base: ServedBase,
    model: BaseModel,
    served_names: Sequence[str],
    command_line: Mapping[str, str],
    limits: Limits | None = None,
    *,
    is_up: bool = False,
) -> Preflight:
    """Checks every declared adapter against the base model, and the classifiers' files.

    Args:
        model: the base model on disk, as far as it is there.
        served_names: the names that clients may give the base.
        command_line: the adapters that `--lora-modules` declares, name -> path.
        limits: what the engine was started with, None for one without LoRA; counts when it `is_up`.
    """
    problems: list[str] = []
    notices: list[Notice] = []
    adapters: list[Adapter] = []
    reserved = loaded.config.auto_names
    for name, folder in declared(loaded, base, command_line).items():
        if reason := refuse_reason(name, served_names, reserved=reserved):
            problems.append(reason)
        if folder is None:
            problems.append(
                f"adapter {name!r} is declared without a folder: give model_config.{base.alias}.loras[] a path, or "
                f"start with --lora-modules {name}=/path/to/adapter"
            )
            continue
        try:
            adapter = check(name, folder, model)
        except AdapterError as error:
            problems.append(str(error))
        else:
            adapters.append(adapter)
            problems += _beyond(adapter, limits) if is_up else []
            notices += [Notice(logging.WARNING, warning) for warning in adapter.warnings]
    problems += _source_problems(loaded, without_lora=is_up and limits is None)
    notices += _yet_to_come(loaded, base, declared(loaded, base, command_line))
    problems += _classifier_problems(loaded)
    if model.chat_template is False:
        notices.append(
            Notice(
                logging.WARNING,
                f"the base model {model.name!r} has no chat template: chat completions fail unless --chat-template "
                "gives one",
            )
        )
    return Preflight(tuple(adapters), tuple(notices), tuple(problems))


def _beyond(adapter: Adapter, limits: Limits | None) -> list[str]:
    if limits is None:
        return [
            f"adapter {adapter.name!r} cannot be served: the server was started without LoRA; add --enable-lora, or "
            "start with python -m vllm_lora_router.serve, which does that"
        ]
    if adapter.rank > limits.max_lora_rank:
        return [
            f"adapter {adapter.name!r} in {adapter.folder} has rank {adapter.rank}, and the server was started with "
            f"--max-lora-rank {limits.max_lora_rank}; start it with {rank_limit([adapter.rank])}"
        ]
    return []


def _source_problems(loaded: Loaded, *, without_lora: bool) -> list[str]:
    try:
        sources = Catalogue.of(loaded, {}).sources
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    if sources and without_lora:
        return ["router.adapters.sources: the server was started without LoRA; add --enable-lora"]
    return []


def _yet_to_come(loaded: Loaded, base: ServedBase, known: Mapping[str, Path | None]) -> list[Notice]:
    """Adapters that the configuration routes to and no source has now: a slip of the pen looks the same."""
    try:
        sources = Catalogue.of(loaded, {}).sources
    except ConfigError:
        return []
    if not sources or any(source.by_tenant for source in sources):
        return []
    there = {name for source in sources for name in source.names()}
    scores = (entry for category in loaded.config.categories for entry in category.model_scores)
    names = [entry.lora_name for entry in scores if entry.model == base.alias and entry.lora_name is not None]
    if loaded.config.default_model not in loaded.config.bases:
        names.append(loaded.config.default_model)
    return [
        Notice(
            logging.WARNING,
            f"adapter {name!r} is declared nowhere and in none of router.adapters.sources yet{suggest(name, there)}: "
            "until it comes its requests take the next candidate",
        )
        for name in dict.fromkeys(names)
        if name not in known and name not in there
    ]


def declared(loaded: Loaded, base: ServedBase, command_line: Mapping[str, str]) -> dict[str, Path | None]:
    """Every adapter of this base with its folder; where file and command line both give one, the latter counts."""
    folders: dict[str, Path | None] = {}
    for lora in loaded.config.bases[base.alias].loras:
        folders[lora.name] = None if lora.path is None else loaded.locate(lora.path) or _from_hub(lora.path)
    for name, path in command_line.items():
        folder = Path(path).expanduser()
        folders[name] = folder.resolve() if folder.exists() else _from_hub(path)
    return folders


def _from_hub(path: str) -> Path:
    """The folder of an adapter that `path` names by its hub id, as vLLM would find it; else the path as it stands."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path))
    except Exception:
        # Not an id, not on the hub, or no hub to be reached: the check says that there is no such folder.
        return Path(path)


def _classifier_problems(loaded: Loaded) -> list[str]:
    """What is wrong with the domain model's files, and with the runtimes that the models are to have.

    Labels and their number are read from JSON, not from weights.
    """
    methods = methods_of(loaded.config)
    problems: list[str] = []
    if methods.get("domain"):
        from vllm_lora_router.classifiers.domain import check_files

        try:
            check_files(loaded)
        except ClassifierError as error:
            problems.append(str(error))
    if methods.get("embedding") and head_source(loaded.config) == "folder":
        from vllm_lora_router.classifiers.head_loader import read_stored

        try:
            read_stored(loaded)
        except ClassifierError as error:
            problems.append(str(error))
    used = {"domain": "category_model", "embedding": "embedding_model"}
    for setting in (used[method] for method, configured in methods.items() if configured and method in used):
        model = getattr(loaded.config.classifier, setting)
        try:
            if (folder := loaded.locate(model.model_id)) and is_static(folder):
                check_installed(folder)
            else:
                check_runtime(f"{loaded.file}: classifier.{setting}", model.runtime, model.device)
        except ClassifierError as error:
            problems.append(str(error))
    return problems
