"""A proxy that does in front of vLLM what the router does inside it, and no more than that.

It is as lean as can be: the same classifiers in its own process, the same reading and writing of the body, connections
that are used again, and what vLLM answers is passed on piece by piece and unread. It keeps no lease, writes no log line
and no record, and adds no header, all of which the router does.
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
from vllm_lora_router.tools.bench.serve.listening import add_options, health, listen

_PATH = "/v1/chat/completions"
_ROUTE = ROUTES[_PATH]
_MOST_BYTES = 64 * 1024 * 1024


class Proxy:
    """Routes chat completions to the adapters of a server that knows nothing of routing."""

    def __init__(self, router: Router, upstream: str) -> None:
        """
        Args:
            upstream: where vLLM is, such as http://localhost:8000.
        """
        self._router = router
        self._upstream = upstream

    def app(self) -> web.Application:
        """What is served."""
        app = web.Application(client_max_size=_MOST_BYTES)
        app.router.add_post(_PATH, self._chat)
        app.router.add_get("/health", health)
        app.cleanup_ctx.append(self._connected)
        return app

    async def _connected(self, app: web.Application) -> AsyncIterator[None]:
        # Nothing is decompressed, so that nothing has to be compressed again.
        async with aiohttp.ClientSession(
            self._upstream,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        ) as self._http:
            yield

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        members = json_edit.whole(content)
        if json_edit.text(members.get("model")) in self._router.auto_names:
            plan = await self._router.plan(_ROUTE.shape_of(members).read(members))
            content = json_edit.join({**members, "model": json_edit.dump(plan.candidates[0].model)})
        async with self._http.post(_PATH, data=content, headers={"content-type": "application/json"}) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"content-type": answer.headers["content-type"]}
            )
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


def main() -> int:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m vllm_lora_router.tools.bench.serve.proxy", description=__doc__)
    parser.add_argument("config", type=Path, help="as the server with the router has it")
    parser.add_argument("upstream", help="the server without it, such as http://localhost:8000")
    add_options(parser)
    args = parser.parse_args()
    loaded = load(args.config)
    router = Router.build(loaded, served_base(loaded))
    listen(Proxy(router, args.upstream).app(), args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
