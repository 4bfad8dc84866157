"""The endpoint plugin that adds the router to vLLM's API server."""

import logging
import os
from argparse import Namespace
from typing import TYPE_CHECKING

from vllm_lora_router.config import configured_file
from vllm_lora_router.coordination.run_directory import server_name
from vllm_lora_router.server import anthropic_key
from vllm_lora_router.server.api import include_routes
from vllm_lora_router.server.drain import DrainMiddleware
from vllm_lora_router.server.middleware import LoraRouterMiddleware
from vllm_lora_router.server.startup import START_ERRORS, StartupSettings, start_serving
from vllm_lora_router.server.state import Serving
from vllm_lora_router.server.vllm import TESTED_RELEASES
from vllm_lora_router.server.vllm.api_keys import api_keys_of
from vllm_lora_router.server.vllm.command import base_model, installed_release, share_vllm_log_handlers
from vllm_lora_router.server.vllm.engine import VllmEngine
from vllm_lora_router.server.vllm.lifecycle import ShutdownMiddleware

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
        self._app = app
        app.add_middleware(LoraRouterMiddleware, serving=self.serving)
        app.add_middleware(DrainMiddleware, drain=self.serving.drain)
        app.add_middleware(ShutdownMiddleware, serving=self.serving)
        args: Namespace = app.state.args
        if args.api_key or os.environ.get("VLLM_API_KEY"):
            # First in the list, so that it is inside the middleware of users.
            args.middleware = [anthropic_key.IMPORT_PATH, *args.middleware]

    async def init_state(self, engine_client: "EngineClient | None", state: "State", args: Namespace) -> None:
        """Start routing. vLLM calls this when the engine is up and the adapters of --lora-modules are loaded.

        Raises:
            SystemExit: the server cannot start, and the log says why. vLLM stops its engine.
        """
        share_vllm_log_handlers()
        if (release := installed_release()) not in TESTED_RELEASES:
            tested = ", ".join(TESTED_RELEASES)
            logger.warning("vLLM %s: not a tested release; this version was tested with %s", release, tested)
        assert engine_client is not None, "vLLM provides an engine because of required_tasks"
        self.serving.api_keys = api_keys_of(self._app)
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
            api_keys=self.serving.api_keys,
        )
        try:
            await start_serving(settings, self.serving)
        except START_ERRORS as error:
            logger.error("the server was not started: %s", error)
            # Any other exception would bury the message under tracebacks of vLLM, asyncio and uvicorn.
            raise SystemExit(1) from None
        await engine.unload_command_line_adapters()
