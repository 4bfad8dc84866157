"""The endpoint plugin: what vLLM's API server loads, and what it loads after the engine is up."""

import asyncio
import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lora_router.adapters.base_model import BaseModel
from vllm_lora_router.classifiers.labels import unreached
from vllm_lora_router.config import configured_file, load
from vllm_lora_router.config.base import served_base
from vllm_lora_router.config.notices import notices
from vllm_lora_router.preflight import preflight
from vllm_lora_router.releases import TESTED
from vllm_lora_router.routing.router import Router
from vllm_lora_router.server.api import routes
from vllm_lora_router.server.engine import VllmEngine, release
from vllm_lora_router.server.middleware import LoraRouterMiddleware
from vllm_lora_router.server.serving import Serving

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

NAME = "lora_router"

logger = logging.getLogger("vllm_lora_router.server")


class StartError(RuntimeError):
    """Why the server does not come up, every reason on a line of its own."""


class LoraRouterPlugin:
    """The object behind the entry point `lora_router` (`vllm.plugins.endpoint_plugins.interface.EndpointPlugin`).

    vLLM logs an error of the constructor and goes on without the plugin, so it does nothing that can fail; an error of
    `init_state` stops the server.
    """

    name = NAME
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.serving = Serving()

    def attach_router(self, app: "FastAPI") -> None:
        """Called by vLLM while it builds the app, before its own middleware goes around ours."""
        app.router.routes.extend(routes(self.serving))
        app.add_middleware(LoraRouterMiddleware, serving=self.serving)

    async def init_state(self, engine_client: "EngineClient | None", state: "State", args: Namespace) -> None:
        """Called by vLLM once the engine is up and the adapters of `--lora-modules` are loaded.

        Raises:
            ConfigError: the configuration is wrong.
            StartError: its files are, or it names adapters that the server was not started with.
            ClassifierError: a model is missing or does not fit its settings.
        """
        log_like_vllm()
        if (installed := release()) not in TESTED:
            logger.warning("not tested with vLLM %s, but with %s", installed, ", ".join(TESTED))
        engine = VllmEngine(state.openai_serving_models)
        loaded = load(configured_file(), adapters=engine.adapters)
        base = served_base(loaded, engine.served_names)
        model = base_model(args)
        found = await asyncio.to_thread(preflight, loaded, base, model, engine.served_names, engine.adapters)
        problems = [*found.problems]
        problems += [
            f"adapter {lora.name!r} is not on this server: add it to --lora-modules, or start with python -m "
            "vllm_lora_router.serve, which does that"
            for lora in loaded.config.bases[base.alias].loras
            if lora.path is not None and not engine.can_serve(lora.name)
        ]
        if problems:
            raise StartError("\n".join(["the router cannot start:", *problems]))
        for notice in (*notices(loaded, base), *found.notices):
            logger.log(notice.level, "%s", notice.text)
        router = await asyncio.to_thread(Router.build, loaded, base)
        for mapped in router.classifiers.labels:
            logger.info("label %s -> %s (%s)", mapped.label, mapped.category or "default_model", mapped.how)
        for category in unreached(router.classifiers.labels, loaded.config) if router.classifiers.labels else ():
            logger.warning("no label of the domain model leads to category %r", category)
        self.serving.start(router, engine)
        logger.info("routing %s by %s", "model=" + "/".join(sorted(router.auto_names)), loaded.file)


def base_model(args: Namespace) -> BaseModel:
    """The base model on disk, as far as vLLM's arguments lead to it."""
    name = getattr(args, "model_tag", None) or args.model
    download_dir = getattr(args, "download_dir", None)
    model = BaseModel.find(name, getattr(args, "revision", None), Path(download_dir) if download_dir else None)
    return replace(model, chat_template=True) if getattr(args, "chat_template", None) else model


def log_like_vllm() -> None:
    """Sends our log lines where vLLM's own go, in its form: it configures no logger but its own."""
    ours, theirs = logging.getLogger("vllm_lora_router"), logging.getLogger("vllm")
    if not ours.handlers and theirs.handlers:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(theirs.level)
        ours.propagate = False
