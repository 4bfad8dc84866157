"""What each of vLLM's routes may cost: a dry one loads nothing, an open one takes what is there."""

import asyncio
import json
from typing import Any

import pytest

from vllm_lora_router.protocols.routes import ROUTES

from .conftest import App, ask, request_to

DRY = [path for path, route in ROUTES.items() if route.dry]
OPEN = ["/generative_scoring", "/invocations"]
TOKENS = [path for path, route in ROUTES.items() if route.shapes[0].api == "tokens"]
WITH_WORDS = [path for path in ROUTES if path not in TOKENS and path != "/invocations"]
WITH_IDS = [path for path in ROUTES if not path.startswith("/v1/responses")]
INVOCATIONS = "/invocations"
HEADER = "x-amzn-sagemaker-adapter-identifier"


def adapter(name: str) -> tuple[bytes, bytes]:
    return HEADER.encode(), name.encode()


def auto(path: str) -> list[tuple[bytes, bytes]]:
    return [adapter("MoM")] if path == INVOCATIONS else []


@pytest.mark.parametrize("path", WITH_WORDS)
async def test_every_route_with_words_is_routed_by_them(app: App, path: str) -> None:
    answer = await ask(app.asgi, path, request_to(path, "blood", model="MoM"))
    assert app.reached.json["model"] == "medical-lora"
    assert answer.headers["x-vsr-selected-category"] == "medical"
    assert answer.headers["x-vsr-selected-model"] == "medical-lora"
    assert answer.headers["x-lora-router-reason"] == "routed"


@pytest.mark.parametrize("path", TOKENS)
async def test_tokens_are_not_read_and_take_the_default(app: App, path: str) -> None:
    request = request_to(path, "", prompt="blood")
    answer = await ask(app.asgi, path, {**request, "model": "MoM"})
    assert app.reached.json == {**request, "model": "served-base"}
    assert answer.headers["x-lora-router-reason"] == "no_text"


@pytest.mark.parametrize("path", DRY)
async def test_a_dry_route_costs_nothing_and_is_not_counted(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app.adapters.slot.clear()
    async with asyncio.timeout(5):
        answer = await ask(app.asgi, path, request_to(path, "blood", model="MoM"))
    assert answer.status == 200 and "x-lora-router-overhead-ms" in answer.headers
    assert app.adapters.waited_for == [] and app.adapters.leased == []
    assert app.serving.record.tally.reasons == {} and app.serving.record.tally.under_way == 0
    app.serving.record.settle()
    assert caplog.messages == []


@pytest.mark.parametrize("path", [path for path in DRY if path in WITH_WORDS])
async def test_a_dry_route_renders_what_the_real_one_would_run(app: App, path: str) -> None:
    real = {"/tokenize": "/v1/chat/completions"}.get(path, path.removesuffix("/render").removesuffix("/count_tokens"))
    said, bodies = [], []
    for one in (real, path):
        answer = await ask(app.asgi, one, request_to(one, "blood", model="MoM", request_id="same"))
        said.append({name: value for name, value in answer.headers.items() if "overhead" not in name})
        bodies.append(app.reached.json)
    assert said[0] == said[1] and bodies[0] == bodies[1]


@pytest.mark.parametrize("path", [path for path in DRY if path in WITH_WORDS])
async def test_a_dry_route_names_the_base_for_an_adapter_that_vllm_does_not_know_yet(app: App, path: str) -> None:
    app.adapters.loaded.clear()
    app.adapters.unasked.add("medical-lora")
    answer = await ask(app.asgi, path, request_to(path, "blood", model="MoM"))
    assert app.reached.json["model"] == "served-base"
    assert answer.headers["x-vsr-selected-model"] == "medical-lora"
    assert answer.headers["x-lora-router-reason"] == "routed"
    assert app.adapters.waited_for == []


async def test_a_dry_route_names_the_version_that_vllm_knows_though_it_is_not_in_memory(app: App) -> None:
    app.adapters.loaded.clear()
    app.adapters.coming["medical-lora"] = asyncio.Event()
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    async with asyncio.timeout(5):
        await ask(app.asgi, "/tokenize", request_to("/tokenize", "blood", model="MoM"))
    assert app.reached.json["model"] == "medical-lora@1a2b3c4d"
    assert app.adapters.waited_for == [] and app.adapters.leased == []


async def test_a_dry_route_passes_over_an_adapter_that_cannot_be_served(app: App) -> None:
    app.adapters.loaded.discard("medical-lora")
    answer = await ask(app.asgi, "/tokenize", request_to("/tokenize", "blood", model="MoM"))
    assert app.reached.json["model"] == "second-lora"
    assert answer.headers["x-lora-router-reason"] == "not_loadable"


@pytest.mark.parametrize("path", OPEN)
async def test_an_open_route_never_waits_for_a_load_and_takes_the_next_candidate(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    app.adapters.loaded.discard("medical-lora")
    app.adapters.coming["medical-lora"] = asyncio.Event()
    async with asyncio.timeout(5):
        answer = await ask(app.asgi, path, request_to(path, "blood", model="MoM"), auto(path))
    assert app.reached.json["model"] == "second-lora"
    assert answer.headers["x-lora-router-reason"] == "not_loadable"
    assert app.adapters.waited_for == []
    app.serving.record.settle()
    assert "[not medical-lora: it is not in memory" in caplog.text
    app.adapters.loaded.clear()
    async with asyncio.timeout(5):
        await ask(app.asgi, path, request_to(path, "blood", model="MoM"), auto(path))
    assert app.reached.json["model"] == "served-base" and app.adapters.waited_for == []


@pytest.mark.parametrize("path", OPEN)
async def test_an_open_route_serves_what_is_in_memory_and_is_counted(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    app.adapters.slot.clear()
    waiting = asyncio.ensure_future(ask(app.asgi, path, request_to(path, "blood", model="MoM"), auto(path)))
    await asyncio.sleep(0.02)
    assert app.adapters.leased == ["medical-lora"] and app.reached.bodies == []
    app.adapters.slot.set()
    assert (await waiting).status == 200
    assert app.adapters.leased == [] and app.adapters.waited_for == []
    assert app.serving.record.tally.reasons == {"routed": 1}
    app.serving.record.settle()
    assert len(caplog.messages) == 1


async def test_a_guarded_route_waits_for_a_load(app: App) -> None:
    app.adapters.loaded.discard("medical-lora")
    loaded = app.adapters.coming["medical-lora"] = asyncio.Event()
    loaded.set()
    await ask(app.asgi, "/v1/messages", request_to("/v1/messages", "blood", model="MoM"))
    assert app.adapters.waited_for == ["medical-lora"] and app.reached.json["model"] == "medical-lora"


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
async def test_sagemakers_header_asks_for_an_adapter_and_gets_its_name(
    app: App, name: str, body: dict[str, Any], edited: dict[str, Any]
) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    answer = await ask(app.asgi, INVOCATIONS, body, [adapter(name)])
    # What has neither messages nor a prompt has no words.
    adapter_name, model = ("served-base",) * 2 if "input" in body else ("medical-lora", "medical-lora@1a2b3c4d")
    assert app.reached.headers[-1][HEADER] == model
    assert app.reached.json == {**edited, "model": model}
    assert answer.headers["x-vsr-selected-model"] == adapter_name


async def test_sagemakers_header_may_get_the_base(app: App) -> None:
    await ask(app.asgi, INVOCATIONS, {"prompt": "hello"}, [adapter("MoM")])
    assert app.reached.headers[-1][HEADER] == "served-base"
    assert app.reached.json["prompt"] == "hello"


@pytest.mark.parametrize("name", [None, "served-base", "unknown", ""])
async def test_on_sagemakers_route_the_bodys_model_means_nothing(app: App, name: str | None) -> None:
    content = b'{ "model":"MoM",  "prompt":"blood"}'
    answer = await ask(app.asgi, INVOCATIONS, content, [] if name is None else [adapter(name)])
    assert app.reached.body == content and app.reached.headers[-1].get(HEADER) == name
    assert "x-vsr-selected-model" not in answer.headers
    await ask(app.asgi, INVOCATIONS, b'{ "model":"medical-lora",  "prompt":"blood"}')
    assert HEADER not in app.reached.headers[-1] and app.adapters.leased == []


async def test_an_adapter_named_in_sagemakers_header_gets_a_lease_and_the_body_stays(app: App) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    app.adapters.slot.clear()
    content = b'{ "model":"MoM",  "prompt":"lawsuit", "x":1.50}'
    waiting = asyncio.ensure_future(ask(app.asgi, INVOCATIONS, content, [adapter("medical-lora")]))
    await asyncio.sleep(0.02)
    assert app.adapters.leased == ["medical-lora"] and app.reached.bodies == []
    app.adapters.slot.set()
    await waiting
    assert app.reached.body == content
    assert app.reached.headers[-1][HEADER] == "medical-lora@1a2b3c4d"
    assert app.adapters.leased == []


async def test_an_adapter_named_in_sagemakers_header_is_not_loaded_for_it(app: App) -> None:
    app.adapters.coming["new-lora"] = asyncio.Event()
    async with asyncio.timeout(5):
        await ask(app.asgi, INVOCATIONS, {"prompt": "blood"}, [adapter("new-lora")])
    assert app.reached.headers[-1][HEADER] == "new-lora" and app.adapters.waited_for == []


@pytest.mark.parametrize("path", WITH_IDS)
async def test_the_clients_own_request_id_wins_then_the_bodys_then_a_new_one(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    dry = ROUTES[path].dry
    request = request_to(path, "blood", model="MoM")
    for header, in_body, expected in (
        ("header", "body", "header"),
        ("header", None, "header"),
        (None, "body", None),
        (None, None, "new"),
    ):
        app.serving.record.settle()
        caplog.clear()
        headers = [*auto(path), *([(b"x-request-id", header.encode())] if header else [])]
        await ask(app.asgi, path, {**request, **({"request_id": in_body} if in_body else {})}, headers)
        got = app.reached.headers[-1].get("x-request-id")
        assert app.reached.json.get("request_id") == in_body
        if expected == "new":
            assert got and len(got) == 32
        else:
            assert got == expected
        if not dry:
            app.serving.record.settle()
            assert caplog.messages[-1].endswith(got or "body")


async def test_a_response_gets_the_id_that_our_log_carries(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    path = "/v1/responses"
    for header in (None, b"mine"):
        headers = [(b"x-request-id", header)] if header else []
        await ask(app.asgi, path, {"model": "MoM", "input": "blood"}, headers)
        written = app.reached.json["request_id"]
        app.serving.record.settle()
        assert written.startswith("resp_") and caplog.messages[-1].endswith(f" {written}")
        assert app.reached.headers[-1]["x-request-id"] == (header.decode() if header else written[5:])
    await ask(app.asgi, path, {"model": "MoM", "input": "blood", "request_id": "own"})
    app.serving.record.settle()
    assert app.reached.json["request_id"] == "own" and caplog.messages[-1].endswith(" own")


@pytest.mark.parametrize(
    ("background", "kept"),
    [
        (True, ["medical-lora"]),
        # vLLM takes these for true, too.
        (1, ["medical-lora"]),
        ("true", ["medical-lora"]),
        ("yes", ["medical-lora"]),
        (False, []),
        (0, []),
        ("false", []),
        (None, []),
    ],
)
async def test_a_routed_response_in_the_background_keeps_its_adapter(
    app: App, background: Any, kept: list[str]
) -> None:
    await ask(app.asgi, "/v1/responses", {"model": "MoM", "input": "blood", "background": background})
    assert app.adapters.kept == kept and app.adapters.leased == []


@pytest.mark.parametrize("path", [*ROUTES, "/v1/embeddings"])
async def test_a_named_adapter_goes_by_its_versions_name_on_every_route(app: App, path: str) -> None:
    app.adapters.versions["medical-lora"] = "medical-lora@1a2b3c4d"
    request = request_to(path, "blood", model="medical-lora", x=[0.5, "é"])
    await ask(app.asgi, path, request, [adapter("medical-lora")] if path == INVOCATIONS else ())
    named = {} if path == INVOCATIONS else {"model": "medical-lora@1a2b3c4d"}
    assert app.reached.json == {**request, **named}
    assert int(app.reached.headers[-1].get("content-length", 0)) == (len(app.reached.body) if named else 0)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/tokenize", "/cohere/v2/chat"])
@pytest.mark.parametrize(
    "wish",
    [
        {"reasoning": {"effort": "low"}},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "low"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
    ids=json.dumps,
)
async def test_a_clients_own_wish_about_reasoning_wins(app: App, path: str, wish: dict[str, Any]) -> None:
    answer = await ask(app.asgi, path, request_to(path, "blood", model="MoM", **wish))
    after = app.reached.json
    assert {name: after[name] for name in wish} == wish
    assert not {"chat_template_kwargs", "reasoning", "thinking", "output_config"} & after.keys() - wish.keys()
    assert answer.headers["x-vsr-selected-reasoning"] == "off"
