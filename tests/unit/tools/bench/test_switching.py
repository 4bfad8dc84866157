"""What adapters cost, measured on a server that knows of each request where its adapter was."""

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
from vllm_lora_router.tools.bench.adapters.crowding import crowding
from vllm_lora_router.tools.bench.adapters.serving import NotAnswered, Whereabouts, configuration
from vllm_lora_router.tools.bench.adapters.switching import (
    STATES,
    Asked,
    State,
    check,
    choose,
    longest_pause,
    summary,
    switching,
)
from vllm_lora_router.tools.bench.adapters.tables import crowding_table, switching_table
from vllm_lora_router.tools.bench.estimates import Estimate

pytestmark = pytest.mark.alone

SLOTS, IN_MEMORY = 2, 4
NAMES = [f"lora-{number}" for number in range(7)]
MOVE_S, LOAD_S = 0.01, 0.05
KEY = "boss"


def digest(name: str) -> str:
    return f"{NAMES.index(name):08x}"


@dataclass
class Engine:
    """Answers like a server with the router, and lets go of what was not used for longest, as vLLM does."""

    folder: Path
    forgets: bool = True
    order: list[str] = field(default_factory=list)
    seen: list[tuple[str, str, float]] = field(
        default_factory=list
    )  # adapter, where it was, how much in the page cache
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
        """Where it lies, and its copy."""
        return self.folder / name, self.folder / "snapshots" / f"{digest(name)}{'0' * 56}"

    def use(self, name: str) -> str:
        """Where it was."""
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
            (name, where, page_cache.kept_share(file for one in self.folders(name) for file in one.iterdir()))
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
        adapters: list[dict[str, Any]] = [{"name": "another", "state": "not asked for yet"}]
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
    mounts = [one for one in disk_partitions(all=True) if folder.is_relative_to(one.mountpoint)]
    return max(mounts, key=lambda one: len(one.mountpoint)).fstype in ("tmpfs", "ramfs")


async def test_each_request_finds_its_adapter_where_it_should_be(engine: Engine, url: str) -> None:
    found = await switching(url, NAMES, 5, 3, 0, admin_key=KEY)
    assert (found.rounds, found.astray) == (5, 0)
    asked = [(where, kept) for name, where, kept in engine.seen[len(NAMES) :] if name != NAMES[0]]
    dropped = 1.0 if has_no_disk(engine.folder) else 0.0
    assert found.kept_share == dropped
    for start in range(0, 20, 4):
        states = [("disk", dropped), ("disk", 1.0), ("memory", 1.0), ("slot", 1.0)]
        assert sorted(asked[start : start + 4]) == states
    assert len(asked) == 20 and len({prompt[:16] for prompt in engine.prompts}) == len(engine.prompts)


async def test_a_load_shows_in_its_own_first_token_and_in_the_other_streams_pause(engine: Engine, url: str) -> None:
    found = await switching(url, NAMES, 6, 3, 1, admin_key=KEY)
    load_ms = LOAD_S * 1000
    for state in ("page cache", "disk"):
        assert 0.8 * load_ms < found.costs[state].more.value
        assert 0.8 * load_ms < found.costs[state].pause.value <= found.costs[state].longest_pause
    assert found.costs["slot"].more == Estimate(0, 0, 0)
    assert found.costs["slot"].first.value < found.costs["memory"].first.value < found.costs["disk"].first.value
    assert found.usual_gap.value < load_ms / 2
    assert all(words in shown(switching_table(found)) for words in ("in host memory", "medians of 6 rounds"))


async def test_a_server_whose_memory_holds_more_than_it_says_is_found_out(engine: Engine, url: str) -> None:
    engine.forgets = False
    with pytest.raises(NotAnswered, match="in none of 2 rounds"):
        await switching(url, NAMES, 2, 3, 0, admin_key=KEY)


async def test_an_adapter_that_cannot_be_served_is_named(engine: Engine, url: str) -> None:
    with pytest.raises(NotAnswered, match=r"nobody: 404: .*no such model"):
        await switching(url, [*NAMES, "nobody"], 2, 3, 0, admin_key=KEY)


@pytest.mark.parametrize(("slots", "in_memory"), [(2, 3), (2, 6), (4, 5), (4, 32)])
@pytest.mark.parametrize("state", STATES)
def test_what_is_chosen_is_in_its_state_whatever_was_used_before(state: State, slots: int, in_memory: int) -> None:
    draw = random.Random(0)
    order = [str(number) for number in range(in_memory + 1)]
    for _ in range(50):
        draw.shuffle(order)
        # The other stream's adapter was used last, for it is used all the time.
        since = [*order, "stream"][::-1].index(choose(state, order, slots, in_memory))
        place = "slot" if since < slots else "memory" if since < in_memory else "disk"
        assert place == state or (place, state) == ("disk", "page cache")


@pytest.mark.parametrize(
    ("slots", "in_memory", "others", "problem"),
    [(1, 4, 9, "--max-loras 2"), (2, 2, 9, "--max-cpu-loras 3"), (2, 6, 6, "7 adapters are too few, 8 or more")],
)
def test_a_server_that_cannot_have_every_state_is_refused(
    slots: int, in_memory: int, others: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        check(Whereabouts(slots, in_memory, frozenset(), {}), others)
    check(Whereabouts(2, 6, frozenset(), {}), 7)


def test_a_round_counts_only_as_a_whole() -> None:
    def asked(first: float, *, sound: bool = True) -> Asked:
        return Asked(first, first, [1.0], 0.0, sound)

    good = [dict(zip(STATES, map(asked, (n, n + 1, n + 3, n + 6)), strict=True)) for n in (10.0, 20.0, 30.0)]
    found = summary([*good, {**good[0], "disk": asked(999, sound=False)}])
    assert (found.rounds, found.astray) == (3, 1)
    assert [found.costs[state].more.value for state in STATES] == [0, 1, 3, 6]
    assert found.costs["disk"].longest_pause == 36


def test_a_pause_counts_that_began_before_the_request_or_ends_after_its_first_token() -> None:
    moments = [0.0, 0.5, 0.6, 0.7, 1.1, 1.2, 3.0]
    assert longest_pause(moments, 0.55, 1.15) == pytest.approx(400)
    assert longest_pause(moments, 0.1, 0.65) == pytest.approx(500)
    assert longest_pause(moments, 1.15, 1.3) == pytest.approx(1800)


def test_a_dropped_file_is_as_it_was_and_on_the_disk_alone(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "empty"]
    files[0].write_bytes(bytes(range(256)) * 1000)
    files[1].touch()
    page_cache.keep(files)
    assert page_cache.kept_share(files) == 1.0
    page_cache.drop(files)
    assert page_cache.kept_share(files) == (1.0 if has_no_disk(tmp_path) else 0.0)
    assert files[0].read_bytes() == bytes(range(256)) * 1000


async def test_a_crowd_asks_for_the_first_adapters_the_first_most_often(engine: Engine, url: str) -> None:
    found = await crowding(url, NAMES, [2, 6], [0, 2], 4, 0.3, 2, 0, rounds=2)
    assert [(crowd.adapters, crowd.mix.exponent) for crowd in found] == [(2, 0), (2, 2), (6, 0), (6, 2)]
    assert all(crowd.answers > 0 and crowd.errors == 0 for crowd in found)
    times = [sum(name == one for one, _, _ in engine.seen) for name in NAMES]
    assert times[0] > times[1] > max(times[2:6]) and times[6] == 0
    few, many = found[0], found[2]
    assert many.first_p50.value > few.first_p50.value and many.per_second.value < few.per_second.value
    assert all(words in shown(crowding_table(found)) for words in ("Zipf 2", "uniform", "answers/s"))


async def test_a_crowd_needs_as_many_adapters_as_it_asks_for(url: str) -> None:
    with pytest.raises(ValueError, match="8 adapters are to be asked for, and there are 7"):
        await crowding(url, NAMES, [8], [0], 1, 0.1, 1, 0)


def test_the_configuration_that_is_measured_loads(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(configuration(tmp_path))
    adapters = load(tmp_path / "config.yaml").config.router.adapters
    assert (adapters.sources[0].path, adapters.max_loads_per_s) == (str(tmp_path), 0)
