"""Cost of adapters, measured on a stub server that records the location of each requested adapter."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from psutil import disk_partitions
from rich.console import Console
from rich.table import Table

from vllm_lora_router.config import load
from vllm_lora_router.tools.bench.adapters import page_cache
from vllm_lora_router.tools.bench.adapters.many_adapters import measure_many_adapters
from vllm_lora_router.tools.bench.adapters.serving import AdapterLocations, RequestFailedError, configuration
from vllm_lora_router.tools.bench.adapters.switching import (
    STATES,
    State,
    StateRequest,
    adapter_in_state,
    check_capacity,
    longest_pause,
    measure_switching,
    summarize,
)
from vllm_lora_router.tools.bench.adapters.tables import many_adapters_table, switching_table
from vllm_lora_router.tools.statistics import Estimate

SLOTS, IN_MEMORY = 2, 4
NAMES = [f"lora-{number}" for number in range(7)]
MOVE_S, LOAD_S = 0.04, 0.15
KEY = "boss"


def digest(name: str) -> str:
    return f"{NAMES.index(name):08x}"


@dataclass
class Engine:
    """A stub server that evicts the least recently used adapter, as vLLM does."""

    folder: Path
    forgets: bool = True
    order: list[str] = field(default_factory=list)
    seen: list[tuple[str, str, float]] = field(default_factory=list)  # (adapter, location, share in the page cache)
    prompts: list[str] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()
        for name in NAMES:
            for folder in self.folders(name):
                folder.mkdir(parents=True)
                for file in ("adapter_config.json", "adapter_model.safetensors"):
                    (folder / file).write_bytes(bytes(20000))

    def folders(self, name: str) -> tuple[Path, Path]:
        """Return the source folder and the snapshot."""
        return self.folder / name, self.folder / "snapshots" / f"{digest(name)}{'0' * 56}"

    def use(self, name: str) -> str:
        """Return the location of an adapter."""
        place = self.order[::-1].index(name) if name in self.order else IN_MEMORY
        if name in self.order:
            self.order.remove(name)
        self.order.append(name)
        return "slot" if place < SLOTS else "memory" if place < IN_MEMORY or not self.forgets else "disk"

    async def answer(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        name = body["model"]
        if name not in NAMES:
            return web.json_response({"error": "no such model"}, status=404)
        where = self.use(name)
        if where != "slot":
            self.idle.clear()
            await asyncio.sleep(MOVE_S if where == "memory" else LOAD_S)
            self.idle.set()
        self.seen.append(
            (name, where, page_cache.cached_share(file for folder in self.folders(name) for file in folder.iterdir()))
        )
        self.prompts.append(body["messages"][0]["content"])
        response = web.StreamResponse()
        await response.prepare(http)
        for _ in range(body["max_tokens"]):
            await self.idle.wait()
            self.use(name)
            await response.write(b'data: {"model":"' + name.encode() + b'"}\n\n')
            await asyncio.sleep(0.001)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def report(self, http: web.Request) -> web.Response:
        assert http.headers["x-lora-router-admin-key"] == KEY
        loaded = self.order[-IN_MEMORY:] if self.forgets else self.order
        adapters: list[dict[str, Any]] = [{"name": "another", "state": "not requested yet"}]
        adapters += [
            {
                "name": name,
                "version": name,
                "content": digest(name),
                "source": str(self.folder / name),
                "state": "loaded" if name in loaded else "on disk",
            }
            for name in self.order
        ]
        return web.json_response(
            {
                "adapters": adapters,
                "slots": {"number": SLOTS},
                "host_memory": {"number": IN_MEMORY},
                "disk": {"folder": str(self.folder / "snapshots")},
            }
        )


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.fixture
async def url(engine: Engine) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    app.router.add_get("/v1/router/adapters", engine.report)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


def shown(table: Table) -> str:
    console = Console(width=160, file=StringIO())
    console.print(table)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def has_no_disk(folder: Path) -> bool:
    mounts = [mount for mount in disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype in ("tmpfs", "ramfs")


async def test_each_request_finds_its_adapter_in_the_expected_state(engine: Engine, url: str) -> None:
    result = await measure_switching(url, NAMES, 5, 3, 0, admin_key=KEY)
    assert (result.rounds, result.discarded) == (5, 0)
    requests = [(where, cached) for name, where, cached in engine.seen[len(NAMES) :] if name != NAMES[0]]
    dropped = 1.0 if has_no_disk(engine.folder) else 0.0
    assert result.cached_share == dropped
    for start in range(0, 20, 4):
        states = [("disk", dropped), ("disk", 1.0), ("memory", 1.0), ("slot", 1.0)]
        assert sorted(requests[start : start + 4]) == states
    assert len(requests) == 20 and len({prompt[:16] for prompt in engine.prompts}) == len(engine.prompts)


async def test_load_delays_its_first_token_and_pauses_the_background_stream(engine: Engine, url: str) -> None:
    result = await measure_switching(url, NAMES, 6, 3, 1, admin_key=KEY)
    load_ms = LOAD_S * 1000
    for state in ("page cache", "disk"):
        assert 0.8 * load_ms < result.costs[state].more.value
        assert 0.8 * load_ms < result.costs[state].pause.value <= result.costs[state].longest_pause
    assert result.costs["slot"].more == Estimate(0, 0, 0, 6)
    assert result.costs["slot"].first.value < result.costs["memory"].first.value < result.costs["disk"].first.value
    assert result.usual_gap.value < load_ms / 2
    assert all(words in shown(switching_table(result)) for words in ("in host memory", "medians of 6 rounds"))


async def test_server_with_more_memory_than_reported_is_detected(engine: Engine, url: str) -> None:
    engine.forgets = False
    with pytest.raises(RequestFailedError, match="all 2 rounds had an adapter in an unexpected state"):
        await measure_switching(url, NAMES, 2, 3, 0, admin_key=KEY)


async def test_error_names_the_adapter_that_cannot_be_served(engine: Engine, url: str) -> None:
    with pytest.raises(RequestFailedError, match=r"nobody: 404: .*no such model"):
        await measure_switching(url, [*NAMES, "nobody"], 2, 3, 0, admin_key=KEY)


@pytest.mark.parametrize(("slots", "in_memory"), [(2, 3), (2, 6), (4, 5), (4, 32)])
@pytest.mark.parametrize("state", STATES)
def test_chosen_adapter_is_in_its_state_for_any_history(state: State, slots: int, in_memory: int) -> None:
    draw = random.Random(0)
    order = [str(number) for number in range(in_memory + 1)]
    for _ in range(50):
        draw.shuffle(order)
        # The background stream's adapter was used last, because it is always in use.
        since = [*order, "stream"][::-1].index(adapter_in_state(state, order, slots, in_memory))
        place = "slot" if since < slots else "memory" if since < in_memory else "disk"
        assert place == state or (place, state) == ("disk", "page cache")


@pytest.mark.parametrize(
    ("slots", "in_memory", "others", "problem"),
    [
        (1, 4, 9, "--max-loras 2"),
        (2, 2, 9, "--max-cpu-loras 3"),
        (2, 6, 6, "7 adapters are too few: at least 8 are needed"),
    ],
)
def test_server_without_capacity_for_every_state_is_refused(
    slots: int, in_memory: int, others: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        check_capacity(AdapterLocations(slots, in_memory, frozenset(), {}), others)
    check_capacity(AdapterLocations(2, 6, frozenset(), {}), 7)


def test_round_with_an_invalid_request_is_discarded() -> None:
    def request(first: float, *, valid: bool = True) -> StateRequest:
        return StateRequest(first, first, [1.0], 0.0, valid)

    good = [dict(zip(STATES, map(request, (n, n + 1, n + 3, n + 6)), strict=True)) for n in (10.0, 20.0, 30.0)]
    result = summarize([*good, {**good[0], "disk": request(999, valid=False)}])
    assert (result.rounds, result.discarded) == (3, 1)
    assert [result.costs[state].more.value for state in STATES] == [0, 1, 3, 6]
    assert result.costs["disk"].longest_pause == 36


def test_pause_counts_if_it_overlaps_the_request() -> None:
    moments = [0.0, 0.5, 0.6, 0.7, 1.1, 1.2, 3.0]
    assert longest_pause(moments, 0.55, 1.15) == pytest.approx(400)
    assert longest_pause(moments, 0.1, 0.65) == pytest.approx(500)
    assert longest_pause(moments, 1.15, 1.3) == pytest.approx(1800)


def test_dropped_file_is_unchanged_and_only_on_disk(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "empty"]
    files[0].write_bytes(bytes(range(256)) * 1000)
    files[1].touch()
    page_cache.read_into_cache(files)
    assert page_cache.cached_share(files) == 1.0
    page_cache.drop_from_cache(files)
    assert page_cache.cached_share(files) == (1.0 if has_no_disk(tmp_path) else 0.0)
    assert files[0].read_bytes() == bytes(range(256)) * 1000


async def test_first_adapters_are_requested_most_often(engine: Engine, url: str) -> None:
    result = await measure_many_adapters(url, NAMES, [2, 6], [0, 2], 4, 0.3, 2, 0, rounds=2)
    assert [(entry.adapters, entry.mix.exponent) for entry in result] == [(2, 0), (2, 2), (6, 0), (6, 2)]
    assert all(entry.answers > 0 and entry.errors == 0 for entry in result)
    times = [sum(name == requested for requested, _, _ in engine.seen) for name in NAMES]
    assert times[0] > times[1] > max(times[2:6]) and times[6] == 0
    few, many = result[0], result[2]
    assert many.first_p50.value > few.first_p50.value and many.per_second.value < few.per_second.value
    assert all(words in shown(many_adapters_table(result)) for words in ("Zipf 2", "uniform", "answers/s"))


async def test_too_few_adapters_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="8 adapters are to be requested, but there are only 7"):
        await measure_many_adapters(url, NAMES, [8], [0], 1, 0.1, 1, 0)


def test_measured_configuration_loads(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(configuration(tmp_path))
    adapters = load(tmp_path / "config.yaml").config.router.adapters
    assert (adapters.sources[0].path, adapters.max_loads_per_s) == (str(tmp_path), 0)
