"""Startup of the router in an API-server process once the engine is up, and the steps of a configuration reload."""

import asyncio
import atexit
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.files.snapshots import SnapshotError
from vllm_lora_router.adapters.runtime.disk_calls import run_in_daemon_thread
from vllm_lora_router.adapters.runtime.factory import EngineLimits, open_pool, run_directory_parent
from vllm_lora_router.adapters.runtime.loader import Engine
from vllm_lora_router.adapters.runtime.maintenance import Maintenance
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.resolver import DeclaredFolder, Resolver
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.labels import unreachable_categories
from vllm_lora_router.config import ConfigError, load
from vllm_lora_router.config.file_content import read_content
from vllm_lora_router.config.loader import LoadedConfig
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import ConfigWarning, config_warnings
from vllm_lora_router.coordination.run_directory import RunDirectory, RunDirectoryError
from vllm_lora_router.coordination.sighup import reload_on_sighup
from vllm_lora_router.observability.audit_destination import (
    AuditDestination,
    AuditDestinationError,
    prepare_destination,
)
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.observability.recorder import Recorder
from vllm_lora_router.observability.traces import Traces
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.guard import ApiKeys
from vllm_lora_router.server.preflight import preflight
from vllm_lora_router.server.reload import ConfigReloader, ReloadRefusedError
from vllm_lora_router.server.state import Serving
from vllm_lora_router.server.tenants import TenantKeys

logger = logging.getLogger("vllm_lora_router.server")


class StartupError(RuntimeError):
    """The server cannot start. The message has one line per cause."""


# The errors of `start_serving` whose message says all that a user needs; any other error is a defect.
START_ERRORS = (
    ConfigError,
    StartupError,
    ClassifierError,
    AuditDestinationError,
    RunDirectoryError,
    SnapshotError,
)


@dataclass(frozen=True)
class StartupSettings:
    """The settings that one API-server process was started with."""

    file: Path  # the routing configuration
    engine: Engine
    served_names: Sequence[str]
    limits: EngineLimits | None  # None: without --enable-lora
    one_node: bool  # whether all engines run on this node
    model: BaseModel
    command_line: Mapping[str, str]  # adapter name to path, from --lora-modules
    adapters_with_3d_weights: Collection[str]  # adapters of the command line that store expert weights as 3D tensors
    server: str  # identifies the server; the same in all of its processes
    api_keys: ApiKeys | None = None  # None: the server has no API key


@dataclass(frozen=True)
class Generation:
    """One configuration with all resources that it needs, ready to take effect."""

    router: Router
    resolver: Resolver
    audit_destination: AuditDestination
    tenant_keys: TenantKeys | None
    notices: Sequence[ConfigWarning]


async def start_serving(settings: StartupSettings, serving: Serving) -> None:
    """Put the configuration in effect, and watch its file from then on.

    Raises:
        ConfigError: the configuration is invalid.
        StartupError: an adapter is invalid, or adapters are configured and the server was started without LoRA.
        ClassifierError: a classifier model is missing or does not match its settings.
        AuditDestinationError: the audit record cannot be written at the configured path.
        RunDirectoryError: the run directory cannot be created, or its disk is full.
        SnapshotError: copies of adapters cannot be stored.
    """
    run = await asyncio.to_thread(_open_run_directory, settings)
    atexit.register(run.close)
    metrics = serving.recorder.metrics = Metrics()
    serving.recorder.traces = Traces()
    atexit.register(serving.recorder.close)
    pool: AdapterPool | None = None

    async def prepare(content: bytes) -> Generation:
        # The files of declared adapters may be on a file system that does not answer.
        building = run_in_daemon_thread(partial(_build, settings, content, serving.router))
        try:
            return await asyncio.shield(building)
        except (ConfigError, ClassifierError, AuditDestinationError, StartupError) as error:
            raise ReloadRefusedError(str(error).splitlines()) from error
        except asyncio.CancelledError:
            # The thread cannot be cancelled, and the models of two configurations must not be loaded at the same time.
            await asyncio.wait([building])
            raise

    async def commit(generation: Generation, number: int) -> None:
        if pool is not None:
            await pool.configure(generation.resolver, generation.router.loaded.config.router.adapters)
        _configure_recorder(serving.recorder, generation, number)
        serving.router, serving.tenant_keys = generation.router, generation.tenant_keys
        _log_notices(generation)

    reloader = ConfigReloader(run, settings.file, prepare, commit, on_outcome=metrics.count_reload)
    content = await reloader.join(await asyncio.to_thread(read_content, settings.file))
    first = await asyncio.to_thread(_build, settings, content, None)
    _log_notices(first)
    if settings.limits is not None:
        pool = await _open_pool(settings, settings.limits, first, run)
        pool.loader.metrics = metrics
    _configure_recorder(serving.recorder, first, reloader.generation)
    serving.tenant_keys = first.tenant_keys
    serving.start(first.router, settings.served_names, pool)
    serving.reloader = reloader
    reloader.start()
    reload_on_sighup(run.folder, reloader.reload)
    logger.info("routing started for model=%s with %s", "/".join(sorted(first.router.auto_names)), settings.file)


def _open_run_directory(settings: StartupSettings) -> RunDirectory:
    try:
        parent = run_directory_parent(load(settings.file, adapters=settings.command_line))
    except ConfigError:
        parent = None  # `_build` raises the same error, unless running processes have another content in effect
    return RunDirectory.open(settings.server, parent)


def _build(settings: StartupSettings, content: bytes, previous: Router | None) -> Generation:
    """Validate a configuration and load its models. The configuration in effect does not change."""
    loaded = load(settings.file, adapters=settings.command_line, content=content)
    base = served_base(loaded, settings.served_names)
    checks = preflight(
        loaded,
        base,
        settings.model,
        settings.served_names,
        settings.command_line,
        settings.limits,
        engine_is_up=True,
    )
    if checks.problems:
        raise StartupError("\n".join(["the configuration cannot be used:", *checks.problems]))
    adapters = {
        name: DeclaredFolder(folder, name in settings.adapters_with_3d_weights)
        for name, folder in checks.folders.items()
        if folder is not None
    }
    resolver = Resolver.from_config(loaded, adapters, served_names=settings.served_names, one_node=settings.one_node)
    audit_destination = prepare_destination(loaded)
    router = Router.build(loaded, base, previous)
    tenant_keys = _tenant_keys(loaded)
    notices = (
        *config_warnings(loaded, base),
        *checks.notices,
        *_label_notices(router),
        *_tenant_key_notices(tenant_keys, settings.api_keys),
    )
    return Generation(router, resolver, audit_destination, tenant_keys, notices)


def _tenant_keys(loaded: LoadedConfig) -> TenantKeys | None:
    settings = loaded.config.router.tenants
    return None if settings is None else TenantKeys.from_environment(settings.keys_env)


def _log_notices(generation: Generation) -> None:
    for notice in generation.notices:
        logger.log(notice.level, "%s", notice.text)


def _configure_recorder(recorder: Recorder, generation: Generation, number: int) -> None:
    """Set the audit destination, and the names that metrics may use as labels."""
    recorder.set_destination(generation.audit_destination)
    if (metrics := recorder.metrics) is not None:
        config = generation.router.loaded.config
        adapters = [
            *generation.resolver.declared,
            *(lora.name for base in config.bases.values() for lora in base.loras),
        ]
        metrics.configure([category.name for category in config.categories], adapters)
        metrics.set_generation(number)
        for method, classifier in generation.router.classifiers.model_classifiers.items():
            classifier.batcher.on_batch = partial(metrics.observe_batch, method)


async def _open_pool(
    settings: StartupSettings, limits: EngineLimits, first: Generation, run: RunDirectory
) -> AdapterPool:
    pool = await asyncio.to_thread(
        open_pool,
        *(first.router.loaded, first.resolver, settings.model, settings.served_names, settings.engine, limits, run),
    )
    if refused := await pool.preload(first.resolver.declared):
        problems = (f"adapter {name!r}: {cause}" for name, cause in refused.items())
        raise StartupError("\n".join(["declared adapters cannot be served:", *problems]))
    Maintenance(pool).start()
    return pool


def _tenant_key_notices(tenant_keys: TenantKeys | None, api_keys: ApiKeys | None) -> list[ConfigWarning]:
    if tenant_keys is None or api_keys is None:
        return []
    return [
        ConfigWarning(
            logging.WARNING,
            f"router.tenants: tenant {tenant!r} cannot authenticate, because none of its keys is an API key of this "
            "server; add one to --api-key",
        )
        for tenant in tenant_keys.tenants_without(api_keys.digests)
    ]


def _label_notices(router: Router) -> list[ConfigWarning]:
    labels = router.classifiers.label_mapping
    unreachable = unreachable_categories(labels, router.loaded.config) if labels else ()
    return [
        *(
            ConfigWarning(logging.INFO, f"label {label.label} -> {label.category or 'default_model'} ({label.source})")
            for label in labels
        ),
        *(
            ConfigWarning(logging.WARNING, f"category {name!r}: no label of the domain model selects it")
            for name in unreachable
        ),
    ]
