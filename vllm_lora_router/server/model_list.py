"""Edit the answer of `GET /v1/models`: add the auto name and the adapters that the client may name."""

import json
from collections.abc import Callable, Sequence

from starlette.types import Message, Send


def send_with_names(names: Sequence[str], is_hidden: Callable[[str], bool], send: Send) -> Send:
    """Return a `send` that buffers the list until it is complete, and sends it edited by `with_names`."""
    start: Message | None = None
    chunks: list[bytes] = []

    async def send_edited(message: Message) -> None:
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
        content = with_names(b"".join(chunks), names, is_hidden)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(content)).encode())]})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return send_edited


def with_names(content: bytes, names: Sequence[str], is_hidden: Callable[[str], bool]) -> bytes:
    """Return the list with one entry per name, copied from the base model's entry.

    Args:
        content: the list as JSON; a list with an unknown structure is returned unchanged.
        names: the auto name, then the adapters.
        is_hidden: whether an entry is removed. Adapter versions are hidden: clients see the adapter's public name.
    """
    try:
        models = json.loads(content)
        first = models["data"][0]
        visible = [entry for entry in models["data"] if not is_hidden(entry["id"])]
        auto, *adapters = names
        base = first["id"]
        models["data"] = [
            *visible,
            *({**first, "id": name, "root": name, "parent": base} for name in adapters),
            {**first, "id": auto, "owned_by": "vllm_lora_router", "root": base, "parent": None},
        ]
    except (ValueError, LookupError, TypeError):
        return content
    return json.dumps(models, ensure_ascii=False, separators=(",", ":")).encode()
