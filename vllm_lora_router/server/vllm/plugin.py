"""The endpoint plugin: what vLLM's API server loads, and what it loads after the engine is up."""

import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_lora_router.adapters.files.base_model import BaseModel
from vllm_lora_router.config import configured_file
from vllm_lora_router.coordination.run_directory import server_name
from vllm_lora_router.server.api import routes
from vllm_lora_router.server.middleware import LoraRouterMiddleware
from vllm_lora_router.server.startup import Start, start_serving
from vllm_lora_router.server.state import Serving
from vllm_lora_router.server.vllm.engine import VllmEngine, release
from vllm_lora_router.server.vllm.releases import TESTED

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

NAME = "lora_router"

logger = logging.getLogger("vllm_lora_router.server")


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

        Raises what `start_serving` raises.
        """
        log_like_vllm()
        if (installed := release()) not in TESTED:
            logger.warning("not tested with vLLM %s, but with %s", installed, ", ".join(TESTED))
        assert engine_client is not None, "required_tasks asks for an engine"
        engine = VllmEngine(engine_client, state.openai_serving_models)
        modules = {module.name: module for module in args.lora_modules or ()}
        start = Start(
            file=configured_file(),
            engine=engine,
            served_names=engine.served_names,
            limits=engine.limits,
            one_node=engine.is_on_one_node,
            model=base_model(args),
            command_line={name: module.path for name, module in modules.items()},
            is_3d=frozenset(name for name, module in modules.items() if getattr(module, "is_3d_lora_weight", False)),
            server=server_name(args.port),
        )
        await start_serving(start, self.serving)
        await engine.drop_others()


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
