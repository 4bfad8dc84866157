"""Routers that ask a real tool server, over each way there is to one."""

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

from vllm_lora_router.classifiers.mcp.classifier import Tool
from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import ANONYMOUS, Client, Plan, Query

SERVER = Path(__file__).parents[3] / "tool_server.py"

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
            "name": "silent",
            "system_prompt": "Nobody hears this.",
            "system_prompt_enabled": False,
            "model_scores": [{"model": "base"}],
        },
        {"name": "ruled", "methods": ["keyword"], "model_scores": [{"model": "base", "lora_name": "legal-lora"}]},
        {
            "name": "tested",
            "selection": "weighted",
            "model_scores": [{"model": "base", "lora_name": "medical-lora"}, {"model": "base"}],
        },
    ],
}


@dataclass
class Asked:
    """A router, and what a user says to it."""

    router: Router

    @property
    def tool(self) -> Tool:
        assert self.router.classifiers.tool is not None
        return self.router.classifiers.tool

    async def plan(self, *turns: str, caller: Client = ANONYMOUS, **more: Any) -> Plan:
        return await self.router.plan([Query(turns[-1], turns)], caller, **more)


Ask = Callable[..., Asked]


@dataclass(frozen=True)
class Started:
    """A tool server that listens."""

    port: int
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(way: str, port: int | None = None) -> Started:
    port = port or free_port()
    process = subprocess.Popen([sys.executable, str(SERVER), way, str(port)])
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/")
            return Started(port, process)
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"the {way} server did not come up")


@pytest.fixture(scope="module", params=["stdio", "streamable-http", "http"])
def way(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What a configuration says of the way to the server."""
    if request.param == "stdio":
        yield {"command": "python", "args": [str(SERVER), "stdio"]}
        return
    server = start("http" if request.param == "streamable-http" else "plain")
    yield {"transport_type": request.param, "url": f"http://127.0.0.1:{server.port}/mcp"}
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Builds a router over a tool."""
    built: list[Asked] = []

    def build(way: dict[str, Any], before: Asked | None = None, config: dict[str, Any] = CONFIG, **tool: Any) -> Asked:
        file = tmp_path_factory.mktemp("tool") / "config.yaml"
        settings = {"enabled": True, "timeout_seconds": 20, **way, **tool}
        file.write_text(yaml.safe_dump({**config, "classifier": {"mcp_category_model": settings}}))
        loaded = load(file)
        router = Router.build(loaded, served_base(loaded, ["acme/base"]), before.router if before else None)
        built.append(Asked(router))
        return built[-1]

    yield build
    for one in built:
        one.tool.session.close()


@pytest.fixture(scope="module")
def asked(ask: Ask, way: dict[str, Any]) -> Asked:
    """One router for the tests of a module that break nothing."""
    return ask(way)
