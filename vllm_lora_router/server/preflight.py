"""Checks of a configuration's adapters and model files, before the engine starts and at every reload."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.sources import FILES
from vllm_lora_router.adapters.files.validation import Adapter, AdapterError, validate_adapter
from vllm_lora_router.adapters.files.vllm_limits import rank_limit
from vllm_lora_router.adapters.runtime.factory import EngineLimits
from vllm_lora_router.adapters.runtime.resolver import Resolver
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.head_loader import check_head
from vllm_lora_router.classifiers.labels import check_files
from vllm_lora_router.classifiers.models.backend import check_runtime
from vllm_lora_router.classifiers.models.static_embeddings import check_installed, is_static
from vllm_lora_router.config.adapter_names import invalid_name_reason
from vllm_lora_router.config.head_source import head_source
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.methods import configured_methods
from vllm_lora_router.config.served_base import ServedBase
from vllm_lora_router.config.warnings import ConfigWarning
from vllm_lora_router.config.yaml_document import ConfigError
from vllm_lora_router.server.tenants import TenantKeys
from vllm_lora_router.text import suggest

HUB_PREFIX = "hf:"


@dataclass(frozen=True)
class Preflight:
    """The result of the checks."""

    adapters: tuple[Adapter, ...]  # the declared adapters that are valid
    folders: Mapping[str, Path | None]  # of all declared adapters, see `declared_folders`
    notices: tuple[ConfigWarning, ...]
    problems: tuple[str, ...]  # each one prevents the start or the reload


def preflight(
    loaded: LoadedConfig,
    base: ServedBase,
    model: BaseModel,
    served_names: Sequence[str],
    command_line: Mapping[str, str],
    limits: EngineLimits | None = None,
    *,
    engine_is_up: bool = False,
) -> Preflight:
    """Check every declared adapter against the base model, and check the classifiers' files.

    Args:
        loaded: the configuration.
        base: the base model's entry in the configuration.
        model: the base model's files, as far as they are on disk.
        served_names: the names that the base model is served under.
        command_line: adapter name to path, from `--lora-modules`.
        limits: the engine's LoRA limits; None: an engine without LoRA. Ignored unless `engine_is_up`.
        engine_is_up: whether the engine's limits are fixed already.
    """
    problems: list[str] = []
    notices: list[ConfigWarning] = []
    adapters: list[Adapter] = []
    folders, download_problems = declared_folders(loaded, base, command_line)
    problems += download_problems
    notices += _hub_notices(command_line)
    for name, folder in folders.items():
        if reason := invalid_name_reason(name, served_names, reserved=loaded.config.auto_names):
            problems.append(reason)
        if folder is None:
            problems.append(
                f"adapter {name!r} is declared without a folder: set path in model_config.{base.alias}.loras[], or "
                f"start with --lora-modules {name}=/path/to/adapter"
            )
            continue
        try:
            adapter = validate_adapter(name, folder, model)
        except AdapterError as error:
            problems.append(str(error))
        else:
            adapters.append(adapter)
            problems += _limit_problems(adapter, limits) if engine_is_up else []
            notices += [ConfigWarning(logging.WARNING, warning) for warning in adapter.warnings]
    problems += _source_problems(loaded, without_lora=engine_is_up and limits is None)
    notices += _unknown_adapters(loaded, base, folders)
    problems += _classifier_problems(loaded)
    problems += _tenant_problems(loaded)
    if model.chat_template is False:
        notices.append(
            ConfigWarning(
                logging.WARNING,
                f"base model {model.name!r} has no chat template: chat completions fail; set --chat-template",
            )
        )
    return Preflight(tuple(adapters), folders, tuple(notices), tuple(problems))


def _tenant_problems(loaded: LoadedConfig) -> list[str]:
    if (settings := loaded.config.router.tenants) is not None:
        try:
            TenantKeys.from_environment(settings.keys_env)
        except ValueError as error:
            return [str(error)]
    return []


def _limit_problems(adapter: Adapter, limits: EngineLimits | None) -> list[str]:
    if limits is None:
        return [
            f"adapter {adapter.name!r} cannot be served: the server was started without LoRA; add --enable-lora, or "
            "start with python -m vllm_lora_router.serve, which adds it"
        ]
    if adapter.rank > limits.max_lora_rank:
        return [
            f"adapter {adapter.name!r} in {adapter.folder} has rank {adapter.rank}, and the server was started with "
            f"--max-lora-rank {limits.max_lora_rank}; start it with --max-lora-rank {rank_limit([adapter.rank])}"
        ]
    return []


def _source_problems(loaded: LoadedConfig, *, without_lora: bool) -> list[str]:
    try:
        sources = Resolver.from_config(loaded, {}).sources
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    if sources and without_lora:
        return ["router.adapters.sources: the server was started without LoRA; add --enable-lora"]
    return []


def _unknown_adapters(
    loaded: LoadedConfig, base: ServedBase, declared: Mapping[str, Path | None]
) -> list[ConfigWarning]:
    """Return a warning for each adapter that the configuration routes to and no source contains.

    The adapter may arrive later, or its name may be misspelled.
    """
    try:
        sources = Resolver.from_config(loaded, {}).sources
    except ConfigError:
        return []
    if not sources or any(source.by_tenant for source in sources):
        return []
    in_sources = {name for source in sources for name in source.names()}
    scores = (score for category in loaded.config.categories for score in category.model_scores)
    routed = [score.lora_name for score in scores if score.model == base.alias and score.lora_name is not None]
    if loaded.config.default_model not in loaded.config.bases:
        routed.append(loaded.config.default_model)
    return [
        ConfigWarning(
            logging.WARNING,
            f"adapter {name!r} is not declared and not in router.adapters.sources: its requests fall back to the next "
            f"candidate until it is added{suggest(name, in_sources)}",
        )
        for name in dict.fromkeys(routed)
        if name not in declared and name not in in_sources
    ]


def declared_folders(
    loaded: LoadedConfig, base: ServedBase, command_line: Mapping[str, str]
) -> tuple[dict[str, Path | None], list[str]]:
    """Find the folder of every declared adapter of this base. The command line takes precedence over the file.

    Only `path: hf:...` is downloaded: a misspelled folder must not become the name of someone's adapter on the hub. On
    the command line, a relative path that does not exist is a hub id, because vLLM reads the same flag.

    Returns:
        The folders by adapter, None if no folder is configured; and the downloads that failed.
    """
    folders: dict[str, Path | None] = {}
    problems: list[str] = []
    for lora in loaded.config.bases[base.alias].loras:
        if lora.name in command_line:
            continue
        if lora.path is None or not lora.path.startswith(HUB_PREFIX):
            folders[lora.name] = None if lora.path is None else loaded.locate(lora.path) or Path(lora.path)
            continue
        try:
            folders[lora.name] = _download(lora.path.removeprefix(HUB_PREFIX))
        except HubError as error:
            problems.append(f"adapter {lora.name!r}: path {lora.path!r} cannot be downloaded ({error})")
    for name, path in command_line.items():
        folder = Path(path).expanduser()
        if folder.exists() or not is_hub_id(path):
            folders[name] = folder.resolve()
            continue
        try:
            folders[name] = _download(path)
        except HubError:
            folders[name] = folder  # validation reports the missing folder
    return folders, problems


class HubError(ValueError):
    """An adapter cannot be downloaded from the hub."""


def is_hub_id(path: str) -> bool:
    """Return whether vLLM takes a path that does not exist for a hub id: a name, or an organization and a name."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path, re.ASCII) is not None


def _download(hub_id: str) -> Path:
    """Return the folder of an adapter of the hub, `organization/name` or `organization/name@revision`."""
    name, _, revision = hub_id.partition("@")
    try:
        # Optional, and only needed for hub ids.
        from huggingface_hub import snapshot_download

        # Other files, such as pickles, are not needed.
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        raise HubError(str(error).partition("\n")[0] or type(error).__name__) from error


def _hub_notices(command_line: Mapping[str, str]) -> list[ConfigWarning]:
    return [
        ConfigWarning(
            logging.WARNING,
            f"--lora-modules {name}={path}: there is no such folder, so vLLM takes it for an adapter of the model hub; "
            "use an absolute path if you mean a folder",
        )
        for name, path in command_line.items()
        if is_hub_id(path) and not Path(path).expanduser().exists()
    ]


def _classifier_problems(loaded: LoadedConfig) -> list[str]:
    """Check the files of the domain model and the head, and the runtimes of the configured models.

    Labels are read from JSON files. No weights are loaded, except those of an encoder to which a head must belong.
    """
    methods = configured_methods(loaded.config)
    problems: list[str] = []
    if methods.get("domain"):
        try:
            check_files(loaded)
        except ClassifierError as error:
            problems.append(str(error))
    if methods.get("embedding") and head_source(loaded.config) == "folder":
        try:
            check_head(loaded)
        except ClassifierError as error:
            problems.append(str(error))
    settings_keys = {"domain": "category_model", "embedding": "embedding_model"}
    for method, configured in methods.items():
        if not configured or method not in settings_keys:
            continue
        key = settings_keys[method]
        settings = getattr(loaded.config.classifier, key)
        try:
            if (folder := loaded.locate(settings.model_id)) and is_static(folder):
                check_installed(folder)
            else:
                check_runtime(f"{loaded.file}: classifier.{key}", settings.runtime, settings.device)
        except ClassifierError as error:
            problems.append(str(error))
    return problems
