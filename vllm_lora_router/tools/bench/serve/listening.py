"""How a small server of the benchmark listens: as fast as aiohttp does, and silently."""

import argparse

from aiohttp import web


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds where it listens."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)


def listen(app: web.Application, args: argparse.Namespace) -> None:
    """Serves until it is ended, with a path that tells that it is up."""
    import uvloop

    web.run_app(
        app, host=args.host, port=args.port, access_log=None, print=lambda *said: None, loop=uvloop.new_event_loop()
    )


async def health(request: web.Request) -> web.Response:
    """Answers on /health."""
    return web.Response()
