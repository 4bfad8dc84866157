"""The middleware as its clients see it: routing, edits, headers, errors and disconnects."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote

import httpx
import pytest
from starlette.types import Message

from vllm_lora_router.classifiers.cascade import Cascade
from vllm_lora_router.classifiers.factory import Classifiers
from vllm_lora_router.routing.router import Router
from vllm_lora_router.types import Classification, Method

from .conftest import CONFIG, App, post_json

CHAT = "/v1/chat/completions"


def chat(text: str, model: str | None = "MoM", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], **more}
    return body if model is None else {"model": model, **body}


async def test_request_is_served_by_adapter_of_its_category(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("What is a symptom?"))
    assert app.received.json["model"] == "medical-lora"
    assert response.headers["x-vsr-selected-category"] == "medical"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-vsr-selected-confidence"] == "1.0000"
    assert response.headers["x-lora-router-method"] == "keyword"
    assert response.headers["x-lora-router-reason"] == "routed"
    assert 0 < float(response.headers["x-lora-router-overhead-ms"]) < 1000


@pytest.mark.parametrize("model", ["MoM", "auto"])
async def test_both_auto_names_are_routed(app: App, client: httpx.AsyncClient, model: str) -> None:
    await client.post(CHAT, json=chat("a lawsuit", model))
    assert app.received.json["model"] == "legal-lora"


@pytest.mark.parametrize("model", ["medical-lora", "served-base", "unknown", "", None, 7, ["MoM"], {"a": "MoM"}])
async def test_other_model_names_are_forwarded_byte_for_byte(app: App, client: httpx.AsyncClient, model: Any) -> None:
    members = [] if model is None else [f'"model" :{json.dumps(model)}']
    content = (
        "{ " + " , ".join([*members, '"x":1.50', '"messages":[ {"role":"user","content":"lawsuit"} ]']) + "}"
    ).encode()
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.received.body == content
    assert not [name for name in response.headers if name.startswith(("x-vsr", "x-lora-router"))]
    assert "x-request-id" not in app.received.headers[-1]


async def test_request_without_matching_rule_uses_default_model(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("Hello there"))
    assert app.received.json["model"] == "served-base"
    assert response.headers["x-lora-router-reason"] == "below_threshold"
    assert response.headers["x-vsr-selected-category"] == ""
    assert response.headers["x-vsr-injected-system-prompt"] == "false"


async def test_system_prompt_and_reasoning_are_written_and_reported(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("blood"))
    assert app.received.json["messages"][0] == {"role": "system", "content": "You are a medical expert."}
    assert app.received.json["chat_template_kwargs"] == {"enable_thinking": True}
    assert response.headers["x-vsr-selected-reasoning"] == "on"
    assert response.headers["x-vsr-injected-system-prompt"] == "true"


async def test_reasoning_set_by_client_takes_precedence(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("blood", reasoning_effort="low"))
    assert "chat_template_kwargs" not in app.received.json
    assert response.headers["x-vsr-selected-reasoning"] == "off"


async def test_other_bytes_of_routed_body_are_unchanged(app: App, client: httpx.AsyncClient) -> None:
    tools = b'[{"type":"function","function":{"z":1.10,"a":12345678901234567890123,"b":1e400,"parameters":{ }}}]'
    message = b'{"content":"lawsuit","role":"user","x":{"b":0.30,"a":[]}}'
    content = b'{"unknown":{"k" : 1.0},"model":"MoM","tools":' + tools + b',"messages":[' + message + b'],"seed":007}'
    content = content.replace(b'"seed":007', b'"seed":7e0')
    await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    body = app.received.body
    assert tools in body and message in body and b'{"k" : 1.0}' in body and b"7e0" in body
    order = [body.index(key) for key in (b'"unknown"', b'"model"', b'"tools"', b'"messages"', b'"seed"')]
    assert order == sorted(order)
    assert app.received.headers[-1]["content-length"] == str(len(body))


async def test_streams_and_errors_have_decision_headers(client: httpx.AsyncClient) -> None:
    streamed = await client.post(CHAT, json=chat("lawsuit", stream=True))
    assert streamed.text == "data: 1\n\ndata: 2\n\n"
    assert streamed.headers["x-vsr-selected-model"] == "legal-lora"
    wrong = await client.post(CHAT, json=chat("lawsuit", wrong=True))
    assert wrong.status_code == 400
    assert wrong.headers["x-vsr-selected-model"] == "legal-lora"


@pytest.mark.parametrize(("word", "category"), [("size", "Größe/量"), ("lines", "100 %: x")])
async def test_unusual_category_name_is_encoded(
    app: App, client: httpx.AsyncClient, word: str, category: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    response = await client.post(CHAT, json=chat(word))
    raw = response.headers["x-vsr-selected-category"]
    assert raw.isascii() and raw.isprintable()
    assert unquote(raw) == category
    app.serving.recorder.flush()
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]


async def test_answer_and_log_have_same_id(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    await client.post(CHAT, json=chat("lawsuit"))
    app.serving.recorder.flush()
    assert caplog.messages[-1].endswith(" ms chatcmpl-" + app.received.headers[-1]["x-request-id"])
    await client.post(CHAT, json=chat("lawsuit"), headers={"X-Request-Id": "mine"})
    assert app.received.headers[-1]["x-request-id"] == "mine"
    app.serving.recorder.flush()
    assert caplog.messages[-1].startswith("legal -> legal-lora keyword 1.00 (lawsuit) ")
    assert caplog.messages[-1].endswith(" ms chatcmpl-mine")


async def test_completions_are_routed_by_prompt(app: App, client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", json={"model": "MoM", "prompt": "My blood is"})
    assert app.received.json == {"model": "medical-lora", "prompt": "My blood is"}
    assert response.headers["x-vsr-injected-system-prompt"] == "false"
    mixed = await client.post("/v1/completions", json={"model": "MoM", "prompt": ["blood", "lawsuit"]})
    assert app.received.json["model"] == "served-base"
    assert mixed.headers["x-lora-router-reason"] == "mixed"


async def test_other_paths_are_forwarded_unchanged(app: App, client: httpx.AsyncClient) -> None:
    content = b'{"model": "MoM",  "input": "lawsuit"}'
    await client.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert app.received.body == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"MoM"', b'{"model":"MoM"', b'{"model":"MoM","messages":"\xff"}x', b"\xff\xfe"]
)
async def test_body_that_is_not_json_object_is_forwarded_unchanged(
    app: App, client: httpx.AsyncClient, content: bytes
) -> None:
    await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.received.body == content


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {}, {"content-type": "application/json", "content-encoding": "gzip"}]
)
async def test_other_content_types_are_forwarded_unchanged(
    app: App, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    content = json.dumps(chat("lawsuit")).encode()
    await client.post(CHAT, content=content, headers=headers)
    assert app.received.body == content


async def test_identity_encoding_is_routed(app: App, client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "Identity"}
    await client.post(CHAT, content=json.dumps(chat("lawsuit")), headers=headers)
    assert app.received.json["model"] == "legal-lora"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32-le"])
async def test_every_json_encoding_is_routed(app: App, client: httpx.AsyncClient, encoding: str) -> None:
    content = json.dumps(chat("Größe of a lawsuit"), ensure_ascii=False).encode(encoding)
    await client.post(CHAT, content=content, headers={"content-type": "application/json; charset=x"})
    assert app.received.json["model"] == "legal-lora"
    assert app.received.json["messages"] == [{"role": "user", "content": "Größe of a lawsuit"}]


async def test_chunked_body_is_routed(app: App, client: httpx.AsyncClient) -> None:
    content = json.dumps(chat("lawsuit")).encode()

    async def chunks():
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    await client.post(CHAT, content=chunks(), headers={"content-type": "application/json"})
    assert app.received.json["model"] == "legal-lora"


async def test_missing_adapter_falls_back_to_next_candidate(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.discard("medical-lora")
    response = await client.post(CHAT, json=chat("blood"))
    assert app.received.json["model"] == "second-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"
    app.adapters.loaded.clear()
    await client.post(CHAT, json=chat("blood"))
    assert app.received.json["model"] == "served-base"


async def test_route_base_model_routes_base_requests(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(CONFIG + "router: {route_base_model: true}\n", tmp_path)
    for model in ("served-base", None):
        await client.post(CHAT, json=chat("lawsuit", model))
        assert app.received.json["model"] == "legal-lora"
    await client.post(CHAT, json=chat("lawsuit", "medical-lora"))
    assert app.received.json["model"] == "medical-lora"


async def test_root_path_of_proxy_is_removed(app: App) -> None:
    transport = httpx.ASGITransport(app=app.asgi, root_path="/llm")
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        await client.post("/llm" + CHAT, json=chat("lawsuit"))
    assert app.received.json["model"] == "legal-lora"


async def test_decision_headers_are_exposed_to_browsers(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("lawsuit"), headers={"origin": "http://page"})
    assert "x-vsr-selected-model" in response.headers["access-control-expose-headers"]
    assert "access-control-expose-headers" not in (await client.post(CHAT, json=chat("lawsuit"))).headers


class FailingClassifier:
    """A classifier that raises, or takes `seconds`."""

    method: Method = "domain"
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


def classify_with(app: App, classifier: FailingClassifier, deadline_ms: float) -> None:
    assert app.serving.router is not None
    router = app.serving.router
    app.serving.router = Router(router.loaded, router.base, Classifiers(Cascade([classifier], deadline_ms), ()))


@pytest.mark.parametrize(("seconds", "reason"), [(None, "error"), (5, "timeout")])
async def test_failing_classifier_does_not_fail_request(
    app: App, client: httpx.AsyncClient, seconds: float | None, reason: str
) -> None:
    classify_with(app, FailingClassifier(seconds), deadline_ms=20)
    response = await client.post(CHAT, json=chat("blood"))
    assert response.status_code == 200
    assert app.received.json["model"] == "served-base"
    assert response.headers["x-lora-router-reason"] == reason


async def test_on_error_reject_returns_503(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(CONFIG + "router: {on_error: reject}\n", tmp_path)
    classify_with(app, FailingClassifier(None), deadline_ms=20)
    response = await client.post(CHAT, json=chat("blood"))
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "ServiceUnavailableError"
    assert app.received.bodies == []
    classify_with(app, FailingClassifier(None), deadline_ms=20)
    assert (await client.post(CHAT, json=chat("hello", "served-base"))).status_code == 200


async def test_rejected_request_is_logged_counted_and_recorded(
    app: App, client: httpx.AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vllm_lora_router")
    app.configure(CONFIG + "router: {on_error: reject}\n", tmp_path)
    classify_with(app, FailingClassifier(None), deadline_ms=20)
    await client.post(CHAT, json=chat("blood"))
    recorder = app.serving.recorder
    assert (dict(recorder.counts.by_reason), recorder.counts.failed, recorder.counts.in_progress) == (
        {"error": 1},
        1,
        0,
    )
    [decision] = recorder.recent_decisions(10)
    assert (decision["reason"], decision["rejected"], decision["outcome"]["status"]) == ("error", True, 503)
    assert sum("- -> rejected error" in message for message in caplog.messages) == 1


class Connection:
    """A client of the raw ASGI application that can disconnect."""

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

    def disconnect(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def run(self, asgi: Any) -> None:
        async def send(message: Message) -> None:
            self.sent.append(message)

        await asgi(self.scope, self.inbox.get, send)


async def test_disconnect_cancels_classification(app: App) -> None:
    slow = FailingClassifier(30)
    classify_with(app, slow, deadline_ms=60_000)
    connection = Connection(app, chat("blood"))
    running = asyncio.create_task(connection.run(app.asgi))
    await asyncio.sleep(0.05)
    connection.disconnect()
    await asyncio.wait_for(running, 60)
    assert slow.cancelled
    assert app.received.bodies == [] and connection.sent == []


async def test_later_disconnect_reaches_application(app: App) -> None:
    messages: list[str] = []

    async def generation(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        # vLLM cancels its receive and calls it again: no message may be lost.
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0.02)
        listening.cancel()
        await asyncio.sleep(0)
        messages.append((await receive())["type"])

    app.asgi.app = generation
    connection = Connection(app, chat("lawsuit"))
    running = asyncio.create_task(connection.run(app.asgi))
    await asyncio.sleep(0.1)
    assert messages == []
    connection.disconnect()
    await asyncio.wait_for(running, 60)
    assert messages == ["http.disconnect"]
    assert app.serving.recorder.counts.aborted == 1 and app.serving.recorder.counts.in_progress == 0


async def test_no_task_remains_after_response(app: App) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(20):
        await Connection(app, chat("lawsuit")).run(app.asgi)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == before


OBSERVE = CONFIG + "router: {mode: observe}\n"
# Requests of each kind that the middleware serves; each one leases medical-lora.
SERVED_KINDS = pytest.mark.parametrize(
    ("kind", "config", "model"),
    [("routed", CONFIG, "MoM"), ("observed", OBSERVE, "medical-lora"), ("named", CONFIG, "medical-lora")],
    ids=["routed", "observed", "named"],
)


@SERVED_KINDS
async def test_all_kinds_of_requests_are_served_by_one_pipeline(
    app: App, client: httpx.AsyncClient, tmp_path: Path, kind: str, config: str, model: str
) -> None:
    app.configure(config, tmp_path)
    with mock.patch.object(app.asgi, "_serve", wraps=app.asgi._serve) as serve:
        await client.post(CHAT, json=chat("blood", model))
        await client.post("/v1/embeddings", json=chat("blood", "served-base"))
    ((_, exchange, *_),) = (call.args for call in serve.call_args_list)
    assert exchange.kind == kind


@SERVED_KINDS
async def test_error_of_application_releases_lease_and_records_outcome_once(
    app: App, tmp_path: Path, kind: str, config: str, model: str
) -> None:
    leases: list[list[str]] = []

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        leases.append(app.adapters.leased.copy())
        raise RuntimeError("the engine is dead")

    app.configure(config, tmp_path)
    app.asgi.app = failing
    recorder = app.serving.recorder
    with (
        mock.patch.object(recorder, "record_decision", wraps=recorder.record_decision) as record_decision,
        mock.patch.object(recorder, "record_outcome", wraps=recorder.record_outcome) as record_outcome,
        pytest.raises(RuntimeError, match="the engine is dead"),
    ):
        await post_json(app.asgi, CHAT, chat("blood", model))
    assert leases == [["medical-lora"]] and app.adapters.leased == []
    assert record_decision.call_count == record_outcome.call_count == (0 if kind == "named" else 1)
    assert [decision["outcome"]["aborted"] for decision in recorder.recent_decisions(10)] == [True] * (kind != "named")


@SERVED_KINDS
async def test_disconnect_while_waiting_for_slot_releases_lease_and_records_nothing(
    app: App, tmp_path: Path, kind: str, config: str, model: str
) -> None:
    app.configure(config, tmp_path)
    app.adapters.slot.clear()
    connection = Connection(app, chat("blood", model))
    running = asyncio.create_task(connection.run(app.asgi))
    await asyncio.sleep(0.05)
    assert app.adapters.leased == ["medical-lora"]
    connection.disconnect()
    await asyncio.wait_for(running, 60)
    assert app.adapters.leased == [] and app.received.bodies == [] and connection.sent == []
    assert app.serving.recorder.recent_decisions(10) == []


async def test_requests_pass_before_engine_is_up(app: App, client: httpx.AsyncClient) -> None:
    app.serving.router = None
    await client.post(CHAT, json=chat("lawsuit"))
    assert app.received.json["model"] == "MoM"


async def test_websockets_pass(app: App) -> None:
    types: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        types.append(scope["type"])

    app.asgi.app = inner
    await app.asgi({"type": "websocket", "path": "/v1/realtime"}, None, None)  # pyright: ignore[reportArgumentType]
    assert types == ["websocket"]
