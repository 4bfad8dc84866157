"""`GET /v1/models` as a client should see it: with the auto name, and with the adapters that it may name."""

import json
from collections.abc import Callable, Sequence

from starlette.types import Message, Send


def with_names(names: Sequence[str], hidden: Callable[[str], bool], send: Send) -> Send:
    """A `send` that holds the list back until it is complete, adds `names` to it and takes out what is `hidden`."""
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
        content = changed(b"".join(chunks), names, hidden)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return sending


def changed(content: bytes, names: Sequence[str], hidden: Callable[[str], bool]) -> bytes:
    """The list with a card a name after the base, made like the base's; a strange list stays as it is.

    The first name is the auto name. An adapter's versions are hidden: clients see its one public name.
    """
    try:
        models = json.loads(content)
        first = models["data"][0]
        kept = [card for card in models["data"] if not hidden(card["id"])]
        auto, *adapters = names
        base = first["id"]
        models["data"] = [
            *kept,
            *({**first, "id": name, "root": name, "parent": base} for name in adapters),
            {**first, "id": auto, "owned_by": "vllm_lora_router", "root": base, "parent": None},
        ]
    except (ValueError, LookupError, TypeError):
        return content
    return json.dumps(models, ensure_ascii=False, separators=(",", ":")).encode()
