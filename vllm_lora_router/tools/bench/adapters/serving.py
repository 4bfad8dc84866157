"""A server with more adapters than slots: its configuration, where it has them now, and requests that name them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from vllm_lora_router.adapters.files.sources import FILES
from vllm_lora_router.server.api import ADMIN_HEADER
from vllm_lora_router.tools.bench.serve.client import Answered, ask, request
from vllm_lora_router.tools.bench.serve.settings import BASE

ADMIN_KEY_ENV = "ROUTER_ADMIN_KEY"
_SHOWN = 8  # digits of a content's digest, by which its copy is called


class NotAnswered(RuntimeError):
    """The server did not answer, or not as the adapter that was named."""


def configuration(folder: Path) -> str:
    """The YAML of a router that serves every adapter in a folder to who names it.

    `max_loads_per_s` is off: it would bound what is measured to its own figure, and a load would be charged with the
    wait for its turn. `max_wait_ms` stays as users have it. It bounds no request that names its adapter, but without it
    adapters with a slot would keep theirs for ever: it is a part of what a crowd of adapters costs.
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
class Whereabouts:
    """Where a server on this machine has its adapters."""

    slots: int
    in_memory: int  # adapters that the engine keeps in host memory, those in a slot counted
    loaded: frozenset[str]  # that are there now
    files: Mapping[str, tuple[Path, ...]]  # of each adapter: where it lies, and the copy that the engine reads


async def whereabouts(http: aiohttp.ClientSession, admin_key: str) -> Whereabouts:
    """What `GET /v1/router/adapters` says, which asks the engine.

    Raises:
        NotAnswered: it says nothing.
    """
    async with http.get("/v1/router/adapters", headers={ADMIN_HEADER: admin_key}) as response:
        if response.status != 200:
            raise NotAnswered(f"GET /v1/router/adapters: {response.status}: {(await response.text())[:300]}")
        return read_report(await response.json())


def read_report(report: Mapping[str, Any]) -> Whereabouts:
    """The part of the report that counts here; of adapters that were never asked for it says nothing."""
    known = [one for one in report["adapters"] if "version" in one]
    copies = {folder.name[:_SHOWN]: folder for folder in Path(report["disk"]["folder"]).iterdir()}
    folders = {one["name"]: [Path(one["source"])] for one in known}
    for one in known:
        if (copy := copies.get(one["content"])) is not None:
            folders[one["name"]].append(copy)
    return Whereabouts(
        slots=report["slots"]["number"],
        in_memory=report["host_memory"]["number"],
        loaded=frozenset(one["name"] for one in known if one["state"] == "loaded"),
        files={name: tuple(folder / file for folder in own for file in FILES) for name, own in folders.items()},
    )


async def ask_adapter(http: aiohttp.ClientSession, name: str, tokens: int, chance: random.Random) -> Answered:
    """One answer of an adapter, to a prompt that begins like no other: no prefix cache has any of it."""
    answered = await ask(http, request(name, unlike(chance), tokens))
    if not answered.error and answered.model != name:
        answered.error = f"{answered.model!r} answered"
    return answered


async def ask_each(http: aiohttp.ClientSession, names: Sequence[str], chance: random.Random) -> None:
    """Has every adapter looked at, copied and loaded once, one after the other: the last ones stay in memory.

    Raises:
        NotAnswered: one of them cannot be served.
    """
    for name in names:
        if error := (await ask_adapter(http, name, 1, chance)).error:
            raise NotAnswered(f"{name}: {error}")


def unlike(chance: random.Random) -> str:
    """A short prompt that begins like no other."""
    return f"{chance.getrandbits(64):016x}: is it even, and what comes next?"
