"""Tenants that are kept apart in vLLM's prefix cache: what reaches vLLM of their requests."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from vllm_lora_router.protocols.cache_salt import SALTED
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.server.tenant_isolation import salt_for

from .conftest import CONFIG, Answer, App, ask, echo, request_to

CHAT = "/v1/chat/completions"
HEADER = b"x-amzn-sagemaker-adapter-identifier"
ISOLATED = CONFIG + "router: {tenant_cache: isolated}\n"
OURS = sorted(SALTED & ROUTES.keys())
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
def app(tmp_path: Path) -> App:
    return echo(tmp_path, ISOLATED)


def tenant(name: str | bytes | None) -> Headers:
    return [] if name is None else [(b"x-tenant", name if isinstance(name, bytes) else name.encode())]


def naming(path: str, model: str | None, words: str = "My blood is", **more: Any) -> tuple[dict[str, Any], Headers]:
    """A request that names a model where its path has it."""
    if path == "/invocations":
        return request_to(path, words, **more), [] if model is None else [(HEADER, model.encode())]
    return request_to(path, words, **({} if model is None else {"model": model}), **more), []


async def salt_of(app: App, of: str | bytes | None, request: dict[str, Any], path: str = CHAT) -> Any:
    """The salt with which a tenant's request reaches vLLM; None for none."""
    answer = await ask(app.asgi, path, request, tenant(of))
    assert answer.status == 200, answer.body
    return app.reached.json.get("cache_salt")


def chat(model: str | None = "MoM", **more: Any) -> dict[str, Any]:
    return naming(CHAT, model, **more)[0]


@pytest.mark.parametrize("model", ["MoM", "served-base", "medical-lora", "unknown", None])
@pytest.mark.parametrize("path", OURS)
async def test_each_tenant_has_a_salt_of_its_own_on_every_path_whatever_it_names(
    app: App, path: str, model: str | None
) -> None:
    request, headers = naming(path, model)
    salts: dict[str | None, str] = {}
    for name in ("acme", "evil", None):
        for _ in range(2):
            answer = await ask(app.asgi, path, request, [*headers, *tenant(name)])
            assert answer.status == 200
            assert salts.setdefault(name, app.reached.json["cache_salt"]) == app.reached.json["cache_salt"]
    assert len(set(salts.values())) == 3


@pytest.mark.parametrize("model", ["served-base", "medical-lora", "unknown", None])
@pytest.mark.parametrize("path", OURS)
async def test_nothing_else_changes_in_a_request_that_names_its_model(app: App, path: str, model: str | None) -> None:
    request, headers = naming(path, model, seed=1)
    content = json.dumps(request, separators=(",", ":")).encode()
    content = content.replace(b'"seed":1', b'"seed":[ 1.50,1e400,"\\u00e9",{"a" :1} ]')
    answer = await ask(app.asgi, path, content, [*headers, *tenant("acme"), (b"content-length", b"0")])
    salt = f',"cache_salt":"{salt_for("acme", None)}"}}'.encode()
    assert app.reached.body == content[:-1] + salt
    assert app.reached.headers[-1]["content-length"] == str(len(app.reached.body))
    assert not [name for name in answer.headers if name.startswith(("x-vsr", "x-lora-router"))]


@pytest.mark.parametrize("path", OURS)
async def test_a_routed_request_differs_by_its_salt_alone(app: App, path: str, tmp_path: Path) -> None:
    request, headers = naming(path, "MoM", request_id="mine")
    reached: list[tuple[dict[str, Any], str]] = []
    for config in (ISOLATED, CONFIG):
        app.configure(config, tmp_path)
        answer = await ask(app.asgi, path, request, [*headers, *tenant("acme")])
        reached.append((app.reached.json, answer.headers["x-vsr-selected-model"]))
    (isolated, model), (shared, same_model) = reached
    assert isolated.pop("cache_salt") == salt_for("acme", None)
    assert (isolated, model) == (shared, same_model)


def test_a_salt_is_the_same_in_every_process_release_and_replica() -> None:
    assert salt_for("acme", None) == "4c9217a5cf820fdd29a437baff28b375"
    assert salt_for(None, None) == "58d68ed904216fb3f22d43128a18e314"
    assert salt_for("acme", "mine") == "fdd1a5e01d12c269b02977ac2af7ea48"


def test_no_two_tenants_or_salts_of_their_own_come_to_the_same() -> None:
    values = [None, "", "=", "==", "a", "=a", "b", "ab", "a=", "None", "null", "\0", "ä", "\udce4"]
    salts = {salt_for(name, own) for name in values for own in values}
    assert len(salts) == len(values) ** 2
    assert all(len(salt) == 32 and salt.isalnum() for salt in salts)


async def test_a_client_that_sends_its_own_salt_still_separates_its_users(app: App) -> None:
    for model in ("MoM", "served-base", "medical-lora"):
        salts = [
            await salt_of(app, name, chat(model, **more))
            for name in ("acme", "evil", None)
            for more in ({}, {"cache_salt": "one"}, {"cache_salt": "two"})
        ]
        assert len(set(salts)) == 9
        assert await salt_of(app, "acme", chat(model, cache_salt="one")) == salts[1]
        assert await salt_of(app, "acme", chat(model, cache_salt=None)) == salts[0]


async def test_no_client_reaches_another_tenants_salt_by_its_own(app: App) -> None:
    theirs = await salt_of(app, "acme", chat("served-base"))
    for own in (theirs, "acme", "=acme"):
        for name in ("evil", None, "acme2"):
            assert await salt_of(app, name, chat("served-base", cache_salt=own)) != theirs


async def test_nobody_may_be_called_like_no_tenant(app: App) -> None:
    nobodys = await salt_of(app, None, chat("served-base"))
    assert await salt_of(app, "", chat("served-base")) == nobodys
    assert await salt_of(app, "  ", chat("served-base")) == nobodys
    for name in ("None", "null", "=", "\\0"):
        assert await salt_of(app, name, chat("served-base")) != nobodys


async def test_names_that_are_no_utf_8_are_told_apart_too(app: App) -> None:
    names = [None, "Größe".encode("latin-1"), "Gräße".encode("latin-1"), "Größe".encode()]
    assert len({await salt_of(app, name, chat("served-base")) for name in names}) == 4


@pytest.mark.parametrize("own", ["", "x" * 129, "a/b", "\ud800", 5, True, ["x"], {"a": 1}])
@pytest.mark.parametrize("model", ["served-base", "medical-lora", None])
async def test_a_salt_that_vllm_refuses_reaches_it_byte_for_byte(app: App, model: str | None, own: Any) -> None:
    content = json.dumps(chat(model, cache_salt=own), indent=1).encode()
    await ask(app.asgi, CHAT, content, tenant("acme"))
    assert app.reached.body == content
    await ask(app.asgi, CHAT, chat("MoM", cache_salt=own), tenant("acme"))
    assert app.reached.json["cache_salt"] == own


async def test_a_request_that_is_asked_again_keeps_its_salt(app: App) -> None:
    await ask(app.asgi, CHAT, chat("MoM", wrong=True), tenant("acme"))
    first, again = map(json.loads, app.reached.bodies)
    assert first["messages"][0]["role"] == "system" and again["messages"] == chat()["messages"]
    assert first["cache_salt"] == again["cache_salt"] == salt_for("acme", None)


async def test_a_version_is_named_beside_the_salt(app: App) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    for model in ("medical-lora", "MoM"):
        await ask(app.asgi, CHAT, chat(model), tenant("acme"))
        assert (app.reached.json["model"], app.reached.json["cache_salt"]) == (
            "medical-lora@1a2b3c4d",
            salt_for("acme", None),
        )
    request, headers = naming("/invocations", "medical-lora")
    await ask(app.asgi, "/invocations", request, [*headers, *tenant("acme")])
    assert app.reached.headers[-1][HEADER.decode()] == "medical-lora@1a2b3c4d"
    assert app.reached.json == {**request, "cache_salt": salt_for("acme", None)}


@pytest.mark.parametrize("router", ["mode: observe", "mode: off", "route_base_model: true", "share: 0.0"])
async def test_whatever_routing_does_tenants_are_kept_apart(app: App, router: str, tmp_path: Path) -> None:
    app.configure(f"{CONFIG}router: {{tenant_cache: isolated, {router}}}\n", tmp_path)
    for model in ("MoM", "served-base", "medical-lora", None):
        assert await salt_of(app, "acme", chat(model)) == salt_for("acme", None)


async def test_what_is_recorded_without_being_routed_is_kept_apart(app: App) -> None:
    app.serving.record.records_all = True
    assert await salt_of(app, "acme", chat("served-base")) == salt_for("acme", None)


async def test_without_adapters_the_base_is_kept_apart(app: App) -> None:
    app.serving.adapters = None
    for model in ("MoM", "served-base", "medical-lora"):
        assert await salt_of(app, "acme", chat(model)) == salt_for("acme", None)


async def test_an_auto_name_where_nothing_is_routed_is_kept_apart(app: App) -> None:
    """vLLM may be told to answer any name by the base."""
    assert await salt_of(app, "acme", {"model": "MoM", "input": "x"}, "/v1/embeddings") == salt_for("acme", None)


async def test_a_body_of_megabytes_is_kept_apart(app: App) -> None:
    content = json.dumps(chat("served-base", x="y" * 1_000_000), separators=(",", ":")).encode()
    await ask(app.asgi, CHAT, content, tenant("acme"))
    assert app.reached.body == content[:-1] + f',"cache_salt":"{salt_for("acme", None)}"}}'.encode()


async def test_the_tenant_stands_where_the_configuration_says(app: App, tmp_path: Path) -> None:
    app.configure(f'{CONFIG}router: {{tenant_cache: isolated, tenant: "header:X-Org"}}\n', tmp_path)
    await ask(app.asgi, CHAT, chat("served-base"), [(b"x-org", b"acme"), (b"x-tenant", b"evil")])
    assert app.reached.json["cache_salt"] == salt_for("acme", None)


@pytest.mark.parametrize("path", sorted(path for path, route in ROUTES.items() if route.dry))
async def test_what_runs_nothing_stays_as_it_is(app: App, path: str) -> None:
    content = json.dumps(naming(path, "served-base")[0], indent=1).encode()
    assert (await ask(app.asgi, path, content, tenant("acme"))).status == 200
    assert app.reached.body == content
    await ask(app.asgi, path, naming(path, "MoM")[0], tenant("acme"))
    assert "cache_salt" not in app.reached.json


def refused(app: App, answer: Answer, *said: str) -> None:
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["type"], error["code"]) == (400, "BadRequestError", 400)
    assert all(words in error["message"] for words in (*said, "`router.tenant_cache: shared`")), error
    assert app.reached.bodies == []


@pytest.mark.parametrize(
    "path",
    [
        *("/cohere/v2/chat", "/v2/embed", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/decisions"),
        *("/v1/chat/completions/new", "/v1/unheard/of", "/"),
        # vLLM's routes take a line's end at theirs.
        *("/v1/chat/completions\n", "/v1/completions\n", "/v1/chat/completions/"),
    ],
)
@pytest.mark.parametrize("model", ["MoM", "served-base"])
async def test_a_path_without_a_salt_is_refused_and_the_way_out_said(app: App, path: str, model: str) -> None:
    refused(app, await ask(app.asgi, path, chat(model), tenant("acme")), repr(path), "another path")


async def post(app: App, path: str, content: bytes, headers: Headers) -> Answer:
    """A POST that need not be JSON."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app.asgi(scope, receive, send)
    return Answer(sent[0]["status"], {}, b"".join(message["body"] for message in sent[1:]))


NOT_JSON: dict[str, Headers] = {
    "a form": [(b"content-type", b"multipart/form-data; boundary=x")],
    "text": [(b"content-type", b"text/plain")],
    "another kind of JSON": [(b"content-type", b"application/ld+json")],
    "nothing": [],
    # vLLM takes no notice of it, and reads what is plain all the same.
    "an encoding that is none": [(b"content-type", b"application/json"), (b"content-encoding", b"identity")],
}


@pytest.mark.parametrize("kind", NOT_JSON)
async def test_a_body_that_is_not_read_is_refused(app: App, kind: str, tmp_path: Path) -> None:
    content = json.dumps(chat("served-base")).encode()
    refused(app, await post(app, CHAT, content, NOT_JSON[kind]), "application/json")
    refused(app, await post(app, "/v1/audio/transcriptions", content, NOT_JSON[kind]), "/v1/audio/transcriptions")
    app.configure(CONFIG, tmp_path)
    await post(app, CHAT, content, NOT_JSON[kind])
    assert app.reached.body == content


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"MoM"', b'{"model":"MoM"', b"\xff\xfe"])
async def test_what_is_no_json_object_reaches_vllm_as_it_is(app: App, content: bytes) -> None:
    await ask(app.asgi, CHAT, content, tenant("acme"))
    assert app.reached.body == content


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32-le"])
async def test_encodings_that_vllm_takes_are_kept_apart(app: App, encoding: str) -> None:
    await ask(app.asgi, CHAT, json.dumps(chat("served-base")).encode(encoding), tenant("acme"))
    assert app.reached.json == {**chat("served-base"), "cache_salt": salt_for("acme", None)}


async def test_what_operates_the_server_passes(app: App) -> None:
    passed: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    app.asgi.app = inner
    paths = ["/v1/load_lora_adapter", "/sleep", "/ping", "/v1/responses/resp_1/cancel", "/v1/router/classify"]
    for path in paths:
        assert (await post(app, path, b"", [])).status == 200
    assert passed == paths


@pytest.mark.parametrize("path", sorted({*ROUTES, "/v1/embeddings"}))
async def test_where_the_cache_is_shared_nothing_is_salted_or_refused(app: App, path: str, tmp_path: Path) -> None:
    app.configure(CONFIG, tmp_path)
    request, headers = naming(path, "served-base", cache_salt="mine")
    content = json.dumps(request, indent=1).encode()
    assert (await ask(app.asgi, path, content, [*headers, *tenant("acme")])).status == 200
    assert app.reached.body == content
    await ask(app.asgi, path, naming(path, "MoM")[0], tenant("acme"))
    assert "cache_salt" not in app.reached.json


async def connect(app: App, extensions: dict[str, Any]) -> list[Message]:
    """What a client that opens a WebSocket gets."""
    sent: list[Message] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    app.asgi.app = inner
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": tenant("acme"), "extensions": extensions}
    await app.asgi(scope, receive, send)
    return sent


async def test_no_websocket_is_opened_where_tenants_are_kept_apart(app: App, tmp_path: Path) -> None:
    start, end = await connect(app, {"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 400)
    assert "`router.tenant_cache: shared`" in json.loads(end["body"])["error"]["message"]
    assert [message["type"] for message in await connect(app, {})] == ["websocket.close"]
    app.configure(CONFIG, tmp_path)
    assert [message["type"] for message in await connect(app, {})] == ["websocket.accept"]


async def test_requests_keep_what_they_began_with_when_the_configuration_changes(app: App, tmp_path: Path) -> None:
    app.adapters.slot.clear()
    waiting = asyncio.create_task(ask(app.asgi, CHAT, chat("MoM"), tenant("acme")))
    await asyncio.sleep(0.02)
    app.configure(CONFIG, tmp_path)
    app.adapters.slot.set()
    await waiting
    assert app.reached.json["cache_salt"] == salt_for("acme", None)
    assert await salt_of(app, "acme", chat("MoM")) is None
