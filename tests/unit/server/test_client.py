"""The client of a request: its values are bounded, and recorded decisions keep none of its texts."""

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from vllm_lora_router.observability.audit_destination import prepare_destination
from vllm_lora_router.observability.recorder import MAX_RECENT_DECISIONS
from vllm_lora_router.routing.ab_assignment import digest
from vllm_lora_router.server import client as client_module
from vllm_lora_router.server.client import (
    MAX_FORWARDED_BYTES,
    MAX_MODEL_CHARACTERS,
    MAX_TENANT_CHARACTERS,
    MAX_USER_CHARACTERS,
    bounded,
    client_of,
)
from vllm_lora_router.types import Client

from .conftest import CONFIG, App, post_json

CHAT = "/v1/chat/completions"
IDENTIFIED = (
    CONFIG
    + """
router:
  tenant: "header:x-tenant"
  ab: {key: [safety_identifier, metadata.user_id, user, "header:x-user", conversation], salt: pepper}
"""
)


def identify(app: App, folder: Path, headers: dict[str, str], **members: Any) -> Client:
    """Return the client of a request."""
    router = app.configure(IDENTIFIED, folder)
    router.uses_mcp = True
    router.forwarded_headers = (("X-Plan", b"x-plan"),)
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    return client_of(
        router, {"headers": raw_headers}, {name: json.dumps(value).encode() for name, value in members.items()}
    )


def test_long_identifiers_become_digests_that_keep_them_apart() -> None:
    assert bounded("a" * 10, 10) == "a" * 10
    long = [bounded(text, 10) for text in ("a" * 11, "a" * 12, "\ud83d" * 11, "a" * 1_000_000)]
    assert len(set(long)) == 4 and {len(text) for text in long} == {len("sha256-") + 64}


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_every_value_of_client_is_bounded(app: App, tmp_path: Path, length: int) -> None:
    text = "é" * length
    names: list[str] = ["authorization", "x-tenant", "x-user", "x-plan"]
    headers = dict.fromkeys(names, text)
    client = identify(
        app, tmp_path, headers, safety_identifier=text, user=text, metadata={"user_id": text, "other": text}
    )
    assert set(client.ab_keys.values()) == {digest("pepper", text)}
    assert client.ab_keys.keys() == {"safety_identifier", "metadata.user_id", "user", "header:x-user"}
    assert client.api_key_fingerprint == digest("pepper", "client", text.encode().decode("latin-1"))[:12]
    assert client.tenant == bounded(text, MAX_TENANT_CHARACTERS)
    assert client.user == bounded(text, MAX_USER_CHARACTERS)
    assert client.headers == ({"X-Plan": text} if len(text.encode()) <= MAX_FORWARDED_BYTES else {})


def test_fingerprint_does_not_depend_on_the_scheme_and_is_stable(app: App, tmp_path: Path) -> None:
    """A changed fingerprint would separate the records of an API key, and move conversations to other arms."""
    clients = [
        identify(app, tmp_path, {name: value})
        for name, value in (
            ("authorization", "Bearer sk-1"),
            ("authorization", "bEARER sk-1"),
            ("authorization", "sk-1"),
            ("x-api-key", "sk-1"),
        )
    ]
    assert {client.api_key_fingerprint for client in clients} == {"67d9a4d26bd9"}


def test_headers_of_the_same_name_are_joined_except_credentials(app: App, tmp_path: Path) -> None:
    router = app.configure(IDENTIFIED, tmp_path)
    router.uses_mcp = True
    router.forwarded_headers = (("X-Plan", b"x-plan"),)
    headers = [
        *[(b"authorization", b"Bearer sk-1"), (b"authorization", b"Bearer sk-2")],
        *[(b"x-user", b"mallory"), (b"x-user", b"alice"), (b"x-plan", b"gold"), (b"x-plan", b"free")],
    ]
    client = client_of(router, {"headers": headers}, {})
    assert client.ab_keys == {"header:x-user": digest("pepper", "mallory, alice")}
    assert client.headers == {"X-Plan": "gold, free"}
    assert client.api_key_fingerprint == identify(app, tmp_path, {"authorization": "sk-1"}).api_key_fingerprint


def test_credentials_are_not_cached() -> None:
    assert not hasattr(client_module._fingerprint, "cache_info")


@pytest.mark.parametrize("request_id", [b"x" * 129, b"two words", "é".encode(), b"x" * 1_000_000])
async def test_request_id_that_cannot_be_kept_is_replaced_for_vllm(app: App, request_id: bytes) -> None:
    body = {"model": "MoM", "messages": [{"role": "user", "content": "blood"}], "request_id": "body"}
    await post_json(app.asgi, CHAT, body, [(b"x-request-id", request_id)])
    written = app.received.headers[-1]["x-request-id"]
    assert len(written) == 32
    (decision,) = app.serving.recorder.recent_decisions(1)
    assert decision["id"] == f"chatcmpl-{written}"


@pytest.mark.parametrize("mode", ["route", "observe"])
async def test_long_model_name_is_forwarded_unchanged_and_recorded_as_digest(
    app: App, tmp_path: Path, mode: str
) -> None:
    router = app.configure(CONFIG + f"router: {{mode: {mode}, audit: {{path: audit, scope: all}}}}\n", tmp_path)
    app.serving.recorder.set_destination(prepare_destination(router.loaded))
    name = "m" * 1_000_000
    content = json.dumps({"model": name, "messages": [{"role": "user", "content": "blood"}]}).encode()
    await post_json(app.asgi, CHAT, content)
    assert app.received.body == content
    (decision,) = app.serving.recorder.recent_decisions(1)
    assert decision["requested_model"] == decision["served"]["model"] == bounded(name, MAX_MODEL_CHARACTERS)
    assert len(json.dumps(decision)) < 2000
    app.serving.recorder.close()


@pytest.mark.parametrize("mode", ["route", "observe"])
async def test_memory_does_not_grow_with_the_text_of_clients(
    app: App, tmp_path: Path, full: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 MB in every free text of each request. Only records of bounded size stay."""
    requests, length = (10_000, 1_000_000) if full else (60, 100_000)
    router = app.configure(IDENTIFIED + f"  mode: {mode}\n", tmp_path)
    router.uses_mcp = True
    router.forwarded_headers = (("X-Plan", b"x-plan"),)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = answer

    async def send_request(number: int) -> None:
        text = f"{number} " + "x" * length
        raw = text.encode()
        body = {
            "model": "MoM" if mode == "route" else text,
            "messages": [{"role": "user", "content": f"blood {text}"}],
            **dict.fromkeys(("user", "safety_identifier", "request_id"), text),
            "metadata": {"user_id": text},
        }
        names = (b"authorization", b"x-tenant", b"x-user", b"x-plan", b"x-request-id", b"traceparent")
        await post_json(app.asgi, CHAT, body, [(name, raw) for name in names])

    for number in range(5):
        await send_request(number)
    app.serving.recorder.flush()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(requests):
        await send_request(number)
    app.serving.recorder.flush()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = min(requests, MAX_RECENT_DECISIONS)
    print(f"{requests} requests with {length:,} bytes in each text: {(after - before) / kept:,.0f} bytes a decision")
    assert after - before < 20_000 * kept


async def test_recent_decisions_contain_no_text_of_the_client(app: App, tmp_path: Path) -> None:
    app.configure(IDENTIFIED, tmp_path)
    router = app.serving.router
    assert router is not None
    router.uses_mcp = True
    router.forwarded_headers = (("authorization", b"authorization"),)
    headers = [(b"authorization", b"Bearer sk-secret"), (b"x-tenant", b"acme"), (b"x-user", b"user-secret")]
    body = {"model": "MoM", "user": "user-secret", "messages": [{"role": "user", "content": "blood text-secret"}]}
    await post_json(app.asgi, CHAT, body, headers)
    app.serving.recorder.flush()
    held = repr(list(app.serving.recorder._recent.values()))
    assert "acme" in held and "secret" not in held
