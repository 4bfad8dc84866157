"""Bodies of tens of megabytes, as images make them: what routing one costs beyond handing it on."""

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from .conftest import App

pytestmark = pytest.mark.alone

PIXELS = "A" * 20_000_000  # a base64 image of 15 MB


def body(model: str, place: str) -> bytes:
    """A 20 MB chat, with the image before the question or after it, and a system message of the client's own."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXELS}"}}
    text = {"type": "text", "text": "Is this bad blood?"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [image, text] if place == "first" else [text, image]}]
    if place == "first":
        messages.insert(0, {"role": "system", "content": "Be kind."})
    return json.dumps({"model": model, "messages": messages, "max_tokens": 5}).encode()


async def seconds(app: App, content: bytes) -> tuple[float, int]:
    """How long the middleware takes with a body in chunks of 64 KiB, and the length of the body that it hands on."""
    chunks: list[Message] = [
        {"type": "http.request", "body": content[at : at + 65536], "more_body": at + 65536 < len(content)}
        for at in range(0, len(content), 65536)
    ]
    handed_on: list[int] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        handed_on.append(len((await receive())["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    waiting = iter(chunks)

    async def receive() -> Message:
        return next(waiting, None) or await asyncio.Event().wait()  # the client stays

    async def send(message: Message) -> None:
        return

    app.asgi.app = inner
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    began = time.perf_counter()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await app.asgi(scope, receive, send)
    return time.perf_counter() - began, handed_on[0]


async def test_a_body_of_20_mb_costs_at_most_25_ms_more_than_handing_it_on(app: App) -> None:
    for place in ("first", "last"):
        named, routed = body("medical-lora", place), body("MoM", place)
        passed: list[tuple[float, int]] = []
        edited: list[tuple[float, int]] = []
        added_ms, until = float("inf"), time.monotonic() + 10
        # Other processes may take the cores for a while: the best of several tells what it costs.
        while len(passed) < 9 or (added_ms >= 25 and time.monotonic() < until):
            passed.append(await seconds(app, named))
            edited.append(await seconds(app, routed))
            added_ms = (min(edited)[0] - min(passed)[0]) * 1000
        assert {size for _, size in passed} == {len(named)}
        assert min(size for _, size in edited) > len(routed)  # the system prompt and reasoning were written
        print(f"\n20 MB, image {place}: {min(passed)[0] * 1000:.1f} ms handed on, {added_ms:.1f} ms more routed")
        assert added_ms < 25
