"""A server with more adapters than slots: its configuration, the location of its adapters, and requests for them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from vllm_lora_router.adapters.files.sources import FILES
from vllm_lora_router.server.api import ADMIN_HEADER
from vllm_lora_router.tools.bench.serve.client import Response, chat_request, send
from vllm_lora_router.tools.bench.serve.settings import BASE

ADMIN_KEY_ENV = "ROUTER_ADMIN_KEY"
_DIGEST_DIGITS = 8  # digits of the content digest in the name of a snapshot


class RequestFailedError(RuntimeError):
    """The server did not answer, or another adapter answered."""


def configuration(folder: Path) -> str:
    """Return the YAML of a router that serves every adapter in a folder by name.

    `max_loads_per_s` is off, because it would limit the measured rate and add waiting time to each load. `max_wait_ms`
    keeps its default. It does not limit requests that name their adapter, but without it adapters would keep their
    slots, so it is part of the cost of many adapters.
    """
    content = {
        "model_config": {BASE: {}},
        "default_model": BASE,
        "categories": [{"name": "general", "model_scores": [{"model": BASE}]}],
        "router": {
            "admin_key_env": ADMIN_KEY_ENV,
            "adapters": {"sources": [str(folder)], "max_loads_per_s": 0},
        },
    }
    return yaml.safe_dump(content, sort_keys=False)


@dataclass(frozen=True)
class AdapterLocations:
    """The location of each adapter of a server on this machine."""

    slots: int
    in_memory: int  # capacity of the engine's host memory in adapters, including those in slots
    loaded: frozenset[str]  # adapters in host memory now
    files: Mapping[str, tuple[Path, ...]]  # adapter -> its source files and the snapshot that the engine reads


async def adapter_locations(http: aiohttp.ClientSession, admin_key: str) -> AdapterLocations:
    """Read `GET /v1/router/adapters`, which queries the engine.

    Raises:
        RequestFailedError: the route does not answer with 200.
    """
    async with http.get("/v1/router/adapters", headers={ADMIN_HEADER: admin_key}) as response:
        if response.status != 200:
            raise RequestFailedError(f"GET /v1/router/adapters: {response.status}: {(await response.text())[:300]}")
        return read_report(await response.json())


def read_report(report: Mapping[str, Any]) -> AdapterLocations:
    """Return the locations in a report; it has no version for adapters that were never requested."""
    known = [adapter for adapter in report["adapters"] if "version" in adapter]
    copies = {folder.name[:_DIGEST_DIGITS]: folder for folder in Path(report["disk"]["folder"]).iterdir()}
    folders = {adapter["name"]: [Path(adapter["source"])] for adapter in known}
    for adapter in known:
        if (copy := copies.get(adapter["content"])) is not None:
            folders[adapter["name"]].append(copy)
    return AdapterLocations(
        slots=report["slots"]["number"],
        in_memory=report["host_memory"]["number"],
        loaded=frozenset(adapter["name"] for adapter in known if adapter["state"] == "loaded"),
        files={name: tuple(folder / file for folder in paths for file in FILES) for name, paths in folders.items()},
    )


async def request_adapter(http: aiohttp.ClientSession, name: str, tokens: int, chance: random.Random) -> Response:
    """Send a request with a unique prompt, which no prefix cache contains."""
    response = await send(http, chat_request(name, unique_prompt(chance), tokens))
    if not response.error and response.model != name:
        response.error = f"{response.model!r} answered"
    return response


async def request_each(http: aiohttp.ClientSession, names: Sequence[str], chance: random.Random) -> None:
    """Request every adapter once, one after the other, so that all are validated and copied and the last are in memory.

    Raises:
        RequestFailedError: an adapter cannot be served.
    """
    for name in names:
        if error := (await request_adapter(http, name, 1, chance)).error:
            raise RequestFailedError(f"{name}: {error}")


def unique_prompt(chance: random.Random) -> str:
    """Return a short prompt with a unique beginning."""
    return f"{chance.getrandbits(64):016x}: is it even, and what comes next?"
