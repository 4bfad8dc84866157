"""Whether one tenant's prompts are in vLLM's prefix cache for another, on every path by which they get there."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from vllm_lora_router.tools.demo.build import DemoModels
from vllm_lora_router.tools.demo.server import FLAGS, Server

from .conftest import ADMIN_KEY_ENV, ONE_ENGINE_PROCESS, START_SECONDS, lora_modules

CONFIG = """
model_config: {tiny: {loras: [{name: medical-lora}]}}
default_model: tiny
keyword_rules: [{category: medical, keywords: [fever]}]
categories: [{name: medical, model_scores: [{model: tiny, lora_name: medical-lora}]}]
router: {admin_key_env: ROUTER_ADMIN_KEY}
"""
KEY = "of the admin"
BLOCK = 32
WORDS = "I have had a fever since last night, and it does not go away whatever I take against it. " * 6
NAMED = {"MoM": "routed", "tiny": "the base named", "medical-lora": "an adapter named"}

# Where the answer says how many tokens of the prompt were found in the cache.
SAID: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("prompt_tokens_details", "cached_tokens"),
    "/v1/completions": ("prompt_tokens_details", "cached_tokens"),
    "/v1/responses": ("input_tokens_details", "cached_tokens"),
    "/v1/messages": ("cache_read_input_tokens",),
    "/inference/v1/generate": ("prompt_tokens_details", "cached_tokens"),
}
# Of these vLLM's metrics alone say it.
UNSAID = ("/v1/chat/completions/batch", "/generative_scoring", "/invocations")


def request(path: str, model: str, text: str, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
    user = {"role": "user", "content": text}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [user], "max_tokens": 2},
        "/v1/chat/completions/batch": {"messages": [[user]], "max_tokens": 2},
        "/v1/completions": {"prompt": text, "max_tokens": 2},
        "/v1/responses": {"input": text, "max_output_tokens": 16},
        "/v1/messages": {"messages": [user], "max_tokens": 2},
        "/inference/v1/generate": {"token_ids": list(text.encode()), "sampling_params": {"max_tokens": 2}},
        "/generative_scoring": {"query": text, "items": ["a"], "label_token_ids": [100, 101]},
        "/invocations": {"messages": [user], "max_tokens": 2},
    }
    if path != "/invocations":
        return {"model": model, **bodies[path], **more}, {}
    # SageMaker's name for the adapter; without it the base answers.
    return {**bodies[path], **more}, {} if model == "tiny" else {"X-Amzn-SageMaker-Adapter-Identifier": model}


@dataclass
class Tenants:
    """A server, as its tenants use it."""

    file: Path
    http: httpx.Client

    def configure(self, cache: str) -> None:
        config = yaml.safe_load(CONFIG)
        config["router"]["tenant_cache"] = cache
        self.file.write_text(yaml.safe_dump(config))
        response = self.http.post("/v1/router/reload", headers={"x-lora-router-admin-key": KEY})
        assert response.json()["outcome"] in ("taken", "unchanged"), response.text

    def cached(self, tenant: str | None, path: str, model: str, text: str, **more: Any) -> int:
        """How many tokens of a tenant's prompt are in the cache already."""
        body, headers = request(path, model, text, **more)
        hits, queries = self._counted()
        answer = self.http.post(path, json=body, headers=headers | ({"x-tenant": tenant} if tenant else {}))
        assert answer.status_code == 200, answer.text
        if model == "MoM":
            assert answer.headers["x-vsr-selected-model"] == "medical-lora"
        until = time.monotonic() + 10
        while (counted := self._counted())[1] == queries and time.monotonic() < until:
            time.sleep(0.05)
        found = counted[0] - hits
        if path in SAID:
            said: Any = answer.json()["usage"]
            for name in SAID[path]:
                said = said.get(name) if said is not None else None
            assert more.get("use_beam_search") or (said or 0) == found, answer.text
        return found

    def _counted(self) -> tuple[int, int]:
        """Tokens that were found in the cache, and those that were looked for."""
        counts = {"hits": 0, "queries": 0}
        for line in self.http.get("/metrics").text.splitlines():
            for name in counts:
                if line.startswith(f"vllm:prefix_cache_{name}_total{{"):
                    counts[name] += int(float(line.rpartition(" ")[2]))
        return counts["hits"], counts["queries"]


@pytest.fixture(scope="module")
def server(models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("isolation")
    (folder / "config.yaml").write_text(CONFIG)
    server = Server(
        [
            *(str(models.base), "--served-model-name", "tiny", "--router-config", str(folder / "config.yaml")),
            *(*lora_modules(models), *FLAGS, "--enable-prompt-tokens-details", "--block-size", str(BLOCK)),
            "--enable-scale-out",
        ],
        log=folder / "server.log",
        directory=models.directory,
        environment={ADMIN_KEY_ENV: KEY, **ONE_ENGINE_PROCESS},
    )
    with server:
        server.wait(START_SECONDS)
        yield server


@pytest.fixture
def tenants(server: Server) -> Iterator[Tenants]:
    with httpx.Client(base_url=server.url, timeout=120) as http:
        yield Tenants(server.log.with_name("config.yaml"), http)


@pytest.mark.parametrize("path", [*SAID, *UNSAID])
def test_no_tenant_finds_anothers_prompt_and_each_finds_its_own_as_before(tenants: Tenants, path: str) -> None:
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    asked = ("acme", "acme", "evil", "evil", None, None)
    for cache in ("shared", "isolated"):
        tenants.configure(cache)
        for model in NAMED:
            if model == "MoM" and path == "/inference/v1/generate":
                continue  # token ids have no words to go by: they go to the base
            text = f"{secrets.token_hex(8)} {WORDS}"
            found[cache, model] = tuple(tenants.cached(tenant, path, model, text) for tenant in asked)
    print(f"\n{path}: cached tokens of acme, acme, evil, evil, no tenant, no tenant")
    for (cache, model), tokens in found.items():
        print(f"  {cache:<8} {NAMED[model]:<16} {' '.join(f'{count:>4}' for count in tokens)}")
    for (cache, model), tokens in found.items():
        again = found["shared", model][1]
        assert again >= 480
        assert tokens == ((0, again) * 3 if cache == "isolated" else (0, *[again] * 5)), (cache, model)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_many_prompts_of_a_beam_search_are_kept_apart(tenants: Tenants, path: str) -> None:
    beams = {"use_beam_search": True, "n": 2, "temperature": 0}
    for cache in ("shared", "isolated"):
        tenants.configure(cache)
        for model in ("tiny", "MoM"):
            text = f"{secrets.token_hex(8)} {WORDS}"
            # Each step finds what the one before left.
            first, again, other = (
                tenants.cached(name, path, model, text, **beams) for name in ("acme", "acme", "evil")
            )
            print(
                f"\n{path}, {cache}, {NAMED[model]}: {first} {again} {other} cached tokens in all of acme, acme, evil"
            )
            assert first < again and other == (first if cache == "isolated" else again)


def test_a_clients_own_salt_keeps_its_users_apart_and_reaches_no_other_tenant(tenants: Tenants) -> None:
    tenants.configure("isolated")
    text = f"{secrets.token_hex(8)} {WORDS}"
    path, again = "/v1/chat/completions", 0
    for model in ("tiny", "MoM"):
        for tenant, salt in (("acme", "one"), ("acme", "two"), ("evil", "one"), (None, "one")):
            assert tenants.cached(tenant, path, model, text, cache_salt=salt) == 0
            again = tenants.cached(tenant, path, model, text, cache_salt=salt)
            assert again >= 480
        for salt in ("x" * 129, 5, ""):
            body, _ = request(path, model, text, cache_salt=salt)
            answer = tenants.http.post(path, json=body, headers={"x-tenant": "acme"})
            assert answer.status_code == 400 and "cache_salt" in answer.text


def test_what_cannot_be_kept_apart_is_refused_and_no_spelling_comes_around_it(tenants: Tenants) -> None:
    text = f"{secrets.token_hex(8)} {WORDS}"
    body, _ = request("/v1/chat/completions", "tiny", text)
    plain = json.dumps(body).encode()
    ways: list[tuple[str, dict[str, str]]] = [
        ("/v1/chat/completions%0A", {"content-type": "application/json"}),
        ("/v1/chat/completions", {"content-type": "application/json", "content-encoding": "identity"}),
    ]
    for cache, status in (("shared", 200), ("isolated", 400)):
        tenants.configure(cache)
        for path, headers in ways:
            answer = tenants.http.post(path, content=plain, headers=headers)
            assert answer.status_code == status, (cache, path, answer.text)
            print(f"\n{cache}: {path!r} {headers}: {answer.status_code} {answer.text[:300] if status == 400 else ''}")
    answer = tenants.http.post("/v1/audio/transcriptions", files={"file": b"RIFF"}, data={"model": "tiny"})
    assert answer.status_code == 400
    assert "/v1/audio/transcriptions" in answer.json()["error"]["message"]
    for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/chat/completions/render"):
        answer = tenants.http.post(path, json={"model": "tiny", "messages": body["messages"]})
        assert answer.status_code == 200, answer.text
