"""The endpoint plugin that adds the router to vLLM's API server."""

import logging
from argparse import Namespace
from typing import TYPE_CHECKING

from vllm_lora_router.config import configured_file
from vllm_lora_router.coordination.run_directory import server_name
from vllm_lora_router.server.api import include_routes
from vllm_lora_router.server.middleware import LoraRouterMiddleware
from vllm_lora_router.server.startup import StartupSettings, start_serving
from vllm_lora_router.server.state import Serving
from vllm_lora_router.server.vllm import TESTED_RELEASES
from vllm_lora_router.server.vllm.command import base_model, installed_release, share_vllm_log_handlers
from vllm_lora_router.server.vllm.engine import VllmEngine

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

logger = logging.getLogger("vllm_lora_router.server")


class LoraRouterPlugin:
    """The class behind the entry point `lora_router`.

    It implements `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`. vLLM logs an error of the constructor and
    continues without the plugin, so the constructor does nothing that can fail. An error of `init_state` stops the
    server.
    """

    name = "lora_router"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self.serving = Serving()

    def attach_router(self, app: "FastAPI") -> None:
        """Add routes and middleware. vLLM calls this while it builds the app, before it adds its own middleware."""
        include_routes(app, self.serving)
        app.add_middleware(LoraRouterMiddleware, serving=self.serving)

    async def init_state(self, engine_client: "EngineClient | None", state: "State", args: Namespace) -> None:
        """Start routing. vLLM calls this when the engine is up and the adapters of --lora-modules are loaded.

        Raises:
            Exception: see `start_serving`.
        """
        share_vllm_log_handlers()
        if (release := installed_release()) not in TESTED_RELEASES:
            tested = ", ".join(TESTED_RELEASES)
            logger.warning("vLLM %s: not a tested release; this version was tested with %s", release, tested)
        assert engine_client is not None, "vLLM provides an engine because of required_tasks"
        engine = VllmEngine(engine_client, state.openai_serving_models)
        modules = {module.name: module for module in args.lora_modules or ()}
        settings = StartupSettings(
            file=configured_file(),
            engine=engine,
            served_names=engine.served_names,
            limits=engine.limits,
            one_node=engine.is_on_one_node,
            model=base_model(args),
            command_line={name: module.path for name, module in modules.items()},
            adapters_with_3d_weights=frozenset(
                name for name, module in modules.items() if getattr(module, "is_3d_lora_weight", False)
            ),
            server=server_name(args.port),
        )
        await start_serving(settings, self.serving)
        await engine.unload_command_line_adapters()
