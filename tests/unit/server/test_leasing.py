"""Which candidate serves, and how long its adapter is kept."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from .conftest import CONFIG, App

CHAT = "/v1/chat/completions"


def chat(text: str, model: str = "MoM", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def test_the_first_candidate_that_can_be_leased_serves(app: App, client: httpx.AsyncClient) -> None:
    for loaded, model, reason in (
        ({"medical-lora", "second-lora"}, "medical-lora", "routed"),
        ({"second-lora"}, "second-lora", "not_loadable"),
        (set(), "served-base", "not_loadable"),
    ):
        app.adapters.loaded = loaded
        response = await client.post(CHAT, json=chat("blood"))
        assert (app.reached.json["model"], response.headers["x-lora-router-reason"]) == (model, reason)


async def test_the_default_keeps_the_reason_of_the_plan(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.clear()
    response = await client.post(CHAT, json=chat("Hello"))
    assert (app.reached.json["model"], response.headers["x-lora-router-reason"]) == ("served-base", "below_threshold")


async def test_a_default_adapter_that_cannot_serve_gives_way_to_the_base(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG.replace("default_model: base", "default_model: legal-lora"), tmp_path)
    await client.post(CHAT, json=chat("Hello"))
    assert app.reached.json["model"] == "legal-lora"
    app.adapters.loaded.clear()
    for text in ("Hello", "blood"):
        response = await client.post(CHAT, json=chat(text))
        assert (app.reached.json["model"], response.headers["x-lora-router-reason"]) == ("served-base", "not_loadable")


async def test_why_an_adapter_did_not_serve_stands_in_the_log(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    app.adapters.loaded.discard("medical-lora")
    app.adapters.broken["medical-lora"] = "its weights are for a narrower base"
    with caplog.at_level("INFO"):
        await client.post(CHAT, json=chat("blood"))
        app.serving.record.settle()
    assert "second-lora not_loadable" in caplog.text
    assert "[not medical-lora: its weights are for a narrower base]" in caplog.text


async def test_where_the_first_choice_is_anothers_adapter_the_reason_is_that_it_is_not_allowed(
    app: App, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for anothers, loaded, model, reason in (
        ({"medical-lora"}, {"second-lora"}, "second-lora", "not_allowed"),
        ({"medical-lora"}, set(), "served-base", "not_allowed"),
        ({"medical-lora", "second-lora"}, set(), "served-base", "not_allowed"),
        ({"second-lora"}, set(), "served-base", "not_loadable"),
        ({"second-lora"}, {"medical-lora"}, "medical-lora", "routed"),
    ):
        app.adapters.anothers, app.adapters.loaded = anothers, loaded
        for path, body in ((CHAT, chat("blood")), ("/tokenize", {"model": "MoM", "prompt": "blood"})):
            with caplog.at_level("INFO"):
                response = await client.post(path, json=body)
                app.serving.record.settle()
            assert (app.reached.json["model"], response.headers["x-lora-router-reason"]) == (model, reason), path
        foreseen = (await client.post("/v1/router/classify", json={"text": "blood"})).json()
        assert (foreseen["model"], foreseen["reason"]) == (model, reason)
    assert "second-lora not_allowed" in caplog.text
    assert "[not medical-lora: adapter 'medical-lora' is another tenant's]" in caplog.text


async def test_who_observes_is_told_nothing_of_what_is_not_allowed(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    default = CONFIG.replace("default_model: base", "default_model: legal-lora")
    app.configure(default + "router: {mode: observe}\n", tmp_path)
    app.adapters.anothers, app.adapters.loaded = {"legal-lora", "medical-lora"}, set()
    for text in ("blood", "Hello"):
        for path in (CHAT, "/v1/chat/completions/render"):
            response = await client.post(path, json=chat(text))
            assert response.headers["x-lora-router-reason"] == "observe"
            assert app.reached.json["model"] == "served-base"


async def test_a_client_that_names_anothers_adapter_is_told_what_vllm_says_of_an_unknown_one(
    app: App, client: httpx.AsyncClient
) -> None:
    app.adapters.anothers, app.adapters.loaded = {"medical-lora"}, set()
    for name in ("medical-lora", "unknown"):
        response = await client.post(CHAT, json=chat("blood", name))
        assert app.reached.json == chat("blood", name)
        assert "x-lora-router-reason" not in response.headers


async def test_a_request_waits_for_its_adapter_to_load(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.loaded.discard("medical-lora")
    loaded = app.adapters.coming["medical-lora"] = asyncio.Event()
    waiting = asyncio.ensure_future(client.post(CHAT, json=chat("blood")))
    await client.post(CHAT, json=chat("lawsuit"))
    assert app.reached.json["model"] == "legal-lora" and not waiting.done()
    loaded.set()
    assert (await waiting).headers["x-lora-router-reason"] == "routed"
    assert app.reached.json["model"] == "medical-lora"


async def test_an_adapter_that_is_not_ready_in_time_gives_way(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + "router: {adapters: {max_wait_ms: 20}}\n", tmp_path)
    app.adapters.loaded.discard("medical-lora")
    app.adapters.coming["medical-lora"] = asyncio.Event()
    response = await client.post(CHAT, json=chat("blood"))
    assert (app.reached.json["model"], response.headers["x-lora-router-reason"]) == ("second-lora", "not_loadable")
    assert float(response.headers["x-lora-router-overhead-ms"]) >= 20


async def test_a_lease_lasts_until_the_response_ends(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.slot.clear()
    for text, model in (("blood", "MoM"), ("blood", "medical-lora")):
        waiting = asyncio.ensure_future(client.post(CHAT, json=chat(text, model)))
        await until(lambda: app.adapters.leased == ["medical-lora"])
        app.adapters.slot.set()
        await waiting
        assert app.adapters.leased == []
        app.adapters.slot.clear()


async def test_a_client_that_leaves_while_it_waits_gives_its_lease_back(app: App) -> None:
    app.adapters.slot.clear()
    for model in ("MoM", "medical-lora"):
        body = httpx.Request("POST", "http://server", json=chat("blood", model)).content
        leave = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive(messages: Any = messages, leave: asyncio.Event = leave) -> Any:
            for message in messages:
                return message
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nothing is answered")

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
        request = asyncio.ensure_future(app.asgi(scope, receive, send))
        await until(lambda: app.adapters.leased == ["medical-lora"])
        leave.set()
        await request
        await until(lambda: app.adapters.leased == [])
    assert app.reached.bodies == []


async def test_a_named_adapter_is_waited_for_however_long_it_takes(
    app: App, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    app.configure(CONFIG + "router: {adapters: {max_wait_ms: 1}}\n", tmp_path)
    loaded = app.adapters.coming["new-lora"] = asyncio.Event()
    waiting = asyncio.ensure_future(client.post(CHAT, json=chat("blood", "new-lora")))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    loaded.set()
    await waiting
    assert app.reached.json["model"] == "new-lora"


async def test_a_later_version_of_a_named_adapter_goes_by_its_own_name(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    content = b'{ "x":1.50, "model" : "medical-lora" ,"messages":[ ]}'
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert app.reached.json["model"] == "medical-lora@1a2b3c4d"
    assert b"1.50" in app.reached.body and b"[ ]" in app.reached.body
    assert response.status_code == 200
    response = await client.post(CHAT, json=chat("blood"))
    assert app.reached.json["model"] == "medical-lora@1a2b3c4d"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"


async def test_what_nobody_knows_or_may_not_be_named_is_left_to_vllm(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.forbidden.add("medical-lora")
    app.adapters.broken["broken-lora"] = "no weights"
    for name in ("medical-lora", "unknown", "broken-lora"):
        await client.post(CHAT, json=chat("blood", name))
        assert app.reached.json["model"] == name and app.adapters.leased == []


async def test_nobody_starts_a_load_without_having_shown_the_api_key(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.coming["new-lora"] = asyncio.Event()
    async with asyncio.timeout(5):
        await client.post("/tokenize", json={"model": "new-lora", "prompt": "x"})
    assert app.reached.json["model"] == "new-lora"


async def test_tokenizing_needs_no_slot(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.slot.clear()
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    async with asyncio.timeout(5):
        await client.post("/tokenize", json={"model": "medical-lora", "prompt": "x"})
    assert app.reached.json["model"] == "medical-lora@1a2b3c4d"


async def test_every_route_that_names_an_adapter_gets_a_lease(app: App, client: httpx.AsyncClient) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    for path in ("/v1/embeddings", "/v1/responses", "/v1/completions"):
        await client.post(path, json={"model": "medical-lora", "input": "x"})
        assert app.reached.json["model"] == "medical-lora@1a2b3c4d"


async def test_what_goes_on_after_its_response_keeps_its_adapter(app: App, client: httpx.AsyncClient) -> None:
    await client.post("/v1/responses", json={"model": "medical-lora", "input": "x", "background": False})
    assert app.adapters.kept == []
    await client.post("/v1/responses", json={"model": "medical-lora", "input": "x", "background": True})
    assert app.adapters.kept == ["medical-lora"]


async def test_while_a_request_runs_that_cannot_be_read_no_version_goes(app: App, client: httpx.AsyncClient) -> None:
    counts = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        counts.append(app.adapters.under_way)

    app.asgi.app = inner
    headers = [(b"content-type", b"multipart/form-data")]
    scope = {"type": "http", "method": "POST", "path": "/v1/audio/transcriptions", "headers": headers}
    await app.asgi(scope, None, None)  # type: ignore[arg-type]
    assert counts == [1] and app.adapters.under_way == 0


async def test_a_version_that_a_client_names_by_itself_stays_while_it_answers(
    app: App, client: httpx.AsyncClient
) -> None:
    """Answers carry it, and vLLM's registry has it."""
    counts = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        counts.append((app.adapters.under_way, app.adapters.leased.copy()))
        await Response()(scope, receive, send)

    app.asgi.app = inner
    await client.post(CHAT, json=chat("blood", "medical-lora@1a2b3c4d"))
    await client.post(CHAT, json=chat("blood", "medical-lora"))
    assert counts == [(1, []), (0, ["medical-lora"])] and app.adapters.under_way == 0


async def test_a_request_that_is_cancelled_in_the_moment_it_gets_its_lease_gives_it_back(app: App) -> None:
    for model in ("MoM", "medical-lora"):
        for turns in range(12):
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
            for _ in range(turns):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.wait([request])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert app.adapters.leased == [], (model, turns)
