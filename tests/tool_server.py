"""A tool server whose answers are controlled by the text: over standard streams, streamable HTTP, or plain POSTs.

Usage: python tool_server.py stdio | http PORT | plain PORT
"""

import json
import os
import sys
import time
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
    elif command == "exit":
        os._exit(1)
    elif command == "html":
        return "<html><body>502 Bad Gateway</body></html>"
    elif command == "nan":
        return '{"class": 0, "confidence": NaN}'
    elif command == "long":
        return json.dumps({"class": 0, "confidence": 1.0, "system_prompt": "x" * LONG_CHARACTERS})
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


def main() -> None:
    if sys.argv[1] == "stdio":
        mcp_server().run("stdio")
        return
    import uvicorn

    app = plain_app() if sys.argv[1] == "plain" else mcp_server().streamable_http_app()
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")


if __name__ == "__main__":
    main()
