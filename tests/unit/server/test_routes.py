"""The properties of vLLM's routes: a dry-run route loads nothing, and an open route uses only loaded adapters."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from vllm_lora_router.protocols.routes import ROUTES

from .conftest import CONFIG, App, body_for, post_json

DRY = [path for path, route in ROUTES.items() if route.dry_run]
OPEN = ["/generative_scoring", "/invocations"]
TOKENS = [path for path, route in ROUTES.items() if route.protocols[0].api == "tokens"]
WITH_TEXT = [path for path in ROUTES if path not in TOKENS and path != "/invocations"]
WITH_REQUEST_ID = [path for path in ROUTES if not path.startswith("/v1/responses")]
INVOCATIONS = "/invocations"
HEADER = "x-amzn-sagemaker-adapter-identifier"


def adapter(name: str) -> tuple[bytes, bytes]:
    return HEADER.encode(), name.encode()


def auto(path: str) -> list[tuple[bytes, bytes]]:
    return [adapter("MoM")] if path == INVOCATIONS else []


@pytest.mark.parametrize("path", WITH_TEXT)
async def test_routes_with_text_are_routed_by_text(app: App, path: str) -> None:
    response = await post_json(app.asgi, path, body_for(path, "blood", model="MoM"))
    assert app.received.json["model"] == "medical-lora"
    assert response.headers["x-vsr-selected-category"] == "medical"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-lora-router-reason"] == "routed"


@pytest.mark.parametrize("path", TOKENS)
async def test_token_routes_use_default_model(app: App, path: str) -> None:
    request = body_for(path, "", prompt="blood")
    response = await post_json(app.asgi, path, {**request, "model": "MoM"})
    assert app.received.json == {**request, "model": "served-base"}
    assert response.headers["x-lora-router-reason"] == "no_text"


@pytest.mark.parametrize("path", DRY)
async def test_dry_run_route_loads_and_records_nothing(app: App, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    app.adapters.slot.clear()
    async with asyncio.timeout(60):
        response = await post_json(app.asgi, path, body_for(path, "blood", model="MoM"))
    assert response.status == 200 and "x-lora-router-overhead-ms" in response.headers
    assert app.adapters.lease_calls == [] and app.adapters.leased == []
    assert app.serving.recorder.counts.by_reason == {} and app.serving.recorder.counts.in_progress == 0
    app.serving.recorder.flush()
    assert caplog.messages == []


@pytest.mark.parametrize("path", [path for path in DRY if path in WITH_TEXT])
async def test_dry_run_route_renders_same_body_as_real_route(app: App, path: str) -> None:
    real = {"/tokenize": "/v1/chat/completions"}.get(path, path.removesuffix("/render").removesuffix("/count_tokens"))
    headers, bodies = [], []
    for route in (real, path):
        response = await post_json(app.asgi, route, body_for(route, "blood", model="MoM", request_id="same"))
        headers.append({name: value for name, value in response.headers.items() if "overhead" not in name})
        bodies.append(app.received.json)
    assert headers[0] == headers[1] and bodies[0] == bodies[1]


@pytest.mark.parametrize("path", [path for path in DRY if path in WITH_TEXT])
async def test_dry_run_route_uses_base_name_for_unregistered_adapter(app: App, path: str) -> None:
    app.adapters.loaded.clear()
    app.adapters.unregistered.add("medical-lora")
    response = await post_json(app.asgi, path, body_for(path, "blood", model="MoM"))
    assert app.received.json["model"] == "served-base"
    assert response.headers["x-vsr-selected-model"] == "medical-lora"
    assert response.headers["x-lora-router-reason"] == "routed"
    assert app.adapters.lease_calls == []


async def test_dry_run_route_uses_registered_version_that_is_not_loaded(app: App) -> None:
    app.adapters.loaded.clear()
    app.adapters.loading["medical-lora"] = asyncio.Event()
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    async with asyncio.timeout(60):
        await post_json(app.asgi, "/tokenize", body_for("/tokenize", "blood", model="MoM"))
    assert app.received.json["model"] == "medical-lora@1a2b3c4d"
    assert app.adapters.lease_calls == [] and app.adapters.leased == []


async def test_dry_run_route_skips_adapter_that_cannot_serve(app: App) -> None:
    app.adapters.loaded.discard("medical-lora")
    response = await post_json(app.asgi, "/tokenize", body_for("/tokenize", "blood", model="MoM"))
    assert app.received.json["model"] == "second-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"


@pytest.mark.parametrize("path", OPEN)
async def test_open_route_falls_back_instead_of_loading(app: App, path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    app.adapters.loaded.discard("medical-lora")
    app.adapters.loading["medical-lora"] = asyncio.Event()
    async with asyncio.timeout(60):
        response = await post_json(app.asgi, path, body_for(path, "blood", model="MoM"), auto(path))
    assert app.received.json["model"] == "second-lora"
    assert response.headers["x-lora-router-reason"] == "not_loadable"
    assert app.adapters.lease_calls == []
    app.serving.recorder.flush()
    assert "[skipped medical-lora: not loaded" in caplog.text
    app.adapters.loaded.clear()
    async with asyncio.timeout(60):
        await post_json(app.asgi, path, body_for(path, "blood", model="MoM"), auto(path))
    assert app.received.json["model"] == "served-base" and app.adapters.lease_calls == []


@pytest.mark.parametrize("path", OPEN)
async def test_open_route_serves_loaded_adapter_and_is_recorded(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    app.adapters.slot.clear()
    running = asyncio.ensure_future(post_json(app.asgi, path, body_for(path, "blood", model="MoM"), auto(path)))
    await asyncio.sleep(0.02)
    assert app.adapters.leased == ["medical-lora"] and app.received.bodies == []
    app.adapters.slot.set()
    assert (await running).status == 200
    assert app.adapters.leased == [] and app.adapters.lease_calls == []
    assert app.serving.recorder.counts.by_reason == {"routed": 1}
    app.serving.recorder.flush()
    assert len(caplog.messages) == 1


async def test_route_behind_api_key_waits_for_load(app: App) -> None:
    app.adapters.loaded.discard("medical-lora")
    loaded = app.adapters.loading["medical-lora"] = asyncio.Event()
    loaded.set()
    await post_json(app.asgi, "/v1/messages", body_for("/v1/messages", "blood", model="MoM"))
    assert app.adapters.lease_calls == ["medical-lora"] and app.received.json["model"] == "medical-lora"


@pytest.mark.parametrize("name", ["MoM", "auto"])
@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (
            {"messages": [{"role": "user", "content": "blood"}]},
            {
                "messages": [
                    {"role": "system", "content": "You are a medical expert."},
                    {"role": "user", "content": "blood"},
                ],
                "chat_template_kwargs": {"enable_thinking": True},
            },
        ),
        ({"prompt": "blood"}, {"prompt": "blood"}),
        ({"input": "blood"}, {"input": "blood"}),
    ],
)
async def test_sagemaker_header_with_auto_name_is_routed(
    app: App, name: str, body: dict[str, Any], edited: dict[str, Any]
) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    response = await post_json(app.asgi, INVOCATIONS, body, [adapter(name)])
    # A body without messages and prompt has no text.
    adapter_name, model = ("served-base",) * 2 if "input" in body else ("medical-lora", "medical-lora@1a2b3c4d")
    assert app.received.headers[-1][HEADER] == model
    assert app.received.json == {**edited, "model": model}
    assert response.headers["x-vsr-selected-model"] == adapter_name


async def test_sagemaker_header_can_get_base_model(app: App) -> None:
    await post_json(app.asgi, INVOCATIONS, {"prompt": "hello"}, [adapter("MoM")])
    assert app.received.headers[-1][HEADER] == "served-base"
    assert app.received.json["prompt"] == "hello"


@pytest.mark.parametrize("name", [None, "served-base", "unknown", ""])
async def test_sagemaker_route_ignores_model_in_body(app: App, name: str | None) -> None:
    content = b'{ "model":"MoM",  "prompt":"blood"}'
    response = await post_json(app.asgi, INVOCATIONS, content, [] if name is None else [adapter(name)])
    assert app.received.body == content and app.received.headers[-1].get(HEADER) == name
    assert "x-vsr-selected-model" not in response.headers
    await post_json(app.asgi, INVOCATIONS, b'{ "model":"medical-lora",  "prompt":"blood"}')
    assert HEADER not in app.received.headers[-1] and app.adapters.leased == []


async def test_adapter_named_in_sagemaker_header_is_leased_and_body_is_unchanged(app: App) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    app.adapters.slot.clear()
    content = b'{ "model":"MoM",  "prompt":"lawsuit", "x":1.50}'
    running = asyncio.ensure_future(post_json(app.asgi, INVOCATIONS, content, [adapter("medical-lora")]))
    await asyncio.sleep(0.02)
    assert app.adapters.leased == ["medical-lora"] and app.received.bodies == []
    app.adapters.slot.set()
    await running
    assert app.received.body == content
    assert app.received.headers[-1][HEADER] == "medical-lora@1a2b3c4d"
    assert app.adapters.leased == []


async def test_adapter_named_in_sagemaker_header_is_not_loaded(app: App) -> None:
    app.adapters.loading["new-lora"] = asyncio.Event()
    async with asyncio.timeout(60):
        await post_json(app.asgi, INVOCATIONS, {"prompt": "blood"}, [adapter("new-lora")])
    assert app.received.headers[-1][HEADER] == "new-lora" and app.adapters.lease_calls == []


@pytest.mark.parametrize("path", WITH_REQUEST_ID)
async def test_request_id_is_taken_from_header_then_body_then_generated(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    dry = ROUTES[path].dry_run
    request = body_for(path, "blood", model="MoM")
    for header, in_body, expected in (
        ("header", "body", "header"),
        ("header", None, "header"),
        (None, "body", None),
        (None, None, "new"),
    ):
        app.serving.recorder.flush()
        caplog.clear()
        headers = [*auto(path), *([(b"x-request-id", header.encode())] if header else [])]
        await post_json(app.asgi, path, {**request, **({"request_id": in_body} if in_body else {})}, headers)
        request_id = app.received.headers[-1].get("x-request-id")
        assert app.received.json.get("request_id") == in_body
        if expected == "new":
            assert request_id and len(request_id) == 32
        else:
            assert request_id == expected
        if not dry:
            app.serving.recorder.flush()
            assert caplog.messages[-1].endswith(request_id or "body")


async def test_responses_api_gets_id_from_log(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    path = "/v1/responses"
    for header in (None, b"mine"):
        headers = [(b"x-request-id", header)] if header else []
        await post_json(app.asgi, path, {"model": "MoM", "input": "blood"}, headers)
        written = app.received.json["request_id"]
        app.serving.recorder.flush()
        assert written.startswith("resp_") and caplog.messages[-1].endswith(f" {written}")
        assert app.received.headers[-1]["x-request-id"] == (header.decode() if header else written[5:])
    await post_json(app.asgi, path, {"model": "MoM", "input": "blood", "request_id": "own"})
    app.serving.recorder.flush()
    assert app.received.json["request_id"] == "own" and caplog.messages[-1].endswith(" own")


@pytest.mark.parametrize(
    ("background", "pinned"),
    [
        (True, ["medical-lora"]),
        # vLLM reads these values as true, too.
        (1, ["medical-lora"]),
        ("true", ["medical-lora"]),
        ("yes", ["medical-lora"]),
        (False, []),
        (0, []),
        ("false", []),
        (None, []),
    ],
)
async def test_background_response_pins_routed_adapter(app: App, background: Any, pinned: list[str]) -> None:
    await post_json(app.asgi, "/v1/responses", {"model": "MoM", "input": "blood", "background": background})
    assert app.adapters.pinned == pinned and app.adapters.leased == []


@pytest.mark.parametrize(
    ("name", "served", "reason"), [("größe-lora", "größe-lora", "routed"), ("量-lora", "served-base", "not_loadable")]
)
async def test_adapter_that_a_header_cannot_name_falls_back_on_invocations(
    app: App, tmp_path: Path, name: str, served: str, reason: str
) -> None:
    app.configure(CONFIG.replace("odd-lora", name), tmp_path)
    app.adapters.loaded.add(name)
    body = body_for(INVOCATIONS, "size", model="x")
    response = await post_json(app.asgi, INVOCATIONS, body, [adapter("MoM")])
    assert app.received.headers[-1][HEADER] == served
    assert response.headers["x-lora-router-reason"] == reason
    response = await post_json(app.asgi, "/v1/chat/completions", body_for("/v1/chat/completions", "size", model="MoM"))
    assert app.received.json["model"] == name


@pytest.mark.parametrize("model", ["MoM", "medical-lora"])
async def test_background_request_that_vllm_refuses_pins_no_adapter(app: App, model: str) -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    app.asgi.app = refuse
    await post_json(app.asgi, "/v1/responses", {"model": model, "input": "blood", "background": True})
    assert app.adapters.pinned == [] and app.adapters.leased == []


async def test_only_responses_run_in_background(app: App) -> None:
    messages = [{"role": "user", "content": "blood"}]
    await post_json(app.asgi, "/v1/chat/completions", {"model": "MoM", "messages": messages, "background": True})
    assert app.adapters.pinned == [] and app.adapters.leased == []


@pytest.mark.parametrize("path", [*ROUTES, "/v1/embeddings"])
async def test_named_adapter_is_replaced_by_version_name_on_every_path(app: App, path: str) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    request = body_for(path, "blood", model="medical-lora", x=[0.5, "é"])
    await post_json(app.asgi, path, request, [adapter("medical-lora")] if path == INVOCATIONS else ())
    named = {} if path == INVOCATIONS else {"model": "medical-lora@1a2b3c4d"}
    assert app.received.json == {**request, **named}
    assert int(app.received.headers[-1].get("content-length", 0)) == (len(app.received.body) if named else 0)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/tokenize", "/cohere/v2/chat"])
@pytest.mark.parametrize(
    "reasoning",
    [
        {"reasoning": {"effort": "low"}},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "low"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=json.dumps,
)
async def test_reasoning_set_by_client_takes_precedence(app: App, path: str, reasoning: dict[str, Any]) -> None:
    response = await post_json(app.asgi, path, body_for(path, "blood", model="MoM", **reasoning))
    received = app.received.json
    assert {name: received[name] for name in reasoning} == reasoning
    assert not {"chat_template_kwargs", "reasoning", "thinking", "output_config"} & received.keys() - reasoning.keys()
    assert response.headers["x-vsr-selected-reasoning"] == "off"
