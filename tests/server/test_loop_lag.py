"""The delay of the event loop with and without classification, in turns. It measures times, so only in the long form.

tests/server/test_classifying.py checks without times that the event loop runs while a batch is classified.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from vllm_lora_router.tools.bench.load import percentile
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import ADMIN, ADMIN_KEY, ADMIN_KEY_ENV, ROOT, START_SECONDS, lora_modules
from .traffic import ChatResult, Traffic, body

CLIENTS = 32

# A middleware for vLLM's --middleware. It measures its event loop and returns the delays at /late.
PROBE = """
import asyncio, json, time

class Probe:
    def __init__(self, app):
        self.app, self.task, self.delays = app, None, []

    async def measure(self):
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            self.delays.append((time.perf_counter() - began - 0.005) * 1000)

    async def __call__(self, scope, receive, send):
        self.task = self.task or asyncio.ensure_future(self.measure())
        if scope.get("path") != "/late":
            return await self.app(scope, receive, send)
        delays, self.delays = self.delays, []
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(delays).encode()})
"""


async def load_for(server: Server, seconds: float, *, routed: bool) -> tuple[list[float], list[ChatResult]]:
    """Return the delays of the event loop in ms while clients sent new questions, and the results of the clients."""
    words = ["law", "court", "fever", "blood", "code", "python", "of", "and", "what", "is"]

    def next_request(chance: random.Random) -> tuple[str, dict]:
        text = " ".join(chance.choices(words, k=12)) + f" {chance.randrange(10**9)}"
        return "any", body("MoM" if routed else "medical-lora", text, max_tokens=4)

    async with aiohttp.ClientSession(server.url) as http, Traffic(server.url, CLIENTS, next_request) as traffic:
        await asyncio.sleep(1)
        await (await http.get("/late")).read()
        await asyncio.sleep(seconds)
        delays = await (await http.get("/late")).json(content_type=None)
    return delays, traffic.results


@pytest.mark.parametrize("runtime", ["torch", "onnx-int8"])
async def test_routing_delays_the_event_loop_as_little_as_named_adapters(
    models: DemoModels, tmp_path: Path, full: bool, runtime: str
) -> None:
    if not full:
        pytest.skip("measures times, so only in the long form: bash launch/faults.sh")
    (tmp_path / "probe.py").write_text(PROBE)
    config = (ROOT / "config/domain.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        config.replace("    threshold:", f"    runtime: {runtime}\n    threshold:", 1)
    )
    server = Server(
        [
            *(str(models.base), "--served-model-name", "tiny", "--router-config", str(tmp_path / "config.yaml")),
            *(*lora_modules(models), "--middleware", "probe.Probe", *FLAGS, "--max-num-seqs", str(CLIENTS)),
        ],
        log=tmp_path / "server.log",
        directory=models.directory,
        environment={
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "VLLM_LORA_ROUTER_CACHE": str(models.directory / "cache"),
        },
    )
    rounds, seconds = 10, 10
    delay_p99: dict[bool, list[float]] = {True: [], False: []}
    results: dict[bool, list[ChatResult]] = {True: [], False: []}
    with server:
        server.wait(START_SECONDS)
        await load_for(server, 2, routed=True)
        for _ in range(rounds):
            for routed in (True, False):
                delays, results_of_phase = await load_for(server, seconds, routed=routed)
                delay_p99[routed].append(percentile(delays, 99))
                results[routed] += results_of_phase
    routed_p99, named_p99 = (percentile(delay_p99[kind], 50) for kind in (True, False))
    reasons = {result.reason for result in results[True]}
    routed_ms, named_ms = ([round(delay, 2) for delay in delay_p99[kind]] for kind in (True, False))
    print(
        f"\n{runtime}: delay of the event loop, p99 of each phase: routed {routed_ms} ms, adapters named {named_ms} ms"
    )
    print(f"requests: {len(results[True])} and {len(results[False])}; {reasons}")
    assert not [result for result in (*results[True], *results[False]) if result.status != 200]
    assert "routed" in reasons
    assert routed_p99 <= named_p99 + 2


def keyword_config(phrases: int) -> str:
    """Return a configuration with one rule of many phrases that share their longest word."""
    keywords = "\n".join(f"      - order number {place} of somebody" for place in range(phrases))
    return f"""\
model_config: {{tiny: {{}}}}
categories: [{{name: orders, model_scores: [{{model: tiny, score: 1}}]}}]
default_model: tiny
router: {{admin_key_env: {ADMIN_KEY_ENV}, log: "off"}}
keyword_rules:
  - category: orders
    keywords:
{keywords}
"""


@asynccontextmanager
async def pings(http: aiohttp.ClientSession) -> AsyncIterator[list[float]]:
    """Send `GET /ping` all the time, and add the duration of each one in ms to the list."""
    durations_ms: list[float] = []

    async def ping() -> None:
        while True:
            began = time.perf_counter()
            async with http.get("/ping") as response:
                await response.read()
            durations_ms.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0.001)

    task = asyncio.ensure_future(ping())
    try:
        yield durations_ms
    finally:
        task.cancel()


async def test_long_messages_and_the_reload_of_many_keywords_do_not_stall_the_event_loop(
    models: DemoModels, tmp_path: Path, full: bool
) -> None:
    if not full:
        pytest.skip("measures times, so only in the long form: bash launch/faults.sh")
    (tmp_path / "probe.py").write_text(PROBE)
    config = tmp_path / "config.yaml"
    config.write_text(keyword_config(40_000))
    server = Server(
        [
            *(str(models.base), "--served-model-name", "tiny", "--router-config", str(config)),
            *("--middleware", "probe.Probe", *FLAGS),
        ],
        log=tmp_path / "server.log",
        directory=models.directory,
        environment={"PYTHONPATH": f"{tmp_path}:{ROOT}", ADMIN_KEY_ENV: ADMIN_KEY},
    )
    chance = random.Random(0)
    words = [f"word{place}" for place in range(10_000)]
    texts = {
        "number": ("number " * 3000)[:19_000],
        "random words": " ".join(chance.choices(words, k=3000))[:19_000],
        "short": ("number " * 100)[:640],
    }
    worst_ms: dict[str, tuple[float, float]] = {}
    with server:
        server.wait(START_SECONDS)
        async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(300)) as http:

            async def measure(name: str, text: str | None) -> None:
                await (await http.get("/late")).read()
                async with pings(http) as durations_ms:
                    for _ in range(100):
                        if text is None:
                            await asyncio.sleep(0.02)
                            continue
                        async with http.post("/v1/router/classify", json={"text": text}) as response:
                            assert response.status == 200, await response.text()
                delays = await (await http.get("/late")).json(content_type=None)
                worst_ms[name] = max(durations_ms), max(delays)

            await measure("warm-up", texts["number"])
            await measure("idle", None)
            for name, text in texts.items():
                await measure(name, text)
            config.write_text(keyword_config(160_000))
            await (await http.get("/late")).read()
            began = time.perf_counter()
            async with (
                pings(http) as durations_ms,
                http.post("/v1/router/reload", headers=ADMIN) as response,
            ):
                assert (await response.json())["outcome"] == "applied"
            reload_s = time.perf_counter() - began
            worst_ms["reload"] = max(durations_ms), max(await (await http.get("/late")).json(content_type=None))
    for name, (ping_ms, delay_ms) in worst_ms.items():
        print(f"{name}: longest /ping {ping_ms:.1f} ms, longest delay of the event loop {delay_ms:.1f} ms")
    print(f"reload of {config.stat().st_size / 1e6:.1f} MB: {reload_s:.1f} s")
    assert reload_s < 30
    assert all(worst_ms[name][1] < worst_ms["idle"][1] + 5 for name in texts)
