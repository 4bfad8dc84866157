"""From a configuration to a server that routes: everything that happens once the engine is up."""

import asyncio
import atexit
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.adapters.runtime.factory import Limits, open_pool, run_parent
from vllm_lora_router.adapters.runtime.loader import Engine
from vllm_lora_router.adapters.runtime.maintenance import Tending
from vllm_lora_router.adapters.runtime.pool import AdapterPool
from vllm_lora_router.adapters.runtime.resolver import Catalogue, Declared
from vllm_lora_router.classifiers import ClassifierError
from vllm_lora_router.classifiers.labels import unreached
from vllm_lora_router.config import ConfigError, load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.config.warnings import Notice, notices
from vllm_lora_router.coordination.run_directory import RunDirectory
from vllm_lora_router.coordination.sighup import on_hangup
from vllm_lora_router.observability.audit_destination import Destination, RecordError, destination
from vllm_lora_router.observability.metrics import Metrics
from vllm_lora_router.observability.recorder import Recorder
from vllm_lora_router.observability.traces import Traces
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.preflight import declared, preflight
from vllm_lora_router.server.reload import Reloading, ReloadRefused
from vllm_lora_router.server.state import Serving

logger = logging.getLogger("vllm_lora_router.server")


class StartError(RuntimeError):
    """Why the server does not come up, every reason on a line of its own."""


@dataclass(frozen=True)
class Start:
    """What one API-server process was started with."""

    file: Path  # the routing configuration
    engine: Engine
    served_names: Sequence[str]
    limits: Limits | None  # None: without --enable-lora
    one_node: bool
    model: BaseModel
    command_line: Mapping[str, str]  # the adapters of --lora-modules, name -> path
    is_3d: Collection[str]  # those of them whose expert weights are stored in three dimensions
    server: str  # the same in all processes of this server


@dataclass(frozen=True)
class Generation:
    """One configuration with everything that it needs, ready to be put in force."""

    router: Router
    catalogue: Catalogue
    destination: Destination  # of the audit record
    says: Sequence[Notice]


async def start_serving(start: Start, serving: Serving) -> None:
    """Puts the configuration in force, and follows its file from then on.

    Raises:
        ConfigError: it is wrong.
        StartError: its files are, or it names adapters and the server was started without LoRA.
        ClassifierError: a model is missing or does not fit its settings.
        RecordError: the audit record cannot be written where it is to go.
    """
    run = await asyncio.to_thread(_meet, start)
    atexit.register(run.close)
    metrics = serving.record.metrics = Metrics()
    serving.record.traces = Traces()
    atexit.register(serving.record.close)
    pool: AdapterPool | None = None

    async def prepare(content: bytes) -> Generation:
        building = asyncio.ensure_future(asyncio.to_thread(_build, start, content, serving.router))
        try:
            return await asyncio.shield(building)
        except (ConfigError, ClassifierError, RecordError, StartError) as error:
            raise ReloadRefused(str(error).splitlines()) from error
        except asyncio.CancelledError:
            # A thread cannot be given up, and the models of two must not be loaded at once.
            await asyncio.wait([building])
            raise

    async def commit(generation: Generation, number: int) -> None:
        for notice in generation.says:
            logger.log(notice.level, "%s", notice.text)
        if pool is not None:
            await pool.configure(generation.catalogue, generation.router.loaded.config.router.adapters)
        _record(serving.record, generation, number)
        serving.router = generation.router

    reloading = Reloading(run, start.file, prepare, commit, ended=metrics.reloaded)
    content = await reloading.begin(await asyncio.to_thread(start.file.read_bytes))
    first = await asyncio.to_thread(_build, start, content, None)
    for notice in first.says:
        logger.log(notice.level, "%s", notice.text)
    if start.limits is not None:
        pool = await _open_pool(start, start.limits, first, run)
        pool.loader.metrics = metrics
    _record(serving.record, first, reloading.generation)
    serving.start(first.router, start.served_names, pool)
    serving.reloading = reloading
    reloading.start()
    on_hangup(run.folder, reloading.reload)
    logger.info("routing %s by %s", "model=" + "/".join(sorted(first.router.auto_names)), start.file)


def _meet(start: Start) -> RunDirectory:
    """The folder that this server's processes share, where they say which content is in force."""
    try:
        parent = run_parent(load(start.file, adapters=start.command_line))
    except ConfigError:
        parent = None  # if no other process runs there, the same error comes again
    return RunDirectory.open(start.server, parent)


def _build(start: Start, content: bytes, before: Router | None) -> Generation:
    """Everything that a configuration needs, checked and loaded; nothing in force changes."""
    loaded = load(start.file, adapters=start.command_line, content=content)
    base = served_base(loaded, start.served_names)
    found = preflight(loaded, base, start.model, start.served_names, start.command_line, start.limits, is_up=True)
    if found.problems:
        raise StartError("\n".join(["the configuration cannot be used:", *found.problems]))
    folders = declared(loaded, base, start.command_line)
    adapters = {name: Declared(folder, name in start.is_3d) for name, folder in folders.items() if folder is not None}
    catalogue = Catalogue.of(loaded, adapters, one_node=start.one_node)
    to = destination(loaded)
    router = Router.build(loaded, base, before)
    return Generation(router, catalogue, to, (*notices(loaded, base), *found.notices, *_labels(router)))


def _record(record: Recorder, generation: Generation, number: int) -> None:
    """What is recorded from now on, and by which names."""
    record.write_to(generation.destination)
    if (metrics := record.metrics) is not None:
        config = generation.router.loaded.config
        adapters = [
            *generation.catalogue.declared,
            *(lora.name for base in config.bases.values() for lora in base.loras),
        ]
        metrics.configure([category.name for category in config.categories], adapters)
        metrics.generation(number)
        for method, scored in generation.router.classifiers.scored.items():
            scored.batcher.told = partial(metrics.batched, method)


async def _open_pool(start: Start, limits: Limits, first: Generation, run: RunDirectory) -> AdapterPool:
    pool = await asyncio.to_thread(
        open_pool,
        *(first.router.loaded, first.catalogue, start.model, start.served_names, start.engine, limits, run),
    )
    if refused := await pool.prepare(first.catalogue.declared):
        problems = (f"adapter {name!r}: {why}" for name, why in refused.items())
        raise StartError("\n".join(["the router cannot start:", *problems]))
    Tending(pool).start()
    return pool


def _labels(router: Router) -> list[Notice]:
    mapped = router.classifiers.labels
    missed = unreached(mapped, router.loaded.config) if mapped else ()
    return [
        *(
            Notice(logging.INFO, f"label {one.label} -> {one.category or 'default_model'} ({one.how})")
            for one in mapped
        ),
        *(Notice(logging.WARNING, f"no label of the domain model leads to category {name!r}") for name in missed),
    ]
