"""The way back: a second try for what vLLM would not take of ours, and our 400 where nothing is routed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from vllm_lora_router.protocols.routes import ROUTES

from .conftest import CONFIG, App, ask, request_to

CHAT = "/v1/chat/completions"
SAGEMAKER = b"x-amzn-sagemaker-adapter-identifier"
EDITED = [path for path, route in ROUTES.items() if route.shapes[0].write_system]
# No path for a system prompt or for reasoning.
MODEL_ALONE = ["/v1/completions", "/generative_scoring", "/inference/v1/generate", "/detokenize"]


class Picky:
    """An application that refuses requests, with as many answers as it has been given statuses."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.bodies.append(json.loads(await request.body()))
        self.headers.append(dict(request.headers))
        status = self.statuses.pop(0)
        headers = {"x-try": str(len(self.bodies))}
        answer: Response = JSONResponse({"try": len(self.bodies)}, status, headers=headers)
        if status == 200 and self.bodies[-1].get("stream"):
            answer = StreamingResponse(iter([b"data: 1\n\n", b"data: 2\n\n"]), headers=headers)
        await answer(scope, receive, send)


def picky(app: App, *statuses: int) -> Picky:
    app.asgi.app = inner = Picky(*statuses)
    return inner


@pytest.mark.parametrize("path", EDITED)
async def test_what_vllm_refuses_of_ours_is_asked_again_with_the_model_alone(app: App, path: str) -> None:
    inner = picky(app, 400, 200)
    request = request_to(path, "blood", model="MoM", x=[0.5])
    answer = await ask(app.asgi, path, request, [(SAGEMAKER, b"MoM")] if path == "/invocations" else ())
    first, second = inner.bodies
    assert "You are a medical expert." in json.dumps(first) and "You are a medical expert." not in json.dumps(second)
    added = {"request_id": second["request_id"]} if path.startswith("/v1/responses") else {}
    assert second == {**request, "model": "medical-lora", **added}
    assert (answer.status, json.loads(answer.body), answer.headers["x-try"]) == (200, {"try": 2}, "2")
    assert answer.headers["x-vsr-injected-system-prompt"] == "false"
    assert answer.headers["x-vsr-selected-reasoning"] == "off"
    assert answer.headers["x-vsr-selected-model"] == "medical-lora"
    assert answer.headers["x-vsr-selected-category"] == "medical"
    assert answer.headers["x-lora-router-reason"] == "routed"


async def test_the_second_try_has_its_own_length_and_the_same_id(app: App) -> None:
    inner = picky(app, 400, 200)
    await ask(app.asgi, "/v1/responses", {"model": "MoM", "input": "blood"})
    first, second = inner.headers
    assert first["x-request-id"] == second["x-request-id"]
    assert inner.bodies[0]["request_id"] == inner.bodies[1]["request_id"] == "resp_" + first["x-request-id"]
    assert int(first["content-length"]) > int(second["content-length"])


async def test_a_second_try_may_stream(app: App) -> None:
    picky(app, 400, 200)
    answer = await ask(app.asgi, CHAT, request_to(CHAT, "blood", model="MoM", stream=True))
    assert answer.body == b"data: 1\n\ndata: 2\n\n" and answer.headers["x-vsr-injected-system-prompt"] == "false"


async def test_a_request_that_is_wrong_by_itself_is_asked_twice_and_no_more(app: App) -> None:
    inner = picky(app, 400, 400, 200)
    answer = await ask(app.asgi, CHAT, request_to(CHAT, "blood", model="MoM"))
    assert (answer.status, json.loads(answer.body), len(inner.bodies)) == (400, {"try": 2}, 2)
    assert app.serving.record.tally.reasons == {"routed": 1} and app.serving.record.tally.aborted == 0


@pytest.mark.parametrize("status", [200, 401, 404, 422, 500, 503])
async def test_every_other_answer_is_the_clients_at_once(app: App, status: int) -> None:
    inner = picky(app, status)
    answer = await ask(app.asgi, CHAT, request_to(CHAT, "blood", model="MoM"))
    assert (answer.status, len(inner.bodies)) == (status, 1)
    assert answer.headers["x-vsr-injected-system-prompt"] == "true"


@pytest.mark.parametrize(
    ("path", "words", "more"),
    [
        *((path, "blood", {}) for path in MODEL_ALONE),
        ("/tokenize", "", {"prompt": "blood"}),
        # Of this category only the adapter is known, and of the other nothing at all.
        (CHAT, "lawsuit", {}),
        (CHAT, "hello", {}),
        ("/v1/responses", "lawsuit", {}),
    ],
)
async def test_where_only_the_model_was_written_a_refusal_is_passed_on_at_once(
    app: App, path: str, words: str, more: dict[str, Any]
) -> None:
    inner = picky(app, 400)
    request = more or request_to(path, words)
    answer = await ask(app.asgi, path, {**request, "model": "MoM"})
    assert (answer.status, json.loads(answer.body), len(inner.bodies)) == (400, {"try": 1}, 1)


async def test_reasoning_alone_is_left_out_of_the_second_try_too(app: App, tmp_path: Path) -> None:
    app.configure(CONFIG.replace("    system_prompt: You are a medical expert.\n", ""), tmp_path)
    inner = picky(app, 400, 200)
    answer = await ask(app.asgi, CHAT, request_to(CHAT, "blood", model="MoM"))
    assert [body.get("chat_template_kwargs") for body in inner.bodies] == [{"enable_thinking": True}, None]
    assert (answer.status, answer.headers["x-vsr-selected-reasoning"]) == (200, "off")


async def test_a_request_that_is_not_routed_is_never_asked_twice(app: App) -> None:
    for model in ("medical-lora", "served-base", "unknown"):
        inner = picky(app, 400)
        answer = await ask(app.asgi, CHAT, request_to(CHAT, "blood", model=model))
        assert (answer.status, len(inner.bodies)) == (400, 1)


async def test_the_log_says_that_vllm_was_asked_again(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vllm_lora_router.decisions")
    picky(app, 400, 200)
    await ask(app.asgi, CHAT, request_to(CHAT, "blood", model="MoM"), [(b"x-request-id", b"mine")])
    app.serving.record.settle()
    first, second = caplog.messages
    assert first.startswith("medical -> medical-lora keyword 1.00") and first.endswith("chatcmpl-mine")
    assert second.startswith("chatcmpl-mine: vLLM answered 400") and "medical" in second


async def test_a_lease_lasts_over_both_tries(app: App) -> None:
    leased: list[list[str]] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        leased.append(app.adapters.leased.copy())
        await Response(status_code=400)(scope, receive, send)

    app.asgi.app = inner
    await ask(app.asgi, CHAT, request_to(CHAT, "blood", model="MoM"))
    assert leased == [["medical-lora"], ["medical-lora"]] and app.adapters.leased == []


class Line:
    """A client at the other end of a line, who can hang up."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.inbox.put_nowait({"type": "http.request", "body": json.dumps(request).encode(), "more_body": False})
        self.sent: list[Message] = []

    async def run(self, app: App, path: str) -> None:
        async def send(message: Message) -> None:
            self.sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": headers}
        await app.asgi(scope, self.inbox.get, send)


async def test_a_client_that_leaves_during_the_second_try_is_announced(app: App) -> None:
    heard: list[str] = []
    trying = asyncio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["type"])
        # vLLM listens while it works, and gives up listening when it answers.
        listening = asyncio.ensure_future(receive())
        if not trying.is_set():
            await asyncio.sleep(0.01)
            trying.set()
            listening.cancel()
            await Response(status_code=400)(scope, receive, send)
        else:
            heard.append((await listening)["type"])

    app.asgi.app = inner
    line = Line(request_to(CHAT, "blood", model="MoM"))
    running = asyncio.ensure_future(line.run(app, CHAT))
    await asyncio.wait_for(trying.wait(), 5)
    await asyncio.sleep(0.02)
    assert heard == ["http.request", "http.request"] and not running.done()
    line.inbox.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(running, 5)
    assert heard[2:] == ["http.disconnect"] and line.sent == []
    assert app.serving.record.tally.aborted == 1 and app.adapters.leased == []


async def test_an_auto_name_where_nothing_is_routed_is_told_where_something_is(
    app: App, client: httpx.AsyncClient
) -> None:
    for path in ("/v1/score", "/classify", "/v1/nowhere"):
        for model in ("MoM", "auto"):
            response = await client.post(path, json={"model": model, "input": "blood"})
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (400, 400, "model")
            assert error["type"] == "BadRequestError"
            assert model in error["message"] and path in error["message"]
            assert all(one in error["message"] for one in ROUTES if one != "/invocations")
            assert response.headers["content-length"] == str(len(response.content))


async def test_what_vllm_says_of_any_other_name_is_passed_on(client: httpx.AsyncClient) -> None:
    for model in ("medical-lora", "served-base", "unknown", None):
        response = await client.post("/v1/nowhere", json={"model": model})
        assert (response.status_code, response.text) == (404, "Not Found")


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_somebody_elses_route_may_take_an_auto_name(app: App, status: int) -> None:
    inner = picky(app, status)
    answer = await ask(app.asgi, "/v1/somebody/elses", {"model": "MoM", "x": 0.5})
    assert (answer.status, json.loads(answer.body), answer.headers["x-try"]) == (status, {"try": 1}, "1")
    assert inner.bodies == [{"model": "MoM", "x": 0.5}]
    assert not [name for name in answer.headers if name.startswith(("x-vsr", "x-lora-router"))]
