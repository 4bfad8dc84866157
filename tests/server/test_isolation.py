"""With `tenant_cache: isolated` no tenant finds the prompts of another in vLLM's prefix cache, on any path."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from .conftest import HANG_GUARD_S, ComparedServers, ConfiguredServer

CONFIG = """
model_config: {base: {loras: [{name: medical-lora}]}}
default_model: base
keyword_rules: [{category: medical, keywords: [fever]}]
categories: [{name: medical, model_scores: [{model: base, lora_name: medical-lora}]}]
router: {admin_key_env: ROUTER_ADMIN_KEY}
"""
TEXT = "I have had a fever since last night, and it does not go away whatever I take against it. " * 6
NAMED = {"MoM": "routed", "base": "the base named", "medical-lora": "an adapter named"}

# Path -> where the response contains the number of prompt tokens that were found in the cache.
REPORTED: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("prompt_tokens_details", "cached_tokens"),
    "/v1/completions": ("prompt_tokens_details", "cached_tokens"),
    "/v1/responses": ("input_tokens_details", "cached_tokens"),
    "/v1/messages": ("cache_read_input_tokens",),
    "/inference/v1/generate": ("prompt_tokens_details", "cached_tokens"),
}
# For these only vLLM's metrics contain it.
UNREPORTED = ("/v1/chat/completions/batch", "/generative_scoring", "/invocations")


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
    # The adapter is named in SageMaker's header; without it the base answers.
    return {**bodies[path], **more}, {} if model == "base" else {"X-Amzn-SageMaker-Adapter-Identifier": model}


@dataclass
class Tenants:
    """The tenants of a server."""

    server: ConfiguredServer
    http: httpx.Client

    def configure(self, cache: str) -> None:
        config = yaml.safe_load(CONFIG)
        config["router"]["tenant_cache"] = cache
        self.server.configure(yaml.safe_dump(config))

    def cached(self, tenant: str | None, path: str, model: str, text: str, **more: Any) -> int:
        """Send a tenant's request and return how many tokens of its prompt were found in the cache."""
        body, headers = request(path, model, text, **more)
        hits, queries = self._counted()
        answer = self.http.post(path, json=body, headers=headers | ({"x-tenant": tenant} if tenant else {}))
        assert answer.status_code == 200, answer.text
        if model == "MoM":
            assert answer.headers["x-vsr-selected-model"] == "medical-lora"
        deadline = time.monotonic() + HANG_GUARD_S
        while (counted := self._counted())[1] == queries and time.monotonic() < deadline:
            time.sleep(0.05)
        cached = counted[0] - hits
        if path in REPORTED:
            reported: Any = answer.json()["usage"]
            for name in REPORTED[path]:
                reported = reported.get(name) if reported is not None else None
            assert more.get("use_beam_search") or (reported or 0) == cached, answer.text
        return cached

    def _counted(self) -> tuple[int, int]:
        """Return the number of tokens found in the cache, and of those looked up."""
        counts = {"hits": 0, "queries": 0}
        for line in self.http.get("/metrics").text.splitlines():
            for name in counts:
                if line.startswith(f"vllm:prefix_cache_{name}_total{{"):
                    counts[name] += int(float(line.rpartition(" ")[2]))
        return counts["hits"], counts["queries"]


@pytest.fixture
def tenants(compared: ComparedServers) -> Iterator[Tenants]:
    with httpx.Client(base_url=compared.routed.url, timeout=HANG_GUARD_S) as http:
        yield Tenants(compared.routed, http)


@pytest.mark.parametrize("path", [*REPORTED, *UNREPORTED])
def test_isolated_tenants_find_their_own_prompts_in_the_cache_and_no_others(tenants: Tenants, path: str) -> None:
    cached: dict[tuple[str, str], tuple[int, ...]] = {}
    senders = ("acme", "acme", "evil", "evil", None, None)
    for cache in ("shared", "isolated"):
        tenants.configure(cache)
        for model in NAMED:
            if model == "MoM" and path == "/inference/v1/generate":
                continue  # token ids have no user text, so they go to the base
            text = f"{secrets.token_hex(8)} {TEXT}"
            cached[cache, model] = tuple(tenants.cached(tenant, path, model, text) for tenant in senders)
    print(f"\n{path}: cached tokens of acme, acme, evil, evil, no tenant, no tenant")
    for (cache, model), tokens in cached.items():
        print(f"  {cache:<8} {NAMED[model]:<16} {' '.join(f'{count:>4}' for count in tokens)}")
    for (cache, model), tokens in cached.items():
        repeated = cached["shared", model][1]
        assert repeated >= 480
        assert tokens == ((0, repeated) * 3 if cache == "isolated" else (0, *[repeated] * 5)), (cache, model)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_prompts_of_a_beam_search_are_isolated(tenants: Tenants, path: str) -> None:
    beams = {"use_beam_search": True, "n": 2, "temperature": 0}
    for cache in ("shared", "isolated"):
        tenants.configure(cache)
        for model in ("base", "MoM"):
            text = f"{secrets.token_hex(8)} {TEXT}"
            # Each step finds the prompt of the step before in the cache.
            first, second, other = (
                tenants.cached(name, path, model, text, **beams) for name in ("acme", "acme", "evil")
            )
            print(
                f"\n{path}, {cache}, {NAMED[model]}: {first} {second} {other} cached tokens in all of acme, acme, evil"
            )
            assert first < second and other == (first if cache == "isolated" else second)


def test_a_salt_of_the_client_isolates_its_users_within_the_tenant(tenants: Tenants) -> None:
    tenants.configure("isolated")
    text = f"{secrets.token_hex(8)} {TEXT}"
    path = "/v1/chat/completions"
    for model in ("base", "MoM"):
        for tenant, salt in (("acme", "one"), ("acme", "two"), ("evil", "one"), (None, "one")):
            assert tenants.cached(tenant, path, model, text, cache_salt=salt) == 0
            assert tenants.cached(tenant, path, model, text, cache_salt=salt) >= 480
        for salt in ("x" * 129, 5, ""):
            body, _ = request(path, model, text, cache_salt=salt)
            answer = tenants.http.post(path, json=body, headers={"x-tenant": "acme"})
            assert answer.status_code == 400 and "cache_salt" in answer.text


def test_requests_that_cannot_be_isolated_are_refused_whatever_their_spelling(tenants: Tenants) -> None:
    text = f"{secrets.token_hex(8)} {TEXT}"
    body, _ = request("/v1/chat/completions", "base", text)
    plain = json.dumps(body).encode()
    requests: list[tuple[str, dict[str, str]]] = [
        ("/v1/chat/completions%0A", {"content-type": "application/json"}),
        ("/v1/chat/completions", {"content-type": "application/json", "content-encoding": "x-identity"}),
    ]
    for cache, status in (("shared", 200), ("isolated", 400)):
        tenants.configure(cache)
        for path, headers in requests:
            answer = tenants.http.post(path, content=plain, headers=headers)
            assert answer.status_code == status, (cache, path, answer.text)
            print(f"\n{cache}: {path!r} {headers}: {answer.status_code} {answer.text[:300] if status == 400 else ''}")
    answer = tenants.http.post("/v1/audio/transcriptions", files={"file": b"RIFF"}, data={"model": "base"})
    assert answer.status_code == 400
    assert "/v1/audio/transcriptions" in answer.json()["error"]["message"]
    for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/chat/completions/render"):
        answer = tenants.http.post(path, json={"model": "base", "messages": body["messages"]})
        assert answer.status_code == 200, answer.text
