"""The exchange: how a request's body is read, edited, forwarded and released."""

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from vllm_lora_router.protocols.json_edit import NotAnObjectError, string_value
from vllm_lora_router.server.exchange import LARGE_BYTES, BodyForwardedError, Exchange

from .conftest import CONFIG, App, body_for, post_json

CHAT = "/v1/chat/completions"
JSON = (b"content-type", b"application/json")


def chunks_of(content: bytes, size: int) -> Iterator[Message]:
    """Yield the chunks of a request's body, like a server that creates them on demand."""
    for start in range(0, len(content), size):
        more = start + size < len(content)
        yield {"type": "http.request", "body": bytes(memoryview(content)[start : start + size]), "more_body": more}


def scope_of(path: str, *headers: tuple[bytes, bytes]) -> Scope:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [JSON, *headers],
    }


def receiver(messages: Iterator[Message]) -> Receive:
    async def receive() -> Message:
        for message in messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError("the client does not disconnect")

    return receive


async def ignore(message: Message) -> None:
    return None


async def test_chunked_body_is_forwarded_whole_with_content_length(app: App) -> None:
    content = json.dumps(body_for(CHAT, "blood", model="MoM")).encode()
    scope = scope_of(CHAT, (b"transfer-encoding", b"chunked"), (b"x-own", b"y"))
    await app.asgi(scope, receiver(chunks_of(content, 7)), ignore)
    headers = app.received.headers[-1]
    assert app.received.json["model"] == "medical-lora"
    assert headers["content-length"] == str(len(app.received.body)) and "transfer-encoding" not in headers
    assert headers["x-own"] == "y"
    assert dict(scope["headers"])[b"transfer-encoding"] == b"chunked"  # the server's scope is unchanged


async def test_unedited_chunked_body_keeps_transfer_encoding(app: App) -> None:
    content = json.dumps(body_for(CHAT, "blood", model="medical-lora")).encode()
    scope = scope_of(CHAT, (b"transfer-encoding", b"chunked"))
    await app.asgi(scope, receiver(chunks_of(content, 7)), ignore)
    assert app.received.body == content
    assert app.received.headers[-1]["transfer-encoding"] == "chunked"
    assert "content-length" not in app.received.headers[-1]


async def test_disconnect_during_upload_ends_request(app: App) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b'{"model":"MoM",', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(60):
        await app.asgi(scope_of(CHAT), receiver(iter(messages)), send)
    assert app.received.bodies == [] and sent == []


async def read_exchange(content: bytes) -> Exchange:
    exchange = await Exchange.read(scope_of(CHAT), CHAT, receiver(chunks_of(content, 7)))
    assert exchange is not None
    return exchange


@pytest.mark.parametrize(
    "read",
    [
        lambda exchange: exchange.members,
        lambda exchange: exchange.content,
        lambda exchange: exchange.rewrite(),
        lambda exchange: exchange.set_model("medical-lora"),
        lambda exchange: exchange.forward_body(receiver(iter([]))),
    ],
    ids=["members", "content", "rewrite", "set_model", "forward_body"],
)
async def test_reading_body_after_forwarding_raises(read: Callable[[Exchange], Any]) -> None:
    content = json.dumps(body_for(CHAT, "blood", model="MoM")).encode()
    exchange = await read_exchange(content)
    assert exchange.content == content and string_value(exchange.members["model"]) == "MoM"
    receive = exchange.forward_body(receiver(iter([])))
    with pytest.raises(BodyForwardedError, match="/v1/chat/completions has been forwarded; read it before"):
        read(exchange)
    assert (await receive())["body"] == content
    assert (exchange.model, exchange.is_object) == ("MoM", True)


async def test_body_that_is_written_after_forwarding_can_be_forwarded() -> None:
    exchange = await read_exchange(b'{"model":"MoM"}')
    exchange.forward_body(receiver(iter([])))
    exchange.write(b'{"model":"medical-lora"}')
    assert (await exchange.forward_body(receiver(iter([])))())["body"] == b'{"model":"medical-lora"}'
    with pytest.raises(BodyForwardedError):
        _ = exchange.members


async def test_members_of_body_that_is_not_json_object_raise() -> None:
    exchange = await read_exchange(b"[]")
    assert not exchange.is_object and exchange.content == b"[]"
    with pytest.raises(NotAnObjectError, match="/v1/chat/completions is not a JSON object"):
        _ = exchange.members


IMAGE_BYTES = 20_000_000


def with_an_image() -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * IMAGE_BYTES}}
    return {"model": "MoM", "messages": [{"role": "user", "content": [{"type": "text", "text": "blood"}, image]}]}


@pytest.mark.parametrize("model", ["MoM", "medical-lora"])
@pytest.mark.parametrize("rejections", [0, 1])
async def test_large_body_is_released_when_it_is_forwarded(app: App, model: str, rejections: int) -> None:
    content = json.dumps({**with_an_image(), "model": model}).encode()
    copies: dict[str, float] = {}
    rejections_left = rejections if model == "MoM" else 0

    def measure(moment: str) -> None:
        gc.collect()
        copies[moment] = tracemalloc.get_traced_memory()[0] / IMAGE_BYTES

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal rejections_left
        body = (await receive())["body"]
        assert len(body) > IMAGE_BYTES
        await asyncio.sleep(0.01)  # the engine works
        if rejections_left:
            rejections_left -= 1
            del body
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\\n\\n", "more_body": True})
        measure("application holds body")
        del body
        measure("application released body")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    app.asgi.app = inner
    tracemalloc.start()
    try:
        await app.asgi(scope_of(CHAT), receiver(chunks_of(content, 65_536)), ignore)
        peak = tracemalloc.get_traced_memory()[1] / IMAGE_BYTES
    finally:
        tracemalloc.stop()
    assert copies["application holds body"] < 1.1
    assert copies["application released body"] < 0.1
    assert peak < 2.1
    print(f"\n{copies}, at the peak {peak:.2f} copies of the body")


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def tool_call(number: int) -> list[dict[str, Any]]:
    """Return the items that an agent adds to its input with every step."""
    return [
        {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": str(number)},
        {"type": "function_call_output", "call_id": str(number), "output": "a.txt"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]


SYSTEM, QUESTION = message("system", "Be kind."), message("user", "What is a symptom?")
SCHEMA = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(40)}}
# Each function returns a body of about `size` thousandths of 256 KB.
BODIES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "many short messages": (
        CHAT,
        lambda size: {
            "messages": [SYSTEM, *(message("user", f"Question {number}?") for number in range(size * 5)), QUESTION]
        },
    ),
    "many short messages without system message": (
        CHAT,
        lambda size: {"messages": [*(message("user", f"Question {number}?") for number in range(size * 5)), QUESTION]},
    ),
    "many short messages in Chinese": (
        CHAT,
        lambda size: {
            "messages": [
                SYSTEM,
                *(message("user", f"第{number}个问题是什么？") for number in range(size * 5)),
                QUESTION,
            ]
        },
    ),
    "a few long messages": (
        CHAT,
        lambda size: {
            "messages": [SYSTEM, *(message("user", "All of a long letter. " * size * 3) for _ in range(4)), QUESTION]
        },
    ),
    "items of a response": (
        "/v1/responses",
        lambda size: {"input": [SYSTEM, *(item for number in range(size) for item in tool_call(number)), QUESTION]},
    ),
    "an agent's tools": (
        "/v1/messages",
        lambda size: {
            "system": "Be kind.",
            "tools": [{"name": f"t{number}", "input_schema": SCHEMA} for number in range(size // 4)],
            "messages": [QUESTION],
        },
    ),
}


# The largest body that is processed on the event loop, and one that is processed in a thread.
@pytest.mark.parametrize("max_bytes", [LARGE_BYTES, 256 * 1024])
@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("kind", BODIES)
async def test_body_of_up_to_256_kb_blocks_event_loop_briefly(
    app: App, kind: str, mode: str, max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """The short form checks the edited bodies only."""
    prompt = "system_prompt: You are a medical expert.\n"
    app.configure(CONFIG.replace(prompt, f"{prompt}    system_prompt_mode: {mode}\n"), tmp_path)
    path, make = BODIES[kind]
    size = 1_100
    while len(content := json.dumps({"model": "MoM", **make(size)}, ensure_ascii=False).encode()) > max_bytes:
        size -= 10
    assert len(content) > max_bytes * 0.95
    longest_ms = 0.0
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal longest_ms
        began = time.thread_time()
        run(handle)
        longest_ms = max(longest_ms, (time.thread_time() - began) * 1000)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        assert b"You are a medical expert." in (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    app.asgi.app = inner
    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    best_ms, until = float("inf"), time.monotonic() + 5
    # Other processes may use the cores for a while: the best of many runs is the cost.
    for number in count():
        longest_ms = 0.0
        response = await asyncio.ensure_future(post_json(app.asgi, path, content))
        assert response.headers["x-vsr-selected-category"] == "medical"
        best_ms = min(best_ms, longest_ms)
        if not full or (number >= 30 and (best_ms < 2 or time.monotonic() > until)):
            break
    print(f"\n{kind}, {mode}, {len(content)} bytes: {best_ms:.2f} ms")
    assert best_ms < 2 or not full
