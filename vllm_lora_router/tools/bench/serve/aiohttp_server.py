"""Run the benchmark's small servers with aiohttp, without access logs."""

import argparse

from aiohttp import web


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the address options."""
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument("--port", type=int, required=True, help="port")


def listen(app: web.Application, args: argparse.Namespace) -> None:
    """Serve until the process is stopped."""
    import uvloop

    web.run_app(
        app, host=args.host, port=args.port, access_log=None, print=lambda *lines: None, loop=uvloop.new_event_loop()
    )


async def health(request: web.Request) -> web.Response:
    """Answer on /health."""
    return web.Response()
