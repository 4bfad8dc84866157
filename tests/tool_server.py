"""A tool server whose answers are controlled by the text: over standard streams, streamable HTTP, or plain POSTs.

Usage: python tool_server.py stdio | http PORT | plain PORT
"""

import json
import os
import sys
import time
import zlib
from typing import Any

CATEGORIES = ["medical", "legal", "tool_category"]
LONG_CHARACTERS = 10_000_000


def classify(text: str, tenant: str | None, received: dict[str, Any]) -> str:
    """Return the answer to a text: the text itself if it is JSON, or the behaviour that its first word names."""
    command, _, argument = text.partition(" ")
    if command == "hang":
        time.sleep(3600)
    elif command == "slow":
        time.sleep(float(argument))
    elif command == "print":
        sys.stdout.buffer.write(b"debug output\n\xff\xfe\n{}\n[1]\n" + b"x" * int(argument) + b"\n")
        sys.stdout.buffer.flush()
    elif command == "exit":
        os._exit(1)
    elif command == "html":
        return "<html><body>502 Bad Gateway</body></html>"
    elif command == "nan":
        return '{"class": 0, "confidence": NaN}'
    elif command == "long":
        return json.dumps({"class": 0, "confidence": 1.0, "system_prompt": "x" * LONG_CHARACTERS})
    elif command == "scores":
        return json.dumps({"class": 0, "confidence": 1.0, "probabilities": [0.0] * int(argument)})
    elif command == "raise":
        raise ValueError("the table is locked")
    elif command == "echo":
        return json.dumps({"class": 0, "confidence": 1.0, "system_prompt": json.dumps(received, sort_keys=True)})
    elif command == "tenant":
        fields = {"class": "tool_category", "confidence": 1.0, "model": f"{tenant}-lora"}
        return json.dumps({**fields, **json.loads(argument or "{}")})
    elif command.startswith("{"):
        return text
    return json.dumps({"class": 0, "confidence": 0.9})


def categories() -> str:
    return json.dumps(
        {
            "categories": CATEGORIES,
            "category_system_prompts": {
                "medical": "The tool's own prompt.",
                "tool_category": "The prompt of the tool's category.",
            },
            "category_descriptions": {"medical": "Health", "tool_category": "x" * 1000},
        }
    )


SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "with_probabilities": {"type": "boolean"},
        "tenant": {"type": "string"},
        "user": {"type": "string"},
        "headers": {"type": "object"},
        "model": {"type": "string"},
    },
    "required": ["text"],
}


def mcp_server() -> Any:
    """Return a server with the official MCP SDK."""
    import anyio.to_thread
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("tests", log_level="ERROR")

    @server.tool()
    async def classify_text(
        text: str,
        with_probabilities: bool = False,
        tenant: str | None = None,
        user: str | None = None,
        headers: dict[str, str] | None = None,
        model: str | None = None,
    ) -> str:
        received = {"text": text, "tenant": tenant, "user": user, "headers": headers, "model": model}
        return await anyio.to_thread.run_sync(classify, text, tenant, received)

    @server.tool()
    def list_categories() -> str:
        return categories()

    return server


def plain_app() -> Any:
    """Return a server as in vllm-project/semantic-router, where the path names the method."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def list_tools(request: Request) -> JSONResponse:
        tools = [("classify_text", SCHEMA), ("list_categories", {"type": "object", "properties": {}})]
        return JSONResponse({"tools": [{"name": name, "inputSchema": schema} for name, schema in tools]})

    async def call(request: Request) -> JSONResponse:
        params = (await request.json())["params"]
        arguments = params["arguments"]
        if params["name"] == "list_categories":
            text = categories()
        else:
            try:
                text = await run_in_threadpool(classify, arguments["text"], arguments.get("tenant"), arguments)
            except ValueError as error:
                content = [{"type": "text", "text": str(error)}]
                return JSONResponse({"content": content, "isError": True})
        return JSONResponse({"content": [{"type": "text", "text": text}], "isError": False})

    routes = [Route("/mcp/tools/list", list_tools, methods=["POST"]), Route("/mcp/tools/call", call, methods=["POST"])]
    return Starlette(routes=routes)


def with_bad_responses(app: Any) -> Any:
    """Return an ASGI app that answers a call itself if its text names a bad response, and otherwise calls `app`."""
    zeros = zlib.compress(b"0" * 64_000_000)
    responses: dict[bytes, tuple[int, dict[str, str], bytes]] = {
        b"bad gzip": (200, {"content-type": "application/json", "content-encoding": "deflate"}, zeros),
        b"bad charset": (200, {"content-type": "text/event-stream; charset=zlib"}, zeros),
        b"bad size": (200, {"content-type": "application/json"}, b" " * LONG_CHARACTERS),
        b"bad event": (200, {"content-type": "text/event-stream"}, b"data: " + b"x" * LONG_CHARACTERS),
        b"bad page": (200, {"content-type": "text/html"}, b"<html>Log in</html>"),
        b"bad status": (500, {"content-type": "application/json"}, b"[" * 100_000),
        b"bad nesting": (200, {"content-type": "application/json"}, b"[" * 100_000),
        b"bad length": (200, {"content-type": "application/json", "content-length": "1000"}, b"{}"),
    }

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        for text, (status, headers, content) in responses.items():
            if b'"text":"' + text in body.replace(b'": "', b'":"'):
                raw = [(name.encode(), value.encode()) for name, value in headers.items()]
                await send({"type": "http.response.start", "status": status, "headers": raw})
                await send({"type": "http.response.body", "body": content})
                return
        messages = [{"type": "http.request", "body": body}]
        await app(scope, lambda: _pop(messages, receive), send)

    return answer


async def _pop(messages: list[Any], receive: Any) -> Any:
    return messages.pop() if messages else await receive()


def main() -> None:
    if sys.argv[1] == "stdio":
        mcp_server().run("stdio")
        return
    import uvicorn

    app = plain_app() if sys.argv[1] == "plain" else mcp_server().streamable_http_app()
    uvicorn.run(with_bad_responses(app), port=int(sys.argv[2]), log_level="error")


if __name__ == "__main__":
    main()
