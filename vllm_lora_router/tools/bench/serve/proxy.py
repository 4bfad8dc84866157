"""A proxy in front of vLLM with the router's classifiers, as a baseline.

It is minimal: the same classifiers in its own process, the same parsing and editing of the body, reused connections,
and responses that are forwarded unread, chunk by chunk. Unlike the router it holds no leases and writes no headers, log
lines or records.
"""

import argparse
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web

from vllm_lora_router.config import load
from vllm_lora_router.config.served_base import served_base
from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.routes import ROUTES
from vllm_lora_router.routing.router import Router
from vllm_lora_router.tools.bench.serve.aiohttp_server import add_options, health, listen

_PATH = "/v1/chat/completions"
_ROUTE = ROUTES[_PATH]
_MAX_BODY_BYTES = 64 * 1024 * 1024


class Proxy:
    """Routes chat completions to the adapters of a server without the router."""

    def __init__(self, router: Router, upstream: str) -> None:
        """Create a proxy.

        Args:
            router: the router.
            upstream: vLLM's URL, for example http://localhost:8000.
        """
        self._router = router
        self._upstream = upstream

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post(_PATH, self._chat)
        app.router.add_get("/health", health)
        app.cleanup_ctx.append(self._connected)
        return app

    async def _connected(self, app: web.Application) -> AsyncIterator[None]:
        # Responses are forwarded compressed.
        async with aiohttp.ClientSession(
            self._upstream,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        ) as self._http:
            yield

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        members = json_edit.body_members(content)
        if json_edit.string_value(members.get("model")) in self._router.auto_names:
            plan = await self._router.plan(_ROUTE.protocol_for(members).read(members))
            content = json_edit.join_members({**members, "model": json_edit.encode(plan.candidates[0].model)})
        async with self._http.post(_PATH, data=content, headers={"content-type": "application/json"}) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"content-type": answer.headers["content-type"]}
            )
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


def main() -> int:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.serve.proxy", description=__doc__)
    parser.add_argument("config", type=Path, help="the configuration of the server with the router")
    parser.add_argument("upstream", help="URL of the server without the router, for example http://localhost:8000")
    add_options(parser)
    args = parser.parse_args()
    loaded = load(args.config)
    router = Router.build(loaded, served_base(loaded))
    listen(Proxy(router, args.upstream).app(), args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
