"""Adapter files and configurations that change under load: the engine stays up, and no request gets wrong weights."""

import asyncio
import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vllm_lora_router.tools.demo.answers import BASE_ANSWER
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.tools.demo.server import FLAGS

from .changing_adapter import ChangingAdapter
from .conftest import ADMIN, ADMIN_KEY_ENV, HANG_GUARD_S, TWO_SLOTS, ConfiguredServer, one_server
from .traffic import (
    PROMPT,
    ChatResult,
    StreamResult,
    Traffic,
    body,
    models_with_several_answers,
    say,
    send_chat,
    session,
    stream_chat,
)

END = 2  # the token that ends an answer; long answers must not contain it
LONG = {"max_tokens": 300, "logit_bias": {END: -100}}
# Time from a change of files to answers by the new ones in every process, on an idle machine. Files must be unchanged
# for half a second, are checked each second and reported to the other processes each fifth of a second.
LAG_S = 4.0

CONFIG = """
model_config: {{base: }}
default_model: base
keyword_rules:
{rules}
categories:
{categories}
router:
  log: "off"
  admin_key_env: {admin_key_env}
  adapters: {{sources: [{folder}], max_loads_per_s: {loads}, max_wait_ms: {wait_ms}}}
"""


def configuration(folder: Path, names: dict[str, str], *, loads: float = 0, wait_ms: float = 60_000) -> str:
    """Return a configuration that routes keywords to adapters of a folder."""
    rules = "\n".join(f"  - {{category: {word}, keywords: [{word}]}}" for word in names)
    categories = "\n".join(
        f"  - {{name: {word}, model_scores: [{{model: base, lora_name: {name}}}]}}" for word, name in names.items()
    )
    return CONFIG.format(
        rules=rules,
        categories=categories,
        folder=folder,
        loads=loads,
        wait_ms=wait_ms,
        admin_key_env=ADMIN_KEY_ENV,
    )


async def health(url: str) -> dict[str, Any]:
    async with session(url) as http, http.get("/v1/router/health", headers=ADMIN) as response:
        return await response.json()


async def adapters(url: str) -> dict[str, Any]:
    async with session(url) as http, http.get("/v1/router/adapters", headers=ADMIN) as response:
        return await response.json()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_GUARD_S):
        while not condition():
            await asyncio.sleep(0.005)


@contextmanager
def serving(
    processes: int, request: pytest.FixtureRequest, models: DemoModels, folder: Path, config: str
) -> Iterator[ConfiguredServer]:
    """The shared server with two API processes, or one that has a single process and the same slots."""
    if processes == 2:
        server: ConfiguredServer = request.getfixturevalue("two_processes")
        server.configure(config)
        yield server
        return
    with one_server(models, folder, config, [*FLAGS, *TWO_SLOTS]) as server:
        yield server


@pytest.mark.parametrize("processes", [1, 2])
async def test_files_that_change_under_load_fail_no_request_and_give_no_wrong_answer(
    models: DemoModels, many: ManyAdapters, tmp_path: Path, full: bool, processes: int, request: pytest.FixtureRequest
) -> None:
    """Two slots, memory for three adapters, prefix caching, a stream that is running at each swap, other adapters."""
    if processes == 1 and not full:
        pytest.skip("one process only in the long form: bash launch/faults.sh")
    swaps, requests = (200, 20_000) if full else (16, 400)
    source = tmp_path / "adapters"
    source.mkdir()
    changing = ChangingAdapter(source / "changing", many, count(1000))
    others = [f"other-{number}" for number in range(4)]
    for number, name in enumerate(others):
        many.write(number, source / name)
    config = configuration(source, {"changing": "changing", **{name.replace("-", ""): name for name in others}})

    def next_request(chance: random.Random) -> tuple[str, dict[str, Any]]:
        name = "changing" if chance.random() < 0.6 else chance.choice(others)
        if chance.random() < 0.5:
            return name, body(name, PROMPT)
        return name, body("MoM", f"{PROMPT} {name.replace('-', '')}")

    with serving(processes, request, models, tmp_path / "run", config) as server:
        streams: list[tuple[int, StreamResult]] = []
        async with session(server.url) as http, Traffic(server.url, 6, next_request) as traffic:
            began = time.monotonic()
            for _ in range(swaps):
                before = len(changing.changes)
                old_stream, task = await _running_stream(http)
                await asyncio.to_thread(changing.swap)
                streams.append((before, old_stream))
                await asyncio.sleep(0.5 if not full else 1.5)
                await task
                assert not old_stream.error, old_stream.error
            await traffic.until(requests, HANG_GUARD_S if not full else 3600)
            took_s = time.monotonic() - began
        # The same weights without load give the same text to the last token.
        replayed = 0
        async with session(server.url) as http:
            for before, old_stream in streams[:: len(streams) // 20 or 4]:
                candidates = [change.number for change in changing.changes[:before] if change.number is not None][-4:]
                number = next(number for number in candidates if old_stream.text.startswith(many.answer(number)))
                many.write(number, source / f"replay-{replayed}")
                replay = await stream_chat(http, body(f"replay-{replayed}", PROMPT, **LONG))
                assert replay.text == old_stream.text, (replay.text, old_stream.text)
                replayed += 1
            # In the end every process serves the latest files.
            async with asyncio.timeout(HANG_GUARD_S):
                texts = None
                while texts != {many.answer(changing.latest)}:
                    texts = {(await send_chat(http, "changing", body("changing", PROMPT))).text for _ in range(8)}
        assert server.is_running()
        report = await adapters(server.url)

    numbers = {many.answer(change.number): change.number for change in changing.changes if change.number is not None}
    lag_s = LAG_S if full else HANG_GUARD_S

    def is_valid(result: ChatResult) -> bool:
        if result.adapter == "changing":
            return changing.is_valid(result, numbers, BASE_ANSWER, lag_s)
        return result.text == many.answer(others.index(result.adapter))

    wrong = [result for result in traffic.results if not is_valid(result)]
    say(
        f"files that change, {processes} API process(es)",
        swaps=changing.swaps,
        requests=len(traffic.results),
        failed=len(traffic.failed),
        wrong=len(wrong),
        streams_replayed=replayed,
        versions=len({result.model for result in traffic.results}),
        reasons=dict(traffic.reasons()),
        seconds=round(took_s),
        disk_bytes=report["disk"]["bytes"],
    )
    assert not traffic.failed, traffic.failed[:3]
    assert not wrong, wrong[:3]
    assert models_with_several_answers(traffic.results) == {}
    assert changing.swaps >= swaps and len(traffic.results) >= requests
    for before, old_stream in streams:
        candidates = [many.answer(change.number) for change in changing.changes[:before] if change.number is not None]
        assert any(old_stream.text.startswith(answer) for answer in candidates[-4:]), (old_stream.text[:60], candidates)


async def _running_stream(http: aiohttp.ClientSession) -> tuple[StreamResult, asyncio.Task[StreamResult]]:
    """Return a stream that has begun and has not ended, and its task.

    On a busy machine all of a stream may arrive at once. It has ended then, and another one is started.
    """
    ended = []
    for _ in range(20):
        result = StreamResult()
        task = asyncio.ensure_future(stream_chat(http, body("changing", PROMPT, **LONG), result))
        await until(lambda result=result, task=task: bool(result.times) or task.done())
        if not task.done():
            return result, task
        await task
        assert not result.error, result.error
        ended.append((len(result.text), len(result.times), round(time.monotonic() - result.began, 3)))
    raise AssertionError(f"every stream ended before a swap (characters, chunks, seconds): {ended}")


async def test_configurations_that_change_under_load_take_effect_in_every_process_or_in_none(
    two_processes: ConfiguredServer, many: ManyAdapters, tmp_path: Path, full: bool
) -> None:
    """Every fifth configuration is wrong."""
    reloads = 50 if full else 10
    source = tmp_path / "adapters"
    for number in range(5):
        many.write(number, source / f"a{number}")
    two_processes.configure(configuration(source, {"topic": "a0"}))
    server, file = two_processes, two_processes.file
    slowest_s, refused, effective = 0.0, 0, 0
    generation = (await health(server.url))["config"]["generation"]
    async with Traffic(server.url, 4, lambda chance: ("topic", body("MoM", f"{PROMPT} topic"))) as traffic:
        for number in range(1, reloads + 1):
            is_wrong = number % 5 == 0
            config = configuration(source, {"topic": f"a{number % 5}"})
            # Each content is unique, so that the refusal of an earlier one is not mistaken for this one's.
            file.write_text((config.replace("lora_name", "lora_nam") if is_wrong else config) + f"# {number}\n")
            version = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
            began = time.monotonic()
            generation += not is_wrong
            effective = effective if is_wrong else number % 5
            async with asyncio.timeout(HANG_GUARD_S):
                while True:
                    status = (await health(server.url))["config"]
                    if is_wrong and status["refused"] and status["refused"]["version"] == version:
                        refused += set(status["processes"].values()) == {generation}
                        assert "lora_nam" in " ".join(status["refused"]["problems"])
                        break
                    if not is_wrong and list(status["processes"].values()) == [generation] * 2:
                        slowest_s = max(slowest_s, time.monotonic() - began)
                        break
                    await asyncio.sleep(0.05)
    async with session(server.url) as http:
        last = [await send_chat(http, "topic", body("MoM", f"{PROMPT} topic")) for _ in range(8)]
        assert {result.text for result in last} == {many.answer(effective)}
    assert server.is_running()
    say(
        f"{reloads} configurations under load, two API processes",
        requests=len(traffic.results),
        failed=len(traffic.failed),
        reasons=dict(traffic.reasons()),
        answers=len(Counter(result.text for result in traffic.results)),
        in_effect_everywhere_after_at_most_s=round(slowest_s, 2),
        wrong_ones_refused=refused,
    )
    assert not traffic.failed, traffic.failed[:3]
    assert {result.text for result in traffic.results} <= {many.answer(number) for number in range(5)}
    assert refused == reloads // 5
    if full:
        assert slowest_s < 5


async def test_a_new_adapter_folder_is_served_at_the_next_request_under_one_id(
    two_processes: ConfiguredServer, many: ManyAdapters, tmp_path: Path
) -> None:
    source = tmp_path / "adapters"
    many.write(0, source / "a0")
    two_processes.configure(configuration(source, {"topic": "a0"}))
    async with session(two_processes.url) as http:
        missing = await send_chat(http, "new", body("new", PROMPT))
        assert missing.status == 404
        many.write(77, source / "new")
        results = [await send_chat(http, "new", body("new", PROMPT)) for _ in range(8)]
        assert {(result.status, result.model, result.text) for result in results} == {(200, "new", many.answer(77))}
        ids = set()
        for _ in range(8):
            async with http.get("/v1/router/adapters", headers=ADMIN) as response:
                ids |= {item["id"] for item in (await response.json())["adapters"] if item["name"] == "new"}
        assert len(ids) == 1
        async with http.get("/v1/models") as response:
            assert "new" in [card["id"] for card in (await response.json())["data"]]


async def test_adapters_that_cannot_be_served_are_refused_and_the_next_candidate_answers(
    two_processes: ConfiguredServer, many: ManyAdapters, tmp_path: Path
) -> None:
    """Links that lead out of the source, pickles, huge files and adapters of other base models."""
    source, outside = tmp_path / "adapters", tmp_path / "outside"
    many.write(5, outside)
    source.mkdir()
    (source / "link").symlink_to(outside)
    many.write(5, source / "pickle")
    (source / "pickle" / "adapter_model.safetensors").rename(source / "pickle" / "adapter_model.bin")
    many.write(5, source / "huge")
    os.truncate(source / "huge" / "adapter_model.safetensors", 10 * 10**9)
    await asyncio.to_thread(_write_for_other_bases, many, source)
    many.write(5, source / "bias")
    settings = source / "bias" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "bias": "all"}))
    names = ("link", "pickle", "huge", "wide", "narrow", "deep", "bias")
    config = configuration(source, {f"word{place}": f'"{name}"' for place, name in enumerate(names)})
    two_processes.configure(config)
    async with session(two_processes.url) as http:
        for place, name in enumerate(names):
            routed = await send_chat(http, name, body("MoM", f"{PROMPT} word{place}"))
            assert (routed.status, routed.text, routed.reason) == (200, BASE_ANSWER, "not_loadable"), (name, routed)
        for name in (*names, "../../etc"):  # the configuration cannot name the last one
            named = await send_chat(http, name, body(name, PROMPT))
            assert named.status == 404, named


def _write_for_other_bases(many: ManyAdapters, source: Path) -> None:
    """Write adapters of a base model twice as wide, half as wide, and with two layers more."""
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
