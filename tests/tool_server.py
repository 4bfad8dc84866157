"""A tool server that does as the text tells it: over standard streams, streamable HTTP, or plain POSTs.

python tool_server.py stdio | http PORT | plain PORT
"""

import json
import os
import sys
import time
from typing import Any

CATEGORIES = ["medical", "legal", "theirs"]
LONG = 10_000_000


def say(text: str, tenant: str | None, asked: dict[str, Any]) -> str:
    """The answer to a text such as `{"class": 0}`, or what a broken tool would say to `hang`, `exit`, `html`, ..."""
    word, _, rest = text.partition(" ")
    if word == "hang":
        time.sleep(3600)
    elif word == "slow":
        time.sleep(float(rest))
    elif word == "exit":
        os._exit(1)
    elif word == "html":
        return "<html><body>502 Bad Gateway</body></html>"
    elif word == "nan":
        return '{"class": 0, "confidence": NaN}'
    elif word == "long":
        return json.dumps({"class": 0, "confidence": 1.0, "system_prompt": "x" * LONG})
    elif word == "raise":
        raise ValueError("the table is locked")
    elif word == "echo":
        return json.dumps({"class": 0, "confidence": 1.0, "system_prompt": json.dumps(asked, sort_keys=True)})
    elif word == "tenant":
        return json.dumps({"class": "theirs", "confidence": 1.0, "model": f"{tenant}-lora", **json.loads(rest or "{}")})
    elif word.startswith("{"):
        return text
    return json.dumps({"class": 0, "confidence": 0.9})


def categories() -> str:
    return json.dumps(
        {
            "categories": CATEGORIES,
            "category_system_prompts": {"medical": "The tool's own words.", "theirs": "Serve them."},
            "category_descriptions": {"medical": "Health"},
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
        asked = {"text": text, "tenant": tenant, "user": user, "headers": headers, "model": model}
        return await anyio.to_thread.run_sync(say, text, tenant, asked)

    @server.tool()
    def list_categories() -> str:
        return categories()

    return server


def plain_app() -> Any:
    """As the reference's tool servers answer: the path says what is asked for."""
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
        asked = params["arguments"]
        if params["name"] == "list_categories":
            text = categories()
        else:
            try:
                text = await run_in_threadpool(say, asked["text"], asked.get("tenant"), asked)
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
