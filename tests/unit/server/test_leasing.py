"""Leasing: which candidate serves a request, and how long its lease is held."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from .conftest import CONFIG, App, body_for

CHAT = "/v1/chat/completions"


def chat(text: str, model: str = "MoM", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_first_candidate_that_can_be_leased_serves(app: App, client: httpx.AsyncClient) -> None:
    for loaded, model, reason in (
        ({"medical-lora", "second-lora"}, "medical-lora", "routed"),
        ({"second-lora"}, "second-lora", "not_loadable"),
        (set(), "served-base", "not_loadable"),
    ):
        app.adapters.loaded = loaded
        response = await client.post(CHAT, json=chat("blood"))
        assert (app.received.json["model"], response.headers["x-lora-router-reason"]) == (model, reason)


async def test_default_model_keeps_reason_of_plan(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.clear()
    response = await client.post(CHAT, json=chat("Hello"))
    assert (app.received.json["model"], response.headers["x-lora-router-reason"]) == ("served-base", "below_threshold")


async def test_default_adapter_falls_back_to_base_model(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(CONFIG.replace("default_model: base", "default_model: legal-lora"), tmp_path)
    await client.post(CHAT, json=chat("Hello"))
    assert app.received.json["model"] == "legal-lora"
    app.adapters.loaded.clear()
    for text in ("Hello", "blood"):
        response = await client.post(CHAT, json=chat(text))
        assert (app.received.json["model"], response.headers["x-lora-router-reason"]) == ("served-base", "not_loadable")


async def test_log_shows_why_adapter_did_not_serve(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.adapters.loaded.discard("medical-lora")
    app.adapters.broken["medical-lora"] = "its weights are for a narrower base"
    with caplog.at_level("INFO"):
        await client.post(CHAT, json=chat("blood"))
        app.serving.recorder.flush()
    assert "second-lora not_loadable" in caplog.text
    assert "[skipped medical-lora: its weights are for a narrower base]" in caplog.text


async def test_other_tenants_adapter_as_first_candidate_gives_not_allowed(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for other_tenants, loaded, model, reason in (
        ({"medical-lora"}, {"second-lora"}, "second-lora", "not_allowed"),
        ({"medical-lora"}, set(), "served-base", "not_allowed"),
        ({"medical-lora", "second-lora"}, set(), "served-base", "not_allowed"),
        ({"second-lora"}, set(), "served-base", "not_loadable"),
        ({"second-lora"}, {"medical-lora"}, "medical-lora", "routed"),
    ):
        app.adapters.other_tenants, app.adapters.loaded = other_tenants, loaded
        for path, body in ((CHAT, chat("blood")), ("/tokenize", {"model": "MoM", "prompt": "blood"})):
            with caplog.at_level("INFO"):
                response = await client.post(path, json=body)
                app.serving.recorder.flush()
            assert (app.received.json["model"], response.headers["x-lora-router-reason"]) == (model, reason), path
        preview = (await client.post("/v1/router/classify", json={"text": "blood"})).json()
        assert (preview["model"], preview["reason"]) == (model, reason)
    assert "second-lora not_allowed" in caplog.text
    assert "[skipped medical-lora: adapter 'medical-lora' belongs to another tenant]" in caplog.text


async def test_observe_mode_does_not_report_not_allowed(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    default = CONFIG.replace("default_model: base", "default_model: legal-lora")
    app.configure(default + "router: {mode: observe}\n", tmp_path)
    app.adapters.other_tenants, app.adapters.loaded = {"legal-lora", "medical-lora"}, set()
    for text in ("blood", "Hello"):
        for path in (CHAT, "/v1/chat/completions/render"):
            response = await client.post(path, json=chat(text))
            assert response.headers["x-lora-router-reason"] == "observe"
            assert app.received.json["model"] == "served-base"


async def test_other_tenants_adapter_looks_unknown_to_client(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.other_tenants, app.adapters.loaded = {"medical-lora"}, set()
    for name in ("medical-lora", "unknown"):
        response = await client.post(CHAT, json=chat("blood", name))
        assert app.received.json == chat("blood", name)
        assert "x-lora-router-reason" not in response.headers


async def test_request_waits_until_adapter_is_loaded(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.discard("medical-lora")
    loaded = app.adapters.loading["medical-lora"] = asyncio.Event()
    waiting = asyncio.ensure_future(client.post(CHAT, json=chat("blood")))
    await client.post(CHAT, json=chat("lawsuit"))
    assert app.received.json["model"] == "legal-lora" and not waiting.done()
    loaded.set()
    assert (await waiting).headers["x-lora-router-reason"] == "routed"
    assert app.received.json["model"] == "medical-lora"


async def test_adapter_not_ready_within_max_wait_falls_back(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + "router: {adapters: {max_wait_ms: 20}}\n", tmp_path)
    app.adapters.loaded.discard("medical-lora")
    app.adapters.loading["medical-lora"] = asyncio.Event()
    response = await client.post(CHAT, json=chat("blood"))
    assert (app.received.json["model"], response.headers["x-lora-router-reason"]) == ("second-lora", "not_loadable")
    assert float(response.headers["x-lora-router-overhead-ms"]) >= 20


async def test_lease_is_held_until_response_ends(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.slot.clear()
    for text, model in (("blood", "MoM"), ("blood", "medical-lora")):
        waiting = asyncio.ensure_future(client.post(CHAT, json=chat(text, model)))
        await wait_until(lambda: app.adapters.leased == ["medical-lora"])
        app.adapters.slot.set()
        await waiting
        assert app.adapters.leased == []
        app.adapters.slot.clear()


async def test_disconnect_while_waiting_for_slot_releases_lease(app: App) -> None:
    app.adapters.slot.clear()
    for model in ("MoM", "medical-lora"):
        body = httpx.Request("POST", "http://server", json=chat("blood", model)).content
        disconnect = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive(messages: Any = messages, disconnect: asyncio.Event = disconnect) -> Any:
            for message in messages:
                return message
            await disconnect.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("no response is sent")

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
        request = asyncio.ensure_future(app.asgi(scope, receive, send))
        await wait_until(lambda: app.adapters.leased == ["medical-lora"])
        disconnect.set()
        await request
        await wait_until(lambda: app.adapters.leased == [])
    assert app.received.bodies == []


async def test_named_adapter_has_no_deadline(app: App, client: httpx.AsyncClient, tmp_path: Path) -> None:
    app.configure(CONFIG + "router: {adapters: {max_wait_ms: 1}}\n", tmp_path)
    loaded = app.adapters.loading["new-lora"] = asyncio.Event()
    waiting = asyncio.ensure_future(client.post(CHAT, json=chat("blood", "new-lora")))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    loaded.set()
    await waiting
    assert app.received.json["model"] == "new-lora"


async def test_named_adapter_is_replaced_by_version_name(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    content = b'{ "x":1.50, "model" : "medical-lora" ,"messages":[ ]}'
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.received.json["model"] == "medical-lora@1a2b3c4d"
    assert b"1.50" in app.received.body and b"[ ]" in app.received.body
    assert response.status_code == 200
    response = await client.post(CHAT, json=chat("blood"))
    assert app.received.json["model"] == "medical-lora@1a2b3c4d"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"


async def test_unknown_and_forbidden_names_are_forwarded_to_vllm(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.forbidden.add("medical-lora")
    app.adapters.broken["broken-lora"] = "no weights"
    for name in ("medical-lora", "unknown", "broken-lora"):
        await client.post(CHAT, json=chat("blood", name))
        assert app.received.json["model"] == name and app.adapters.leased == []


async def test_path_without_api_key_check_starts_no_load(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loading["new-lora"] = asyncio.Event()
    async with asyncio.timeout(60):
        await client.post("/tokenize", json={"model": "new-lora", "prompt": "x"})
    assert app.received.json["model"] == "new-lora"


async def test_tokenize_needs_no_slot(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.slot.clear()
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    async with asyncio.timeout(60):
        await client.post("/tokenize", json={"model": "medical-lora", "prompt": "x"})
    assert app.received.json["model"] == "medical-lora@1a2b3c4d"


async def test_named_adapter_is_leased_on_every_path(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    for path in ("/v1/embeddings", "/v1/responses", "/v1/completions"):
        await client.post(path, json={"model": "medical-lora", "input": "x"})
        assert app.received.json["model"] == "medical-lora@1a2b3c4d"


async def test_background_response_pins_named_adapter(app: App, client: httpx.AsyncClient) -> None:
    await client.post("/v1/responses", json={"model": "medical-lora", "input": "x", "background": False})
    assert app.adapters.pinned == []
    await client.post("/v1/responses", json={"model": "medical-lora", "input": "x", "background": True})
    assert app.adapters.pinned == ["medical-lora"]


@pytest.mark.parametrize(("path", "uses"), [("/v1/audio/transcriptions", [0, 0, 1]), ("/tokenize", [0, 0, 0])])
async def test_request_that_is_not_json_marks_unknown_use_from_the_end_of_its_body(
    app: App, path: str, uses: list[int]
) -> None:
    counts: list[int] = []
    messages = iter([{"type": "http.request", "body": b"a", "more_body": more} for more in (True, False)])

    async def receive() -> Any:
        return next(messages)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        counts.append(app.adapters.unknown_uses)
        for _ in range(2):
            await receive()
            counts.append(app.adapters.unknown_uses)

    app.asgi.app = inner
    headers = [(b"content-type", b"multipart/form-data")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await app.asgi(scope, receive, None)  # type: ignore[arg-type]
    assert counts == uses and app.adapters.unknown_uses == 0


async def test_request_naming_version_marks_unknown_use(app: App, client: httpx.AsyncClient) -> None:
    """Answers carry the version's name, and vLLM has it in its registry."""
    counts = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        counts.append((app.adapters.unknown_uses, app.adapters.leased.copy()))
        await Response()(scope, receive, send)

    app.asgi.app = inner
    await client.post(CHAT, json=chat("blood", "medical-lora@1a2b3c4d"))
    await client.post(CHAT, json=chat("blood", "medical-lora"))
    assert counts == [(1, []), (0, ["medical-lora"])] and app.adapters.unknown_uses == 0


async def test_cancelled_request_releases_lease_at_any_iteration(app: App) -> None:
    for model in ("MoM", "medical-lora"):
        for iterations in range(12):
            body = httpx.Request("POST", "http://server", json=chat("blood", model)).content
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive(messages: Any = messages) -> Any:
                for message in messages:
                    return message
                await asyncio.Event().wait()

            async def send(message: Any) -> None:
                return None

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
            request = asyncio.ensure_future(app.asgi(scope, receive, send))
            for _ in range(iterations):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.wait([request])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert app.adapters.leased == [], (model, iterations)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_named_adapter_that_cannot_be_loaded_now_gives_503_with_the_reason(
    app: App, client: httpx.AsyncClient, path: str
) -> None:
    app.adapters.unavailable["medical-lora"] = "the disk of /run is full (0 bytes free); free some space"
    app.adapters.loaded.discard("medical-lora")
    response = await client.post(path, json=body_for(path, "hello", model="medical-lora"))
    assert response.status_code == 503 and app.received.bodies == []
    message = "adapter 'medical-lora' cannot be loaded now: the disk of /run is full (0 bytes free); free some space"
    if path == "/v1/messages":
        assert response.json() == {"type": "error", "error": {"type": "api_error", "message": message}}
    else:
        error = {"message": message, "type": "ServiceUnavailableError", "param": "model", "code": 503}
        assert response.json() == {"error": error}
    assert app.adapters.leased == [] and app.adapters.unknown_uses == 0


async def test_routed_request_falls_back_when_its_adapter_cannot_be_loaded_now(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.adapters.loaded.discard("medical-lora")
    app.adapters.unavailable["medical-lora"] = "the disk of /run is full"
    with caplog.at_level("INFO"):
        response = await client.post(CHAT, json=chat("blood"))
        app.serving.recorder.flush()
    assert response.status_code == 200 and app.received.json["model"] == "second-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"
    assert "[skipped medical-lora: the disk of /run is full]" in caplog.text
