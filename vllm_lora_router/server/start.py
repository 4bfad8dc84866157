"""From a configuration to a server that routes: everything that happens once the engine is up."""

import asyncio
import atexit
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lora_router.adapters.base_model import BaseModel
from vllm_lora_router.classifiers.labels import unreached
from vllm_lora_router.config import load
from vllm_lora_router.config.base import ServedBase, served_base
from vllm_lora_router.config.loader import Loaded
from vllm_lora_router.config.notices import notices
from vllm_lora_router.pool.catalogue import Catalogue, Declared
from vllm_lora_router.pool.loading import Engine
from vllm_lora_router.pool.opening import Limits, open_pool, run_directory
from vllm_lora_router.pool.pool import AdapterPool
from vllm_lora_router.pool.tending import Tending
from vllm_lora_router.preflight import declared, preflight
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.serving import Serving

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


async def start_serving(start: Start, serving: Serving) -> None:
    """Puts the configuration in force.

    Raises:
        ConfigError: it is wrong.
        StartError: its files are, or it names adapters and the server was started without LoRA.
        ClassifierError: a model is missing or does not fit its settings.
    """
    loaded = load(start.file, adapters=start.command_line)
    base = served_base(loaded, start.served_names)
    await _check(start, loaded, base)
    router = await asyncio.to_thread(Router.build, loaded, base)
    _say(router)
    pool = await _open_pool(start, loaded, base) if start.limits is not None else None
    serving.start(router, start.served_names, pool)
    logger.info("routing %s by %s", "model=" + "/".join(sorted(router.auto_names)), loaded.file)


async def _check(start: Start, loaded: Loaded, base: ServedBase) -> None:
    found = await asyncio.to_thread(
        preflight, loaded, base, start.model, start.served_names, start.command_line, start.limits, is_up=True
    )
    if found.problems:
        raise StartError("\n".join(["the router cannot start:", *found.problems]))
    for notice in (*notices(loaded, base), *found.notices):
        logger.log(notice.level, "%s", notice.text)


def catalogue(start: Start, loaded: Loaded, base: ServedBase) -> Catalogue:
    """Where adapters may come from under this configuration.

    Raises:
        ConfigError: a source is no folder and no template.
    """
    folders = declared(loaded, base, start.command_line)
    adapters = {name: Declared(folder, name in start.is_3d) for name, folder in folders.items() if folder is not None}
    return Catalogue.of(loaded, adapters, one_node=start.one_node)


async def _open_pool(start: Start, loaded: Loaded, base: ServedBase) -> AdapterPool:
    assert start.limits is not None
    known = catalogue(start, loaded, base)
    run = run_directory(loaded, start.server)
    atexit.register(run.close)
    pool = await asyncio.to_thread(
        open_pool, loaded, known, start.model, start.served_names, start.engine, start.limits, run
    )
    refused = await pool.prepare(known.declared)
    if refused:
        raise StartError("\n".join(["the router cannot start:", *(f"{name}: {why}" for name, why in refused.items())]))
    Tending(pool).start()
    return pool


def _say(router: Router) -> None:
    for mapped in router.classifiers.labels:
        logger.info("label %s -> %s (%s)", mapped.label, mapped.category or "default_model", mapped.how)
    for category in unreached(router.classifiers.labels, router.loaded.config) if router.classifiers.labels else ():
        logger.warning("no label of the domain model leads to category %r", category)
