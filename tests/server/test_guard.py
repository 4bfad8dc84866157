"""Open paths, private adapters and tenants of API keys on a real server with API keys."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
import yaml

from vllm_lora_router.tools.demo.answers import BASE_ANSWER
from vllm_lora_router.tools.demo.many import ManyAdapters
from vllm_lora_router.types import FAILURES

from .conftest import ADMIN, API_KEY, BASE, HANG_GUARD_S, TENANT_KEYS_ENV, GuideServers

ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
SYSTEM_PROMPT = "You are a medical expert."
QUESTION = "What causes high blood pressure?"
# tenant -> the number of its adapter "own-lora"; each adapter has another answer
TENANTS = {"acme": 0, "globex": 1}


class GuardedServer:
    """The server with API keys. Tests change its configuration."""

    def __init__(self, servers: GuideServers, folder: Path) -> None:
        self.url, self.folder = servers.guide.url, folder
        self._server, self._file = servers.guide, servers.guide_config
        self._original = self._file.read_text()
        self._http = httpx.Client(base_url=self.url, timeout=HANG_GUARD_S)

    def configure(self, *, by_key: bool = False, guard: bool = True, **more: Any) -> None:
        config = yaml.safe_load(self._original)
        config["router"] |= {
            "guard_open_paths": guard,
            "adapters": {"sources": [f"{self.folder}/{{tenant}}/{{name}}"]},
            **({"tenants": {"keys_env": TENANT_KEYS_ENV}} if by_key else {}),
            **more,
        }
        self._reload(yaml.safe_dump(config))

    def close(self) -> None:
        self._reload(self._original)
        self._http.close()

    def log(self) -> str:
        return self._server.tail(1_000_000)

    def post(self, path: str, body: dict[str, Any], key: str | None = None, **headers: str) -> httpx.Response:
        authorization = {} if key is None else {"authorization": f"Bearer {key}"}
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | authorization
        return self._http.post(path, json=body, headers=sent)

    def _reload(self, text: str) -> None:
        self._file.write_text(text)
        headers = {"authorization": f"Bearer {API_KEY}", **ADMIN}
        response = self._http.post("/v1/router/reload", headers=headers)
        assert response.status_code == 200, response.text


@pytest.fixture(scope="module")
def server(
    guide_servers: GuideServers, many: ManyAdapters, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuardedServer]:
    folder = tmp_path_factory.mktemp("tenants")
    for tenant, number in TENANTS.items():
        many.write(number, folder / tenant / "own-lora")
    server = GuardedServer(guide_servers, folder)
    yield server
    server.close()


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 16}


def prompt_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return "".join(answer.json()["token_strs"]).replace("Ġ", " ").replace("▁", " ")


OPEN_BODIES: dict[str, dict[str, Any]] = {
    "/tokenize": {**chat("MoM"), "return_token_strs": True},
    "/detokenize": {"model": "MoM", "tokens": [5, 6]},
    "/generative_scoring": {"model": "MoM", "query": QUESTION, "items": ["a"], "label_token_ids": [5, 6]},
    "/invocations": chat("is not read"),
}


def test_open_paths_need_the_api_key(server: GuardedServer) -> None:
    server.configure()
    expected = server.post("/v1/chat/completions", chat("MoM"))
    for path, body in OPEN_BODIES.items():
        for key in (None, "wrong"):
            refused = server.post(path, body, key)
            assert (refused.status_code, refused.content) == (401, expected.content), path
        for key in (API_KEY, "sk-acme"):
            assert server.post(path, body, key).status_code == 200, path
    assert SYSTEM_PROMPT.replace(" ", "") in prompt_of(
        server.post("/tokenize", OPEN_BODIES["/tokenize"], API_KEY)
    ).replace(" ", "")


def test_without_the_guard_no_path_reveals_a_prompt_or_a_decision(server: GuardedServer) -> None:
    server.configure(guard=False)
    plain = server.post("/tokenize", {**OPEN_BODIES["/tokenize"], "model": BASE})
    answer = server.post("/tokenize", OPEN_BODIES["/tokenize"])
    assert prompt_of(answer) == prompt_of(plain) and "expert" not in prompt_of(plain)
    for path, body in OPEN_BODIES.items():
        answer = server.post(path, body, x_tenant="acme", **{ADAPTER_HEADER: "MoM"})
        assert answer.status_code == 200, (path, answer.text)
        assert not [name for name in answer.headers if name.startswith(("x-vsr", "x-lora-router"))], path


@pytest.mark.parametrize("guard", [True, False])
def test_private_adapter_in_memory_does_not_answer_without_the_key(server: GuardedServer, guard: bool) -> None:
    server.configure(guard=guard)
    private = ManyAdapters.answer(TENANTS["acme"])
    own = server.post("/v1/chat/completions", chat("own-lora"), API_KEY, x_tenant="acme")
    assert own.json()["choices"][0]["message"]["content"] == private  # it is in memory now
    engine_name = own.json()["model"]
    for name in ("own-lora", "acme/own-lora", engine_name):
        for tenant in ({"x_tenant": "acme"}, {}):
            for key in (None, "wrong"):
                answer = server.post("/invocations", chat(name), key, **{ADAPTER_HEADER: name}, **tenant)
                assert answer.status_code == (401 if guard else 404), answer.text
                assert private not in answer.text
            for path in ("/generative_scoring", "/tokenize"):
                answer = server.post(path, {**OPEN_BODIES[path], "model": name}, **tenant)
                assert answer.status_code == (401 if guard else 404), answer.text
    with_key = server.post("/invocations", chat("x"), API_KEY, x_tenant="acme", **{ADAPTER_HEADER: "own-lora"})
    assert with_key.json()["choices"][0]["message"]["content"] == private


def test_conflicting_tenant_headers_are_refused(server: GuardedServer) -> None:
    server.configure()
    for path in ("/v1/chat/completions", "/v1/router/classify"):
        headers = [("authorization", f"Bearer {API_KEY}"), ("x-tenant", "acme"), ("x-tenant", "globex")]
        answer = httpx.post(server.url + path, json=chat("own-lora"), headers=headers, timeout=HANG_GUARD_S)
        assert answer.status_code == 400 and "several tenants" in answer.json()["error"]["message"]
        answer = httpx.post(
            server.url + path, json=chat("own-lora"), headers=[headers[0], ("x-tenant", "acme, globex")]
        )
        assert answer.status_code == 400


def test_api_key_gives_the_tenant_its_adapter_and_no_other(server: GuardedServer) -> None:
    server.configure(by_key=True)
    for key, tenant in (("sk-acme", "acme"), ("sk-globex", "globex")):
        for headers in ({}, {"x_tenant": tenant}):
            answer = server.post("/v1/chat/completions", chat("own-lora"), key, **headers)
            assert answer.json()["choices"][0]["message"]["content"] == ManyAdapters.answer(TENANTS[tenant])
        listed = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).json()["data"]
        assert "own-lora" in [model["id"] for model in listed]
    for key, tenant in (("sk-acme", "globex"), (API_KEY, "acme")):
        answer = server.post("/v1/chat/completions", chat("own-lora"), key, x_tenant=tenant)
        assert answer.status_code == 403, answer.text
    assert server.post("/v1/chat/completions", chat("own-lora"), API_KEY).status_code == 404
    base = server.post("/v1/chat/completions", chat(BASE), API_KEY)
    assert base.json()["choices"][0]["message"]["content"] == BASE_ANSWER
    assert server.post("/v1/chat/completions", chat("own-lora"), "sk-removed").status_code == 401
    log = server.log()
    assert "router.tenants: tenant 'initrode' cannot authenticate" in log
    assert "tenant 'acme' cannot" not in log and not any(key in log for key in ("sk-acme", "sk-globex", "sk-removed"))
    shown = httpx.get(f"{server.url}/v1/router/config", headers={"authorization": f"Bearer {API_KEY}", **ADMIN}).json()
    assert shown["config"]["router"]["tenants"] == {"keys_env": TENANT_KEYS_ENV}
    assert "sk-" not in json.dumps(shown).replace(API_KEY, "")


CONNECTIONS = 64
REQUESTS = 100  # of the tenant that is measured


@asynccontextmanager
async def flood(url: str, path: str, key: str | None) -> AsyncIterator[Counter[int]]:
    """Send different texts on many connections without a pause; yields the number of answers by status."""
    statuses: Counter[int] = Counter()
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)

    async def connection(number: int) -> None:
        while True:
            text = f"{QUESTION} Case {number}.{time.perf_counter_ns()} {'of a patient ' * 60}"
            body = {**chat("MoM"), "messages": [{"role": "user", "content": text}], "max_tokens": 1}
            if path == "/tokenize":
                body = {name: body[name] for name in ("model", "messages")}
            async with http.post(path, json=body) as response:
                await response.read()
                statuses[response.status] += 1

    async with aiohttp.ClientSession(url, connector=connector, headers=headers) as http:
        tasks = [asyncio.ensure_future(connection(number)) for number in range(CONNECTIONS)]
        try:
            await asyncio.sleep(1)
            yield statuses
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def measure(url: str, phase: str) -> float:
    """Send requests of tenant globex one at a time, and return the share that is routed."""
    reasons: Counter[str] = Counter()
    overheads: list[float] = []
    times: list[float] = []
    async with aiohttp.ClientSession(url, headers={"authorization": "Bearer sk-globex"}) as http:
        for number in range(REQUESTS):
            text = f"{QUESTION} I am patient {phase} {number}."
            body = {**chat("MoM"), "messages": [{"role": "user", "content": text}], "max_tokens": 1}
            began = time.perf_counter()
            async with http.post("/v1/chat/completions", json=body) as response:
                await response.read()
                assert response.status == 200
                times.append((time.perf_counter() - began) * 1000)
                reasons[response.headers["x-lora-router-reason"]] += 1
                overheads.append(float(response.headers["x-lora-router-overhead-ms"]))
    routed = sum(count for reason, count in reasons.items() if reason not in FAILURES) / REQUESTS
    print(
        f"\n{phase}: {routed:.1%} of {REQUESTS} requests routed {dict(reasons)}; router time median "
        f"{np.median(overheads):.1f} ms, p99 {np.percentile(overheads, 99):.1f} ms; whole request median "
        f"{np.median(times):.0f} ms, p99 {np.percentile(times, 99):.0f} ms"
    )
    return routed


async def test_a_flood_takes_no_routing_from_another_tenant(server: GuardedServer, full: bool) -> None:
    if not full:
        pytest.skip("a measurement: bash launch/faults.sh")
    floods: list[tuple[str, bool, str, str | None]] = [
        ("/tokenize without a key", True, "/tokenize", None),
        ("/tokenize without a key and without the guard", False, "/tokenize", None),
        ("/tokenize by acme", True, "/tokenize", "sk-acme"),
        ("chat by acme", True, "/v1/chat/completions", "sk-acme"),
    ]
    for phase, guard, path, key in floods:
        server.configure(by_key=True, guard=guard, deadline_ms=1000)
        await measure(server.url, f"alone, before {phase}")
        async with flood(server.url, path, key) as statuses:
            routed = await measure(server.url, phase)
        print(f"flood: answers by status {dict(statuses)}")
        assert routed >= 0.99, phase
