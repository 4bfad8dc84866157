"""`GET /v1/models` with the auto name in it, so that clients that choose from the list can choose to be routed."""

import json

from starlette.types import Message, Send


def with_auto_name(auto_name: str, send: Send) -> Send:
    """A `send` that holds the list back until it is complete, and adds the auto name to it."""
    start: Message | None = None
    chunks: list[bytes] = []

    async def sending(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and message["status"] == 200:
            start = message
            return
        if start is None or message["type"] != "http.response.body":
            await send(message)
            return
        chunks.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        content = added(b"".join(chunks), auto_name)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return sending


def added(content: bytes, auto_name: str) -> bytes:
    """The list with a card for the auto name after the others, made like the first; a strange list stays as it is."""
    try:
        models = json.loads(content)
        first = models["data"][0]
        card = {**first, "id": auto_name, "owned_by": "vllm_lora_router", "root": first["id"], "parent": None}
        models["data"].append(card)
    except (ValueError, LookupError, TypeError):
        return content
    return json.dumps(models, ensure_ascii=False, separators=(",", ":")).encode()
