"""What a client gets from a server with the middleware in it."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from starlette.types import Message

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Classification

from .conftest import CONFIG, App

CHAT = "/v1/chat/completions"


def chat(text: str, model: str | None = "MoM", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], **more}
    return body if model is None else {"model": model, **body}


async def test_a_question_reaches_the_adapter_of_its_category(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("What is a symptom?"))
    assert app.reached.json["model"] == "medical-lora"
    assert response.headers["x-vsr-selected-category"] == "medical"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-vsr-selected-confidence"] == "1.0000"
    assert response.headers["x-lora-router-method"] == "keyword"
    assert response.headers["x-lora-router-reason"] == "routed"
    assert 0 < float(response.headers["x-lora-router-overhead-ms"]) < 1000


@pytest.mark.parametrize("model", ["MoM", "auto"])
async def test_both_auto_names_are_routed(app: App, client: httpx.AsyncClient, model: str) -> None:
    await client.post(CHAT, json=chat("a lawsuit", model))
    assert app.reached.json["model"] == "legal-lora"


@pytest.mark.parametrize("model", ["medical-lora", "served-base", "unknown", "", None, 7, ["MoM"], {"a": "MoM"}])
async def test_a_request_that_names_something_else_arrives_byte_for_byte(
    app: App, client: httpx.AsyncClient, model: Any
) -> None:
    members = [] if model is None else [f'"model" :{json.dumps(model)}']
    content = (
        "{ " + " , ".join([*members, '"x":1.50', '"messages":[ {"role":"user","content":"lawsuit"} ]']) + "}"
    ).encode()
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.reached.body == content
    assert not [name for name in response.headers if name.startswith(("x-vsr", "x-lora-router"))]
    assert "x-request-id" not in app.reached.headers[-1]


async def test_a_question_that_no_rule_knows_gets_the_default_model(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("Hello there"))
    assert app.reached.json["model"] == "served-base"
    assert response.headers["x-lora-router-reason"] == "below_threshold"
    assert response.headers["x-vsr-selected-category"] == ""
    assert response.headers["x-vsr-injected-system-prompt"] == "false"


async def test_system_prompt_and_reasoning_are_written_and_said(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("blood"))
    assert app.reached.json["messages"][0] == {"role": "system", "content": "You are a medical expert."}
    assert app.reached.json["chat_template_kwargs"] == {"enable_thinking": True}
    assert response.headers["x-vsr-selected-reasoning"] == "on"
    assert response.headers["x-vsr-injected-system-prompt"] == "true"


async def test_the_clients_own_wish_about_reasoning_wins(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("blood", reasoning_effort="low"))
    assert "chat_template_kwargs" not in app.reached.json
    assert response.headers["x-vsr-selected-reasoning"] == "off"


async def test_every_other_byte_of_a_routed_body_stays(app: App, client: httpx.AsyncClient) -> None:
    tools = b'[{"type":"function","function":{"z":1.10,"a":12345678901234567890123,"b":1e400,"parameters":{ }}}]'
    message = b'{"content":"lawsuit","role":"user","x":{"b":0.30,"a":[]}}'
    content = b'{"unknown":{"k" : 1.0},"model":"MoM","tools":' + tools + b',"messages":[' + message + b'],"seed":007}'
    content = content.replace(b'"seed":007', b'"seed":7e0')
    await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    body = app.reached.body
    assert tools in body and message in body and b'{"k" : 1.0}' in body and b"7e0" in body
    order = [body.index(key) for key in (b'"unknown"', b'"model"', b'"tools"', b'"messages"', b'"seed"')]
    assert order == sorted(order)
    assert app.reached.headers[-1]["content-length"] == str(len(body))


async def test_headers_come_with_streams_and_errors_too(client: httpx.AsyncClient) -> None:
    streamed = await client.post(CHAT, json=chat("lawsuit", stream=True))
    assert streamed.text == "data: 1\n\ndata: 2\n\n"
    assert streamed.headers["x-vsr-selected-model"] == "legal-lora"
    wrong = await client.post(CHAT, json=chat("lawsuit", wrong=True))
    assert wrong.status_code == 400
    assert wrong.headers["x-vsr-selected-model"] == "legal-lora"


@pytest.mark.parametrize(("word", "category"), [("size", "Größe/量"), ("lines", "two\r\nlines: x")])
async def test_a_strange_category_name_does_no_harm(
    app: App, client: httpx.AsyncClient, word: str, category: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    response = await client.post(CHAT, json=chat(word))
    raw = response.headers["x-vsr-selected-category"]
    assert raw.isascii() and raw.isprintable()
    assert unquote(raw) == category
    app.serving.record.settle()
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]


async def test_the_answer_and_our_log_carry_one_id(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    await client.post(CHAT, json=chat("lawsuit"))
    app.serving.record.settle()
    assert caplog.messages[-1].endswith(" ms chatcmpl-" + app.reached.headers[-1]["x-request-id"])
    await client.post(CHAT, json=chat("lawsuit"), headers={"X-Request-Id": "mine"})
    assert app.reached.headers[-1]["x-request-id"] == "mine"
    app.serving.record.settle()
    assert caplog.messages[-1].startswith("legal -> legal-lora keyword 1.00 (lawsuit) ")
    assert caplog.messages[-1].endswith(" ms chatcmpl-mine")


async def test_completions_are_routed_by_their_prompt(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"model": "MoM", "prompt": "My blood is"})
    assert app.reached.json == {"model": "medical-lora", "prompt": "My blood is"}
    assert response.headers["x-vsr-injected-system-prompt"] == "false"
    mixed = await client.post("/v1/completions", json={"model": "MoM", "prompt": ["blood", "lawsuit"]})
    assert app.reached.json["model"] == "served-base"
    assert mixed.headers["x-lora-router-reason"] == "mixed"


async def test_other_routes_pass_through_untouched(app: App, client: httpx.AsyncClient) -> None:
    content = b'{"model": "MoM",  "input": "lawsuit"}'
    await client.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert app.reached.body == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"MoM"', b'{"model":"MoM"', b'{"model":"MoM","messages":"\xff"}x', b"\xff\xfe"]
)
async def test_what_is_no_json_object_reaches_vllm_as_it_is(
    app: App, client: httpx.AsyncClient, content: bytes
) -> None:
    await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.reached.body == content


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {}, {"content-type": "application/json", "content-encoding": "gzip"}]
)
async def test_what_vllm_would_not_read_as_json_is_not_read_by_us(
    app: App, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    content = json.dumps(chat("lawsuit")).encode()
    await client.post(CHAT, content=content, headers=headers)
    assert app.reached.body == content


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32-le"])
async def test_encodings_that_vllm_takes_are_routed(app: App, client: httpx.AsyncClient, encoding: str) -> None:
    content = json.dumps(chat("Größe of a lawsuit"), ensure_ascii=False).encode(encoding)
    await client.post(CHAT, content=content, headers={"content-type": "application/json; charset=x"})
    assert app.reached.json["model"] == "legal-lora"
    assert app.reached.json["messages"] == [{"role": "user", "content": "Größe of a lawsuit"}]


async def test_a_body_in_chunks_is_routed(app: App, client: httpx.AsyncClient) -> None:
    content = json.dumps(chat("lawsuit")).encode()

    async def chunks():
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    await client.post(CHAT, content=chunks(), headers={"content-type": "application/json"})
    assert app.reached.json["model"] == "legal-lora"


async def test_an_adapter_that_is_not_there_leaves_the_next_candidate(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.discard("medical-lora")
    response = await client.post(CHAT, json=chat("blood"))
    assert app.reached.json["model"] == "second-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"
    app.adapters.loaded.clear()
    await client.post(CHAT, json=chat("blood"))
    assert app.reached.json["model"] == "served-base"


async def test_the_base_is_routed_too_where_the_configuration_says_so(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + "router: {route_base_model: true}\n", tmp_path)
    for model in ("served-base", None):
        await client.post(CHAT, json=chat("lawsuit", model))
        assert app.reached.json["model"] == "legal-lora"
    await client.post(CHAT, json=chat("lawsuit", "medical-lora"))
    assert app.reached.json["model"] == "medical-lora"


async def test_a_prefix_of_a_proxy_in_front_is_no_hindrance(app: App) -> None:
    transport = httpx.ASGITransport(app=app.asgi, root_path="/llm")
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        await client.post("/llm" + CHAT, json=chat("lawsuit"))
    assert app.reached.json["model"] == "legal-lora"


async def test_a_browser_may_read_the_headers(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("lawsuit"), headers={"origin": "http://page"})
    assert "x-vsr-selected-model" in response.headers["access-control-expose-headers"]
    assert "access-control-expose-headers" not in (await client.post(CHAT, json=chat("lawsuit"))).headers


class Failing:
    """A classifier that fails, or takes its time."""

    method = "domain"
    reads = frozenset({"text"})
    fingerprint = "x"

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.cancelled = False

    async def classify(self, queries: Any) -> list[Classification]:
        if self.seconds is None:
            raise RuntimeError("out of memory")
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return []


def classify_with(app: App, classifier: Failing, deadline_ms: float) -> None:
    assert app.serving.router is not None
    before = app.serving.router
    app.serving.router = Router(before.loaded, before.base, Classifiers(Cascade([classifier], deadline_ms), ()))


@pytest.mark.parametrize(("seconds", "reason"), [(None, "error"), (5, "timeout")])
async def test_a_classifier_that_fails_never_fails_the_request(
    app: App, client: httpx.AsyncClient, seconds: float | None, reason: str
) -> None:
    classify_with(app, Failing(seconds), deadline_ms=20)
    response = await client.post(CHAT, json=chat("blood"))
    assert response.status_code == 200
    assert app.reached.json["model"] == "served-base"
    assert response.headers["x-lora-router-reason"] == reason


async def test_who_must_not_serve_unrouted_may_reject(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(CONFIG + "router: {on_error: reject}\n", tmp_path)
    classify_with(app, Failing(None), deadline_ms=20)
    response = await client.post(CHAT, json=chat("blood"))
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "ServiceUnavailableError"
    assert app.reached.bodies == []
    classify_with(app, Failing(None), deadline_ms=20)
    assert (await client.post(CHAT, json=chat("hello", "served-base"))).status_code == 200


class Connection:
    """A client on the other side of raw ASGI, which can leave."""

    def __init__(self, app: App, body: dict[str, Any]) -> None:
        self.app = app
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[Message] = []
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
        }

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def run(self, asgi: Any) -> None:
        async def send(message: Message) -> None:
            self.sent.append(message)

        await asgi(self.scope, self.inbox.get, send)


async def test_a_client_that_leaves_while_we_classify_costs_nothing_more(app: App) -> None:
    slow = Failing(30)
    classify_with(app, slow, deadline_ms=60_000)
    connection = Connection(app, chat("blood"))
    running = asyncio.create_task(connection.run(app.asgi))
    await asyncio.sleep(0.05)
    connection.leave()
    await asyncio.wait_for(running, 1)
    assert slow.cancelled
    assert app.reached.bodies == [] and connection.sent == []


async def test_a_client_that_leaves_later_is_announced_to_vllm(app: App) -> None:
    heard: list[str] = []

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        # vLLM gives up listening and begins again: nothing may be lost on the way.
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0.02)
        listening.cancel()
        await asyncio.sleep(0)
        heard.append((await receive())["type"])

    app.asgi.app = generation
    connection = Connection(app, chat("lawsuit"))
    running = asyncio.create_task(connection.run(app.asgi))
    await asyncio.sleep(0.1)
    assert heard == []
    connection.leave()
    await asyncio.wait_for(running, 1)
    assert heard == ["http.disconnect"]
    assert app.serving.record.tally.aborted == 1 and app.serving.record.tally.under_way == 0


async def test_nothing_of_ours_stays_behind_when_the_response_is_done(app: App) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(20):
        await Connection(app, chat("lawsuit")).run(app.asgi)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


async def test_before_the_engine_is_up_everything_passes(app: App, client: httpx.AsyncClient) -> None:
    app.serving.router = None
    await client.post(CHAT, json=chat("lawsuit"))
    assert app.reached.json["model"] == "MoM"


async def test_websockets_pass(app: App) -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    app.asgi.app = inner
    await app.asgi({"type": "websocket", "path": "/v1/realtime"}, None, None)  # pyright: ignore[reportArgumentType]
    assert seen == ["websocket"]
