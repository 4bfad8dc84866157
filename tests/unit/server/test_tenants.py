"""The tenant of a request: conflicting headers, and tenants that belong to API keys."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from vllm_lora_router.server.tenants import TenantKeys
from vllm_lora_router.types import Client

from .conftest import CONFIG, App, body_for, post_json

CHAT = "/v1/chat/completions"
KEYS = {"sk-acme": "acme", "sk-acme-2": "acme", "sk-globex": "globex", "sk-straße": "größe"}
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
def clients(app: App, monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """The clients of the requests that were planned."""
    assert app.serving.router is not None
    router, clients = app.serving.router, []
    plan = router.plan

    async def record(queries: Any, client: Client, **options: Any) -> Any:
        clients.append(client)
        return await plan(queries, client, **options)

    monkeypatch.setattr(router, "plan", record)
    return clients


def tenants(*values: bytes) -> Headers:
    return [(b"x-tenant", value) for value in values]


def with_key(key: str, *values: bytes, scheme: str = "Bearer") -> Headers:
    return [(b"authorization", f"{scheme} {key}".encode()), *tenants(*values)]


async def status(app: App, headers: Headers, path: str = CHAT, **more: Any) -> int:
    return (await post_json(app.asgi, path, body_for(path, "My blood", model="MoM", **more), headers)).status


@pytest.mark.parametrize(
    ("values", "tenant"),
    [
        ([b"acme"], "acme"),
        ([b"acme", b"acme"], "acme"),
        ([b"acme", b" acme "], "acme"),
        ([b"acme, acme"], "acme"),
        ([b""], None),
        ([], None),
        ([b"acme", b"evil"], 400),
        ([b"evil", b"acme"], 400),
        ([b"acme,evil"], 400),
        ([b"acme", b"acme, evil"], 400),
        ([b"", b"acme"], 400),
        ([b"acme", b""], 400),
        ([b"acme,"], 400),
    ],
)
async def test_conflicting_tenant_headers_are_refused(
    app: App, clients: list[Client], values: list[bytes], tenant: str | int | None
) -> None:
    if tenant == 400:
        assert await status(app, tenants(*values)) == 400
        assert clients == [] and app.received.bodies == []
    else:
        assert await status(app, tenants(*values)) == 200
        assert [client.tenant for client in clients] == [tenant]


async def test_tenant_headers_are_checked_wherever_a_tenant_is_read(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    for config in (CONFIG, CONFIG + "router: {tenant_cache: isolated}\n"):
        app.configure(config, tmp_path)
        for path, body in (
            (CHAT, body_for(CHAT, "x", model="served-base")),
            ("/v1/embeddings", {"model": "served-base"}),
            ("/v1/router/classify", {"text": "My blood"}),
            ("/v1/router/feedback", {"id": "x", "score": 1}),
        ):
            response = await client.post(path, json=body, headers=[("x-tenant", "acme"), ("x-tenant", "evil")])
            assert response.status_code == 400 and "x-tenant" in response.json()["error"]["message"], path
        response = await client.get("/v1/models", headers=[("x-tenant", "acme"), ("x-tenant", "evil")])
        assert response.status_code == 400
    response = await client.post("/v1/messages", json={}, headers=[("x-tenant", "acme"), ("x-tenant", "evil")])
    assert response.json()["type"] == "error" and response.json()["error"]["type"] == "invalid_request_error"
    assert (await client.get("/openapi.json", headers=[("x-tenant", "a"), ("x-tenant", "b")])).status_code == 200


async def test_without_tenant_separation_the_header_is_not_read(app: App, tmp_path: Path) -> None:
    app.configure(CONFIG + "router: {tenant: null}\n", tmp_path)
    assert await status(app, tenants(b"acme", b"evil")) == 200


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        (with_key("sk-acme"), "acme"),
        (with_key("sk-acme-2"), "acme"),
        (with_key("sk-acme", scheme="bearer"), "acme"),
        (with_key("sk-globex", b"globex"), "globex"),
        (with_key("sk-globex", b""), "globex"),
        (with_key("sk-of-nobody"), None),
        (with_key("sk-acme ", scheme="Basic"), None),
        ([], None),
        (with_key("sk-acme", b"globex"), 403),
        (with_key("sk-acme", b"acm\xe9"), 403),
        (with_key("sk-of-nobody", b"acme"), 403),
        (tenants(b"acme"), 403),
        (with_key("sk-acme", b"acme", b"globex"), 400),
    ],
)
async def test_api_key_decides_the_tenant(
    app: App, clients: list[Client], headers: Headers, tenant: str | int | None
) -> None:
    app.serving.tenant_keys = TenantKeys(KEYS)
    if isinstance(tenant, int):
        assert await status(app, headers) == tenant
        assert clients == [] and app.received.bodies == []
    else:
        assert await status(app, headers) == 200
        assert [client.tenant for client in clients] == [tenant]


async def test_model_list_contains_the_adapters_of_the_keys_tenant(app: App, client: httpx.AsyncClient) -> None:
    app.serving.tenant_keys = TenantKeys(KEYS)
    response = await client.get("/v1/models", headers={"authorization": "Bearer sk-globex"})
    assert "globexs-own" in [model["id"] for model in response.json()["data"]]


async def test_isolated_tenants_of_keys_have_different_salts(app: App, tmp_path: Path) -> None:
    app.configure(CONFIG + "router: {tenant_cache: isolated}\n", tmp_path)
    app.serving.tenant_keys = TenantKeys(KEYS)
    salts = {}
    for key in KEYS:
        assert await status(app, with_key(key)) == 200
        salts[key] = app.received.json["cache_salt"]
    assert salts["sk-acme"] == salts["sk-acme-2"] != salts["sk-globex"]


def test_table_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANT_KEYS", json.dumps(KEYS))
    keys = TenantKeys.from_environment("TENANT_KEYS")
    assert keys.tenants_without([]) == ["acme", "globex", "größe"]
    assert "sk-acme" not in repr(vars(keys))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", "is not set; set it to a JSON object from API keys to tenants"),
        ("sk-1=acme", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("{}", "is not a JSON object with an entry"),
        ('"sk-1"', "is not a JSON object"),
        ('{"sk-1": {"sk-2": "acme"}}', "the tenant of key 1 must be text"),
        ('{"sk-1": "acme", "sk-2": 5}', "the tenant of key 2 must be text"),
        ('{"sk-1": "a,b"}', "the tenant of key 1 must be text without commas"),
        ('{"sk-1": ""}', "the tenant of key 1 must be text"),
        ('{" sk-1": "acme"}', "key 1 is empty or begins or ends with a space"),
        ('{"": "acme"}', "key 1 is empty"),
        ('{"sk-1": "acme", "sk-1": "globex"}', "contains a key twice"),
    ],
)
def test_invalid_table_is_reported_without_its_keys(table: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENANT_KEYS", table)
    with pytest.raises(ValueError, match="TENANT_KEYS") as raised:
        TenantKeys.from_environment("TENANT_KEYS")
    assert problem in str(raised.value) and "sk-" not in str(raised.value)
