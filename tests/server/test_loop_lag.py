"""The delay of the event loop with and without classification, in turns. It measures times, so only in the long form.

tests/server/test_classifying.py checks without times that the event loop runs while a batch is classified.
"""

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest

from vllm_lora_router.tools.bench.load import percentile
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import ROOT, START_SECONDS, lora_modules
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
