"""Routers that call a real tool server, over each transport."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from vllm_lora_router.classifiers.mcp.classifier import McpTool
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import ANONYMOUS, Client, Plan, Query

SERVER = Path(__file__).parents[3] / "tool_server.py"
TRANSPORTS = ("stdio", "streamable-http", "http")

CONFIG: dict[str, Any] = {
    "model_config": {
        "base": {
            "reasoning_family": "gpt-oss",
            "loras": [{"name": "medical-lora"}, {"name": "legal-lora"}, {"name": "acme/shared"}],
        }
    },
    "default_model": "base",
    "categories": [
        {
            "name": "medical",
            "model_scores": [
                {"model": "base", "lora_name": "medical-lora", "use_reasoning": True, "reasoning_effort": "high"}
            ],
        },
        {
            "name": "legal",
            "system_prompt": "You are a lawyer.",
            "model_scores": [{"model": "base", "lora_name": "legal-lora"}],
        },
        {
            "name": "without_prompt",
            "system_prompt": "This prompt is disabled.",
            "system_prompt_enabled": False,
            "model_scores": [{"model": "base"}],
        },
        {"name": "excluded", "methods": ["keyword"], "model_scores": [{"model": "base", "lora_name": "legal-lora"}]},
        {
            "name": "weighted",
            "selection": "weighted",
            "model_scores": [{"model": "base", "lora_name": "medical-lora"}, {"model": "base"}],
        },
    ],
}


@dataclass
class ToolRouter:
    """A router with an MCP tool."""

    router: Router

    @property
    def tool(self) -> McpTool:
        assert self.router.classifiers.mcp_tool is not None
        return self.router.classifiers.mcp_tool

    async def plan(self, *turns: str, client: Client = ANONYMOUS, **options: Any) -> Plan:
        """Return the plan for a conversation with these user messages."""
        return await self.router.plan([Query(turns[-1], turns)], client, **options)


BuildRouter = Callable[..., ToolRouter]


@dataclass(frozen=True)
class RunningServer:
    """A tool server that accepts connections."""

    port: int
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(transport: str, port: int | None = None) -> RunningServer:
    """Start a tool server for a transport over HTTP and wait until it accepts connections."""
    port = port or free_port()
    command = "http" if transport == "streamable-http" else "plain"
    process = subprocess.Popen([sys.executable, str(SERVER), command, str(port)])
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/")
            return RunningServer(port, process)
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"the {transport} server did not start")


def transport_settings(transport: str) -> Iterator[dict[str, Any]]:
    """Yield the settings of a transport while its server runs."""
    if transport == "stdio":
        yield {"command": "python", "args": [str(SERVER), "stdio"]}
        return
    server = start(transport)
    yield {"transport_type": transport, "url": f"http://127.0.0.1:{server.port}/mcp"}
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, Any]]:
    """Settings of the transport streamable-http, for tests that do not depend on the transport."""
    yield from transport_settings("streamable-http")


@pytest.fixture(scope="module", params=TRANSPORTS)
def each_transport(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Settings of each transport."""
    yield from transport_settings(request.param)


@pytest.fixture(scope="module")
def build_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildRouter]:
    """Build routers with a tool and close their sessions after the module."""
    built: list[ToolRouter] = []

    def build(
        settings: dict[str, Any], before: ToolRouter | None = None, config: dict[str, Any] = CONFIG, **tool: Any
    ) -> ToolRouter:
        file = tmp_path_factory.mktemp("tool") / "config.yaml"
        all_settings = {"enabled": True, "timeout_seconds": 20, **settings, **tool}
        file.write_text(yaml.safe_dump({**config, "classifier": {"mcp_category_model": all_settings}}))
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, ["acme/base"]), before.router if before else None)
        built.append(ToolRouter(router))
        return built[-1]

    yield build
    for router in built:
        router.tool.session.close()


@pytest.fixture(scope="module")
def router(build_router: BuildRouter, settings: dict[str, Any]) -> ToolRouter:
    """One router for all tests of a module that do not break its tool."""
    return build_router(settings)


@pytest.fixture(scope="module")
def each_router(build_router: BuildRouter, each_transport: dict[str, Any]) -> ToolRouter:
    """One router for each transport."""
    return build_router(each_transport)
