"""Adapters' files that change in every way under load: the engine lives, and nobody gets wrong weights."""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from vllm_lora_router.tools.demo.answers import BASE_ANSWER
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import START_SECONDS
from .swaps import LAG_S, SwappedAdapter
from .traffic import PROMPT, Asked, Streamed, Traffic, ask, body, session, stream, versions_are_one_to_one

END = 2  # the token that ends an answer, which long ones must not take
LONG = {"max_tokens": 300, "logit_bias": {END: -100}}

ADMIN = {"x-lora-router-admin-key": "boss"}

CONFIG = """
model_config: {{tiny: }}
default_model: tiny
keyword_rules:
{rules}
categories:
{categories}
router:
  log: "off"
  admin_key_env: ROUTER_ADMIN_KEY
  adapters: {{sources: [{folder}], max_loads_per_s: {loads}, max_wait_ms: {wait_ms}}}
"""


def configuration(folder: Path, names: dict[str, str], *, loads: float = 0, wait_ms: float = 2000) -> str:
    """Keywords to adapters."""
    rules = "\n".join(f"  - {{category: {word}, keywords: [{word}]}}" for word in names)
    categories = "\n".join(
        f"  - {{name: {word}, model_scores: [{{model: tiny, lora_name: {name}}}]}}" for word, name in names.items()
    )
    return CONFIG.format(rules=rules, categories=categories, folder=folder, loads=loads, wait_ms=wait_ms)


@contextmanager
def serving(models: DemoModels, folder: Path, config: str, *flags: str) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config)
    server = Server(
        [
            str(models.base),
            "--served-model-name",
            "tiny",
            "--router-config",
            str(folder / "config.yaml"),
            *FLAGS,
            *flags,
        ],
        log=folder / "server.log",
        directory=folder,
        environment={"ROUTER_ADMIN_KEY": "boss"},
    )
    with server:
        server.wait(START_SECONDS)
        yield server


def say(what: str, **figures: object) -> None:
    """A line that `launch/faults.sh` shows."""
    print(f"\n{what}: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


async def health(url: str) -> dict[str, Any]:
    async with session(url) as http, http.get("/v1/router/health") as response:
        return await response.json()


async def adapters(url: str) -> dict[str, Any]:
    async with session(url) as http, http.get("/v1/router/adapters", headers=ADMIN) as response:
        return await response.json()


@pytest.mark.once
@pytest.mark.parametrize("processes", [1, 2])
async def test_files_that_change_in_every_way_under_load(
    models: DemoModels, many: ManyAdapters, tmp_path: Path, full: bool, processes: int
) -> None:
    """Two slots, memory for three, prefix caching, an old stream alive at each swap, others loaded meanwhile."""
    if processes == 1 and not full:
        pytest.skip("with two processes only, unless at full length")
    swaps, requests = (200, 20_000) if full else (16, 600)
    source = tmp_path / "adapters"
    source.mkdir()
    swapped = SwappedAdapter(source / "swapped", many, count(1000))
    others = [f"other-{number}" for number in range(4)]
    for number, name in enumerate(others):
        many.write(number, source / name)
    flags = ["--max-loras", "2", "--max-cpu-loras", "3", "--enable-prefix-caching"]
    flags += ["--api-server-count", str(processes)] if processes > 1 else []
    config = configuration(source, {"swapped": "swapped", **{name.replace("-", ""): name for name in others}})
    answers: dict[str, int] = {}

    def question(draw: random.Random) -> tuple[str, dict[str, Any]]:
        name = "swapped" if draw.random() < 0.6 else draw.choice(others)
        if draw.random() < 0.5:
            return name, body(name, PROMPT)
        return name, body("MoM", f"{PROMPT} {name.replace('-', '')}")

    with serving(models, tmp_path / "run", config, *flags) as server:
        streams: list[tuple[int, Streamed]] = []
        async with session(server.url) as http, Traffic(server.url, 6, question) as traffic:
            began = time.monotonic()
            for _ in range(swaps):
                before = len(swapped.placed)
                old, alive = await _living_stream(http)
                await asyncio.to_thread(swapped.swap)
                streams.append((before, old))
                await asyncio.sleep(0.5 if not full else 1.5)
                await alive
                assert not old.error, old.error
            await traffic.until(requests)
            took_s = time.monotonic() - began
            # The same weights in peace say the same to the last token.
            replayed = 0
            for before, old in streams[:: len(streams) // 20 or 4]:
                began_under = [one.number for one in swapped.placed[:before] if one.number is not None][-4:]
                number = next(number for number in began_under if old.text.startswith(many.answer(number)))
                many.write(number, source / f"replay-{replayed}")
                again = await stream(http, body(f"replay-{replayed}", PROMPT, **LONG))
                assert again.text == old.text, (again.text, old.text)
                replayed += 1
            # And what lay there last is what everybody gets in the end.
            await asyncio.sleep(LAG_S)
            last = [await ask(http, "swapped", body("swapped", PROMPT)) for _ in range(8)]
            assert {one.text for one in last} == {many.answer(swapped.now)}
        assert server.is_up()
        report = await adapters(server.url)

    answers.update({many.answer(one.number): one.number for one in swapped.placed if one.number is not None})
    wrong = [one for one in traffic.asked if not _is_right(one, swapped, answers, many, others)]
    say(
        f"files that change, {processes} API process(es)",
        swaps=swapped.swaps,
        requests=len(traffic.asked),
        failed=len(traffic.failed),
        wrong=len(wrong),
        old_streams_replayed=replayed,
        versions=len({one.model for one in traffic.asked}),
        reasons=dict(traffic.reasons()),
        seconds=round(took_s),
        disk_bytes=report["disk"]["bytes"],
    )
    assert not traffic.failed, traffic.failed[:3]
    assert not wrong, wrong[:3]
    assert versions_are_one_to_one(traffic.asked) == {}
    assert swapped.swaps >= swaps and len(traffic.asked) >= requests
    for before, old in streams:
        began_under = [many.answer(one.number) for one in swapped.placed[:before] if one.number is not None][-4:]
        assert any(old.text.startswith(answer) for answer in began_under), (old.text[:60], began_under)


async def _living_stream(http: aiohttp.ClientSession) -> tuple[Streamed, asyncio.Task[Streamed]]:
    """A stream that has begun, and lives on until after the swap that comes now.

    On a machine that is busy otherwise all of a stream may come at once, and then it is over: another one is begun.
    """
    found = []
    for _ in range(20):
        old = Streamed()
        alive = asyncio.ensure_future(stream(http, body("swapped", PROMPT, **LONG), old))
        await _until(lambda old=old, alive=alive: bool(old.moments) or alive.done())
        if not alive.done():
            return old, alive
        await alive  # an error is its own
        assert not old.error, old.error
        found.append((len(old.text), len(old.moments), round(time.monotonic() - old.began, 3)))
    raise AssertionError(f"no stream lives until a swap: characters, pieces and seconds of those were {found}")


def _is_right(
    one: Asked, swapped: SwappedAdapter, answers: dict[str, int], many: ManyAdapters, others: list[str]
) -> bool:
    if one.adapter == "swapped":
        return swapped.is_right(one, answers, BASE_ANSWER)
    return one.text == many.answer(others.index(one.adapter))


async def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def test_an_adapter_that_nobody_lets_in_gets_its_turn(
    models: DemoModels, many: ManyAdapters, tmp_path: Path, full: bool
) -> None:
    """One slot, three clients that keep one adapter busy, and now and then somebody who asks for another."""
    pairs, phase_s, wait_ms = (12, 30, 2000) if full else (3, 6, 500)
    draw = random.Random(0)
    phases = [with_other for _ in range(pairs) for with_other in draw.sample([True, False], 2)]
    source = tmp_path / "adapters"
    for number, name in enumerate(("busy", "other")):
        many.write(number, source / name)
    config = configuration(source, {"busy": "busy", "other": "other"}, wait_ms=wait_ms)
    long = {"max_tokens": GENERATION, "ignore_eos": True}
    waits: list[Streamed] = []
    done: dict[bool, list[Done]] = {True: [], False: []}
    with serving(models, tmp_path / "run", config, "--max-loras", "1", "--max-cpu-loras", "2") as server:
        async with (
            session(server.url) as http,
            Traffic(server.url, 3, lambda draw: ("busy", body("busy", PROMPT, **long))) as traffic,
        ):
            await traffic.until(3)
            for with_other in phases:
                before = await engine_did(http)
                if with_other:
                    await asyncio.sleep(phase_s / 3)
                    waits.append(await stream(http, body("other", PROMPT, **long)))
                await asyncio.sleep(max(before.seconds + phase_s - time.monotonic(), 0))
                done[with_other].append(await engine_did(http) - before)
    assert not [one for one in waits if one.error] and not traffic.failed
    assert all(one.text.startswith(many.answer(1)) for one in waits)
    alone, beside = (sum(done[kind], Done()) for kind in (False, True))
    cost_steps = (beside.steps - beside.tokens / alone.a_step) / pairs
    typical_s = sorted(one.ended - one.began for one in traffic.asked)[len(traffic.asked) // 2]
    starts_s = [one.moments[0] - one.began for one in waits]
    bounds_s = [wait_ms / 1000 + _generation_s(traffic.asked, one.began, wait_ms / 1000) for one in waits]
    costs_s = [_cost_s(traffic.asked, one.began, one.moments[-1], around_s=phase_s / 2 - 1) for one in waits]
    cost_s = sum(costs_s) / pairs
    say(
        "one slot",
        generations=len(traffic.asked) + pairs,
        the_other_started_after_s=[round(start, 2) for start in starts_s],
        at_most_s=[round(bound, 2) for bound in bounds_s],
        a_generation_takes_s=round(typical_s, 2),
        max_wait_s=wait_ms / 1000,
        tokens_a_step=(round(alone.a_step, 3), round(beside.a_step, 3)),
        throughput_by_steps=round(beside.a_step / alone.a_step, 3),
        a_turn_costs_steps=round(cost_steps),
        throughput_by_time=round(beside.a_second / alone.a_second, 3),
        tokens_a_second_alone=[round(one.a_second) for one in done[False]],
        tokens_a_second_beside=[round(one.a_second) for one in done[True]],
        a_turn_costs_s=round(cost_s, 2),
        each=[round(cost, 1) for cost in costs_s],
    )
    # And its own first token, half a second at most.
    assert all(start <= bound + 0.5 for start, bound in zip(starts_s, bounds_s, strict=True))
    if full:
        assert max(starts_s) <= wait_ms / 1000 + typical_s + 0.5
        # By the engine's steps, since how long a step takes changes on a small machine by more than a turn costs; what
        # a turn costs an engine that never changes is in tests/unit/pool/test_slots.py.
        assert beside.a_step >= 0.95 * alone.a_step
        assert cost_s <= 0.05 * phase_s


GENERATION = 120  # tokens


@dataclass(frozen=True)
class Done:
    """What an engine has done, or did between two looks at it."""

    steps: float = 0.0
    tokens: float = 0.0  # generated
    seconds: float = 0.0

    def __add__(self, other: "Done") -> "Done":
        return Done(self.steps + other.steps, self.tokens + other.tokens, self.seconds + other.seconds)

    def __sub__(self, before: "Done") -> "Done":
        return Done(self.steps - before.steps, self.tokens - before.tokens, self.seconds - before.seconds)

    @property
    def a_step(self) -> float:
        return self.tokens / self.steps

    @property
    def a_second(self) -> float:
        return self.tokens / self.seconds


async def engine_did(http: aiohttp.ClientSession) -> Done:
    """By vLLM's own metrics: every step is an observation of the tokens in it."""
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    totals = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    steps, tokens = totals["vllm:iteration_tokens_total_count"], totals["vllm:generation_tokens_total"]
    return Done(steps, tokens, time.monotonic())


def _generation_s(asked: list[Asked], began: float, wait_s: float) -> float:
    """The longest generation that was under way, or still let in, while the other waited for its turn to be due."""
    return max(one.ended - one.began for one in asked if one.began < began + wait_s and one.ended > began)


def _cost_s(asked: list[Asked], began: float, ended: float, *, around_s: float) -> float:
    """For how long nothing was generated because of one turn, as against the time around it.

    Not against a run without turns: what a small machine generates in a minute differs by a quarter from the next.
    """

    def generated(start: float, end: float) -> float:
        spans = ((one.began, one.ended) for one in asked)
        return sum(max(min(end, after) - max(start, before), 0.0) / (after - before) for before, after in spans)

    start, end = began - 0.5, ended + 2
    before, after = (began - around_s, start), (end, ended + around_s)
    rate = (generated(*before) + generated(*after)) / (before[1] - before[0] + after[1] - after[0])
    return end - start - (generated(start, end) + 1) / rate


@pytest.mark.once
async def test_a_thousand_adapters_and_few_slots(
    models: DemoModels, many: ManyAdapters, tmp_path: Path, full: bool
) -> None:
    """Requests over all of them, the frequent and the rare, while some are swapped and the configuration changes."""
    adapters_on_disk, requests, minutes = (1000, 5000, 20) if full else (120, 500, 0)
    source = tmp_path / "adapters"
    for number in range(adapters_on_disk):
        many.write(number, source / f"a{number}")
    weights = [1 / (rank + 1) for rank in range(adapters_on_disk)]
    swapped = SwappedAdapter(source / "swapped", many, count(2000))

    def question(draw: random.Random) -> tuple[str, dict[str, Any]]:
        number = draw.choices(range(adapters_on_disk), weights)[0]
        return f"a{number}", body(f"a{number}", PROMPT)

    config = configuration(source, {"first": "a0"})
    flags = ["--max-loras", "4", "--max-cpu-loras", "32", "--max-num-seqs", "16"]
    with serving(models, tmp_path / "run", config, *flags) as server:
        assert server.process is not None
        samples: list[tuple[int, float, float]] = []  # requests, MB of the API server, MB of the engine
        calm = Streamed()
        async with session(server.url) as http, Traffic(server.url, 8, question) as traffic:
            base = asyncio.ensure_future(stream(http, body("tiny", PROMPT, max_tokens=600, ignore_eos=True), calm))
            began = time.monotonic()
            while len(traffic.asked) < requests or time.monotonic() - began < minutes * 60:
                await asyncio.sleep(5 if full else 1)
                await asyncio.to_thread(swapped.swap)
                await ask(http, "swapped", body("swapped", PROMPT))
                comment = f"# {len(traffic.asked)}\n"
                (tmp_path / "run" / "config.yaml").write_text(comment + config)
                samples.append((len(traffic.asked), *_megabytes(server.process.pid)))
            took_s = time.monotonic() - began
            await base
        report = await adapters(server.url)
    wrong = [one for one in traffic.asked if one.status == 200 and one.text != many.answer(int(one.adapter[1:]))]
    warm = [sample for sample in samples if sample[0] > len(traffic.asked) * 0.4]
    say(
        f"{adapters_on_disk} adapters on disk",
        requests=len(traffic.asked),
        failed=len(traffic.failed),
        wrong=len(wrong),
        adapters_asked_for=len({one.adapter for one in traffic.asked}),
        seconds=round(took_s),
        swaps=swapped.swaps,
        api_mb=f"{samples[0][1]:.0f} to {samples[-1][1]:.0f}",
        api_mb_per_1000_requests=round(_slope(warm, 1), 3),
        engine_mb=f"{samples[0][2]:.0f} to {samples[-1][2]:.0f}",
        engine_mb_per_1000_requests=round(_slope(warm, 2), 3),
        largest_gap_of_a_stream_ms=round(calm.largest_gap_s * 1000),
        slowest_load_ms=max(one.get("load_ms") or 0 for one in report["adapters"]),
        disk_bytes=report["disk"]["bytes"],
    )
    assert not traffic.failed, traffic.failed[:3]
    assert not wrong, wrong[:3]
    assert not calm.error and calm.text.startswith(BASE_ANSWER)
    if full:
        assert _slope(warm, 1) < 1


def _megabytes(main: int) -> tuple[float, float]:
    """Resident memory of the API server and of the engine."""
    process = psutil.Process(main)
    children = process.children(recursive=True)
    engine = sum(child.memory_info().rss for child in children if "EngineCore" in " ".join(child.cmdline()))
    return process.memory_info().rss / 1e6, engine / 1e6


def _slope(samples: list[tuple[int, float, float]], column: int) -> float:
    """MB a thousand requests, by least squares."""
    xs, ys = [sample[0] / 1000 for sample in samples], [sample[column] for sample in samples]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


async def test_configurations_that_change_under_load_and_adapters_that_come(
    models: DemoModels, many: ManyAdapters, tmp_path: Path, full: bool
) -> None:
    """Two processes: every fifth configuration is wrong, an adapter is dropped into the folder, others cannot be."""
    reloads = 50 if full else 10
    source = tmp_path / "adapters"
    for number in range(5):
        many.write(number, source / f"a{number}")
    names = {"topic": "a0"}
    flags = ["--max-loras", "4", "--api-server-count", "2"]

    def question(draw: random.Random) -> tuple[str, dict[str, Any]]:
        return "topic", body("MoM", f"{PROMPT} topic")

    with serving(models, tmp_path / "run", configuration(source, names), *flags) as server:
        file = tmp_path / "run" / "config.yaml"
        slowest_s, wrong_kept, right = 0.0, 0, 0
        async with Traffic(server.url, 4, question) as traffic:
            generation = 1
            for number in range(1, reloads + 1):
                wrong = number % 5 == 0
                config = configuration(source, {"topic": f"a{number % 5}"})
                # A content of its own each time, or the refusal of an earlier one would be taken for this one's.
                file.write_text((config.replace("lora_name", "lora_nam") if wrong else config) + f"# {number}\n")
                began = time.monotonic()
                generation += not wrong
                right = right if wrong else number % 5
                while True:
                    found = (await health(server.url))["config"]
                    if wrong and found["refused"] and found["refused"]["version"] == _version(file):
                        wrong_kept += set(found["processes"].values()) == {generation}
                        assert "lora_nam" in " ".join(found["refused"]["problems"])
                        break
                    if not wrong and list(found["processes"].values()) == [generation] * 2:
                        slowest_s = max(slowest_s, time.monotonic() - began)
                        break
                    assert time.monotonic() - began < 10, found
                    await asyncio.sleep(0.05)
        async with session(server.url) as http:
            last = [await ask(http, "topic", body("MoM", f"{PROMPT} topic")) for _ in range(8)]
            assert {one.text for one in last} == {many.answer(right)}
            await _adapters_that_come(http, source, many)
            await _adapters_that_cannot(http, source, many, tmp_path)
        assert server.is_up()
    say(
        f"{reloads} configurations under load, two API processes",
        requests=len(traffic.asked),
        failed=len(traffic.failed),
        reasons=dict(traffic.reasons()),
        answers=len(Counter(one.text for one in traffic.asked)),
        everywhere_after_at_most_s=round(slowest_s, 2),
        wrong_ones_refused=wrong_kept,
    )
    assert not traffic.failed, traffic.failed[:3]
    assert {one.text for one in traffic.asked} <= {many.answer(number) for number in range(5)}
    assert slowest_s < 5 and wrong_kept == reloads // 5


def _version(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


async def _adapters_that_come(http: aiohttp.ClientSession, source: Path, many: ManyAdapters) -> None:
    """One that is dropped into the folder is served at its next request in both processes, under one id."""
    missing = await ask(http, "new", body("new", PROMPT))
    assert missing.status == 404
    many.write(77, source / "new")
    asked = [await ask(http, "new", body("new", PROMPT)) for _ in range(8)]
    assert {(one.status, one.model, one.text) for one in asked} == {(200, "new", many.answer(77))}
    ids = set()
    for _ in range(8):
        async with http.get("/v1/router/adapters", headers=ADMIN) as response:
            ids |= {one["id"] for one in (await response.json())["adapters"] if one["name"] == "new"}
    assert len(ids) == 1
    async with http.get("/v1/models") as response:
        assert "new" in [card["id"] for card in (await response.json())["data"]]


async def _adapters_that_cannot(http: aiohttp.ClientSession, source: Path, many: ManyAdapters, folder: Path) -> None:
    """What leads out, is a pickle, is huge, or is another base's is refused, and the next candidate answers."""
    outside = folder / "outside"
    many.write(5, outside)
    (source / "link").symlink_to(outside)
    many.write(5, source / "pickle")
    (source / "pickle" / "adapter_model.safetensors").rename(source / "pickle" / "adapter_model.bin")
    many.write(5, source / "huge")
    os.truncate(source / "huge" / "adapter_model.safetensors", 10 * 10**9)
    await asyncio.to_thread(_of_other_bases, many, source)
    many.write(5, source / "bias")
    settings = source / "bias" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "bias": "all"}))
    expected: dict[str, str] = {
        "../../etc": "begins with '.'",
        "link": "out of",
        "pickle": "never loaded",
        "huge": "damaged or not complete",
        "wide": "made for another base",
        "narrow": "made for another base",
        "deep": "made for another base",
        "bias": "bias is 'all'",
    }
    file = folder / "run" / "config.yaml"
    file.write_text(configuration(source, {f"word{place}": f'"{name}"' for place, name in enumerate(expected)}))
    async with http.post("/v1/router/reload", headers=ADMIN) as response:
        assert (await response.json())["outcome"] in ("taken", "unchanged"), await response.text()
    await asyncio.sleep(1)
    for place, (name, why) in enumerate(expected.items()):
        answer = await ask(http, name, body("MoM", f"{PROMPT} word{place}"))
        assert (answer.status, answer.text, answer.reason) == (200, BASE_ANSWER, "not_loadable"), (name, why, answer)
        named = await ask(http, name, body(name, PROMPT))
        assert named.status == 404, named


def _of_other_bases(many: ManyAdapters, source: Path) -> None:
    """Adapters of a base twice as wide, half as wide, and with two layers more."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    for name in ("wide", "narrow", "deep"):
        many.write(5, source / name)
        file = source / name / "adapter_model.safetensors"
        changed: dict[str, np.ndarray] = {}
        for tensor_name, tensor in load_file(file).items():
            axis = 1 if "lora_A" in tensor_name else 0
            if name == "wide":
                changed[tensor_name] = np.repeat(tensor, 2, axis=axis)
            elif name == "narrow":
                changed[tensor_name] = np.split(tensor, 2, axis=axis)[0].copy()
            else:
                changed[tensor_name] = tensor
                changed[tensor_name.replace("layers.1.", "layers.3.")] = tensor
        save_file(changed, file)
