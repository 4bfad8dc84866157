"""A body on its way in: in chunks, large, or given up; nobody else waits for it, and nothing of it stays."""

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

from vllm_lora_router.server.incoming import LARGE_BYTES

from .conftest import CONFIG, App, ask, request_to

CHAT = "/v1/chat/completions"
JSON = (b"content-type", b"application/json")


def chunks_of(content: bytes, size: int) -> Iterator[Message]:
    """Chunks of a request's body as a server makes them: when they are asked for."""
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
        raise AssertionError("nobody leaves")

    return receive


async def ignore(message: Message) -> None:
    return None


async def test_a_body_in_chunks_arrives_in_one_piece_with_its_length(app: App) -> None:
    content = json.dumps(request_to(CHAT, "blood", model="MoM")).encode()
    scope = scope_of(CHAT, (b"transfer-encoding", b"chunked"), (b"x-own", b"y"))
    await app.asgi(scope, receiver(chunks_of(content, 7)), ignore)
    headers = app.reached.headers[-1]
    assert app.reached.json["model"] == "medical-lora"
    assert headers["content-length"] == str(len(app.reached.body)) and "transfer-encoding" not in headers
    assert headers["x-own"] == "y"
    assert dict(scope["headers"])[b"transfer-encoding"] == b"chunked"  # the server's own stays as it was


async def test_a_body_in_chunks_that_is_not_edited_stays_chunked(app: App) -> None:
    content = json.dumps(request_to(CHAT, "blood", model="medical-lora")).encode()
    scope = scope_of(CHAT, (b"transfer-encoding", b"chunked"))
    await app.asgi(scope, receiver(chunks_of(content, 7)), ignore)
    assert app.reached.body == content
    assert app.reached.headers[-1]["transfer-encoding"] == "chunked"
    assert "content-length" not in app.reached.headers[-1]


async def test_a_client_that_leaves_before_its_body_is_complete_reaches_nobody(app: App) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": b'{"model":"MoM",', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(5):
        await app.asgi(scope_of(CHAT), receiver(iter(messages)), send)
    assert app.reached.bodies == [] and sent == []


MUCH = 20_000_000


def with_an_image() -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * MUCH}}
    return {"model": "MoM", "messages": [{"role": "user", "content": [{"type": "text", "text": "blood"}, image]}]}


@pytest.mark.parametrize("model", ["MoM", "medical-lora"])
@pytest.mark.parametrize("refusals", [0, 1])
async def test_while_a_large_request_is_answered_nothing_of_its_body_stays_with_us(
    app: App, model: str, refusals: int
) -> None:
    content = json.dumps({**with_an_image(), "model": model}).encode()
    copies: dict[str, float] = {}
    left = refusals if model == "MoM" else 0

    def note(moment: str) -> None:
        gc.collect()
        copies[moment] = tracemalloc.get_traced_memory()[0] / MUCH

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal left
        body = (await receive())["body"]
        assert len(body) > MUCH
        await asyncio.sleep(0.01)  # the engine works
        if left:
            left -= 1
            del body
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\\n\\n", "more_body": True})
        note("the application has it")
        del body
        note("the application let go of it")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    app.asgi.app = inner
    tracemalloc.start()
    try:
        await app.asgi(scope_of(CHAT), receiver(chunks_of(content, 65_536)), ignore)
        peak = tracemalloc.get_traced_memory()[1] / MUCH
    finally:
        tracemalloc.stop()
    assert copies["the application has it"] < 1.1
    assert copies["the application let go of it"] < 0.1
    assert peak < 2.1
    print(f"\n{copies}, at the peak {peak:.2f} copies of the body")


def said(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": words}


def call(number: int) -> list[dict[str, Any]]:
    """What an agent adds to its input with every step."""
    return [
        {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": str(number)},
        {"type": "function_call_output", "call_id": str(number), "output": "a.txt"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
    ]


OWN, QUESTION = said("system", "Be kind."), said("user", "What is a symptom?")
SCHEMA = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(40)}}
# A body of about `size` thousandths of 256 KB.
BODIES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "many short messages": (
        CHAT,
        lambda size: {
            "messages": [OWN, *(said("user", f"Question {number}?") for number in range(size * 5)), QUESTION]
        },
    ),
    "many short messages without a system's": (
        CHAT,
        lambda size: {"messages": [*(said("user", f"Question {number}?") for number in range(size * 5)), QUESTION]},
    ),
    "many short messages in Chinese": (
        CHAT,
        lambda size: {
            "messages": [OWN, *(said("user", f"第{number}个问题是什么？") for number in range(size * 5)), QUESTION]
        },
    ),
    "a few long messages": (
        CHAT,
        lambda size: {
            "messages": [OWN, *(said("user", "All of a long letter. " * size * 3) for _ in range(4)), QUESTION]
        },
    ),
    "a response's items": (
        "/v1/responses",
        lambda size: {"input": [OWN, *(item for number in range(size) for item in call(number)), QUESTION]},
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


# The largest that is read and written on the event loop, and one that is not.
@pytest.mark.parametrize("most_bytes", [LARGE_BYTES, 256 * 1024])
@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_of_up_to_256_kb_holds_the_event_loop_for_less_than_2_ms(
    app: App, kind: str, mode: str, most_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "system_prompt: You are a medical expert.\n"
    app.configure(CONFIG.replace(prompt, f"{prompt}    system_prompt_mode: {mode}\n"), tmp_path)
    path, make = BODIES[kind]
    size = 1_100
    while len(content := json.dumps({"model": "MoM", **make(size)}, ensure_ascii=False).encode()) > most_bytes:
        size -= 10
    assert len(content) > most_bytes * 0.95
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
    # Other processes may take the cores for a while: the best of many tells what it costs.
    for number in count():
        longest_ms = 0.0
        answer = await asyncio.ensure_future(ask(app.asgi, path, content))
        assert answer.headers["x-vsr-selected-category"] == "medical"
        best_ms = min(best_ms, longest_ms)
        if number >= 30 and (best_ms < 2 or time.monotonic() > until):
            break
    print(f"\n{kind}, {mode}, {len(content)} bytes: {best_ms:.2f} ms")
    assert best_ms < 2
