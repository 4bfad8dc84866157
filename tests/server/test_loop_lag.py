"""Classifying does not hold the event loop that serves everybody: how late it is with it and without, by turns."""

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest

from vllm_lora_router.tools.bench.load import percentile
from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import ROOT, START_SECONDS, lora_modules
from .traffic import Asked, Traffic, body

CLIENTS = 32

# vLLM takes it by --middleware: it measures the loop that it runs on, and answers on a path of its own.
PROBE = """
import asyncio, json, time

class Probe:
    def __init__(self, app):
        self.app, self.task, self.late = app, None, []

    async def look(self):
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            self.late.append((time.perf_counter() - began - 0.005) * 1000)

    async def __call__(self, scope, receive, send):
        self.task = self.task or asyncio.ensure_future(self.look())
        if scope.get("path") != "/late":
            return await self.app(scope, receive, send)
        late, self.late = self.late, []
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(late).encode()})
"""


async def load_for(server: Server, seconds: float, *, routed: bool) -> tuple[list[float], list[Asked]]:
    """How late the loop was, in ms, while every client asked questions that nobody asked before; and what they got."""
    words = ["law", "court", "fever", "blood", "code", "python", "of", "and", "what", "is"]

    def question(draw: random.Random) -> tuple[str, dict]:
        text = " ".join(draw.choices(words, k=12)) + f" {draw.randrange(10**9)}"
        return "any", body("MoM" if routed else "medical-lora", text, max_tokens=4)

    async with aiohttp.ClientSession(server.url) as http, Traffic(server.url, CLIENTS, question) as traffic:
        await asyncio.sleep(1)
        await (await http.get("/late")).read()
        await asyncio.sleep(seconds)
        late = await (await http.get("/late")).json(content_type=None)
    return late, traffic.asked


@pytest.mark.parametrize("runtime", ["torch", "onnx-int8"])
async def test_the_event_loop_is_as_late_as_when_clients_name_their_adapters(
    models: DemoModels, tmp_path: Path, full: bool, runtime: str
) -> None:
    if runtime != "torch" and not full:
        pytest.skip("at full length only: bash launch/faults.sh")
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
    rounds, seconds = (10, 10) if full else (2, 4)
    late: dict[bool, list[float]] = {True: [], False: []}
    served: dict[bool, list[Asked]] = {True: [], False: []}
    with server:
        server.wait(START_SECONDS)
        await load_for(server, 2, routed=True)
        for _ in range(rounds):
            for routed in (True, False):
                found, asked = await load_for(server, seconds, routed=routed)
                late[routed].append(percentile(found, 99))
                served[routed] += asked
    routed_p99, named_p99 = (percentile(late[kind], 50) for kind in (True, False))
    reasons = {one.reason for one in served[True]}
    routed_ms, named_ms = ([round(one, 2) for one in late[kind]] for kind in (True, False))
    print(f"\n{runtime}: the loop's delay, p99 of each phase: routed {routed_ms} ms, naming adapters {named_ms} ms")
    print(f"requests: {len(served[True])} and {len(served[False])}; {reasons}")
    assert not [one for one in (*served[True], *served[False]) if one.status != 200]
    assert "routed" in reasons
    assert routed_p99 <= named_p99 + (2 if full else 20)
